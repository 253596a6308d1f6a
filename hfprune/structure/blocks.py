"""Find the blocks of a model, with their units, costs and sizes; every path is checked before anything is done."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hfprune.errors import StructureError
from hfprune.structure.architectures import architecture_of
from hfprune.structure.modeling_pruned import base_class
from hfprune.structure.specs import BlockSpec, Kind, Quantity


@dataclass(frozen=True, kw_only=True)
class Block:
    """One attention or feed-forward sublayer, and what its units are.

    A unit is a run of `width` consecutive input columns of the consumer: a head, a group of heads that share a
    key/value head, or a neuron. Module paths are relative to `model.base_model`.

    Attributes:
        name: Such as `encoder.layer.3.attention`.
        kind: `attention` or `ffn`.
        units: How many units the block has now; 0 if the whole block was removed.
        least: The fewest units that it can have: 0, or 1 where its modules cannot run without any.
        width: Input columns of the consumer that one unit owns.
        heads: Query heads in one unit (0 for neurons).
        head_dim: Width of one head (1 for neurons).
        consumer: Path of the projection that reads the units.
        producers: Paths of the projections that make them.
        producer_rows: Output rows of one unit in each producer, in each of its fused parts.
        fused: Equal parts that each producer stacks along its output.
        sizes: `(module path, attribute, amount for one unit)` of every attribute that follows the number of units.
        head_inputs: `(module path, argument, dimension)` of every argument with one slice a head.
        config_fields: `(field, amount for one unit)` of the stock config fields that say the block's size, for all
            layers at once; amount 0 stands for `head_dim`, which does not change. Empty where no field says it.
        residual_sum: Path of the module whose input is the consumer's output plus the residual stream, or of the layer
            whose output that is; None where there is no such place.
        bypass: Path of the module that is left out when no unit is left, if one must be.
        unit_params: Parameters that go when one unit goes.
        unit_token_macs: Multiply-adds for one token in the projections of one unit.
        unit_pair_macs: Multiply-adds for one pair of tokens in the attention product of one unit.
        portable_units: Counts of units that the stock config can say, if all layers have the same.
    """

    name: str
    kind: Kind
    units: int
    least: int
    width: int
    heads: int
    head_dim: int
    consumer: str
    producers: tuple[str, ...]
    producer_rows: tuple[int, ...]
    fused: int
    sizes: tuple[tuple[str, str, int], ...]
    head_inputs: tuple[tuple[str, str, int], ...]
    config_fields: tuple[tuple[str, int], ...]
    residual_sum: str | None
    bypass: str | None
    unit_params: int
    unit_token_macs: int
    unit_pair_macs: int
    portable_units: Sequence[int]

    @property
    def layer(self) -> str:
        """Path of the layer that the block is in."""
        return self.name.removesuffix(f".{self.kind}")

    def unit_macs(self, sequence_length: int) -> int:
        """Multiply-adds of one unit for one sequence of `sequence_length` tokens (ALGORITHMS §4)."""
        return sequence_length * self.unit_token_macs + sequence_length**2 * self.unit_pair_macs


def features_of(module: nn.Module) -> tuple[int, int]:
    """`(in_features, out_features)` of a `torch.nn.Linear` or transformers' `Conv1D`."""
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    raise TypeError(f"expected a Linear or Conv1D, got {type(module).__name__}")


def base_model_prefix(model: PreTrainedModel) -> str:
    """What stands before the base model's own names in `model.state_dict()`: `bert.`, or nothing."""
    return "" if model.base_model is model else f"{model.base_model_prefix}."


def unit_slices(model: PreTrainedModel, block: Block, *, gradients: bool = False) -> list[Tensor]:
    """The weights of every unit of a block, or their gradients.

    Args:
        model: The model.
        block: One of its blocks.
        gradients: Give the gradients instead of the weights.

    Returns:
        For every parameter of the producers and for the consumer's weight: `(units, weights of one unit)`.
    """

    def read(module: nn.Module, name: str) -> Tensor:
        value = module.get_parameter(name)
        if not gradients:
            return value
        return torch.zeros_like(value) if value.grad is None else value.grad

    parts = []
    for path, rows in zip(block.producers, block.producer_rows, strict=True):
        module = model.base_model.get_submodule(path)
        weight = read(module, "weight")
        by_row = [weight.T if isinstance(module, Conv1D) else weight]
        by_row += [read(module, "bias")[:, None]] if module.bias is not None else []
        for value in by_row:  # (fused · units · rows, inputs) -> (units, fused · rows · inputs)
            split = value.reshape(block.fused, block.units, rows, -1)
            parts.append(split.transpose(0, 1).reshape(block.units, -1))
    consumer = model.base_model.get_submodule(block.consumer)
    weight = read(consumer, "weight")
    columns = weight if isinstance(consumer, Conv1D) else weight.T
    parts.append(columns.reshape(block.units, -1))
    return parts


def find_blocks(model: PreTrainedModel) -> list[Block]:
    """List the prunable blocks of a model, attention before feed-forward, in layer order.

    Args:
        model: A transformers model, dense or pruned, with or without a task head.

    Returns:
        Two blocks a layer.

    Raises:
        UnsupportedArchitectureError: The model type has no entry in the table.
        StructureError: The model does not look as its entry says; all problems are listed together.
    """
    entry = architecture_of(model.config.model_type)
    base = model.base_model
    try:
        layers = base.get_submodule(entry.layers)
    except AttributeError:
        raise StructureError(
            f"{type(model).__name__} has no {entry.layers!r}, where its {model.config.model_type!r} entry expects the "
            "list of layers. Pass a transformers model of that type, not a wrapper around one."
        ) from None
    problems: list[str] = []
    blocks = []
    for index, layer in enumerate(layers):
        for kind, spec in entry.blocks.items():
            reader = _Reader(layer, f"{entry.layers}.{index}", kind, spec)
            block = reader.block(model.config)
            problems.extend(reader.problems)
            if block is not None:
                blocks.append(block)
    if problems or not blocks:
        listed = "\n  ".join(problems or ["it has no layers"])
        raise StructureError(
            f"{type(model).__name__} does not look as the architecture entry of {model.config.model_type!r} says:\n"
            f"  {listed}\nIf modules were replaced (LoRA, quantization), merge or undo that first; "
            "if transformers changed the model, the entry in hfprune/structure/table.py needs an update."
        )
    return blocks


def check_in_one_place(model: PreTrainedModel) -> None:
    """Refuse a model that is spread over devices or offloaded, where weights are to be changed.

    Args:
        model: The model.

    Raises:
        StructureError: It is.
    """
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(devices) > 1 or devices == ["meta"]:
        raise StructureError(
            f"the model's weights are on {', '.join(devices)}: surgery and reconstruction need all of them on one "
            "device. Load it without device_map, or with device_map='cpu'. Scoring works as it is: keep what "
            "hfprune.score (Scores.save) or hfprune.plan (to_json) gives, and apply the plan to the model on the CPU."
        )


class _Reader:
    """Reads one block of one layer and collects what is wrong instead of stopping at the first problem."""

    def __init__(self, layer: nn.Module, path: str, kind: Kind, spec: BlockSpec) -> None:
        self.layer, self.path, self.kind, self.spec = layer, path, kind, spec
        self.problems: list[str] = []

    def block(self, config: PretrainedConfig) -> Block | None:
        """The block, or None with `problems` filled."""
        spec = self.spec
        names = {name for name, _ in self.layer.named_modules()}
        self.problems += [f"{self.path}.{path}: not supported" for path in spec.absent if path in names]
        consumer = self._projection(spec.consumer)
        producers = [self._projection(path) for path in spec.producers]
        head_dim = 1 if spec.head_dim is None else self._attribute(spec.head_dim)
        if consumer is None or head_dim is None or any(producer is None for producer in producers):
            return None
        found = [producer for producer in producers if producer is not None]
        parts = [out // spec.fused for _, out, _ in found]
        columns, out_features, _ = consumer
        removed = columns == 0 and not any(parts)
        units = min(parts) // (head_dim * spec.interleaved)
        for path, size in [*zip(spec.producers, parts, strict=True), (spec.consumer, columns)]:
            if not removed and (not units or size % units or size % head_dim):
                self.problems.append(f"{self.path}.{path}: {size} features are not made of whole heads of {head_dim}")
        if self.problems:
            return None
        if removed:  # no shape says what a unit was
            width = head_dim if spec.head_dim is None else head_dim * _heads_in_group(config)
            rows = (width, *[head_dim] * (len(parts) - 1))
        else:
            width = columns // units
            rows = tuple(part // units for part in parts)
        amounts: dict[Quantity, int] = {"heads": width // head_dim, "units": 1, "features": width, "head_dim": 0}
        for attribute, quantity in spec.sizes.items():
            value = self._attribute(attribute)
            if value is not None and value != amounts[quantity] * units:
                self.problems.append(f"{self.path}.{attribute} is {value}, expected {amounts[quantity] * units}")
        made = [spec.fused * row for row in rows]
        weights = sum(row * producer[0] for row, producer in zip(made, found, strict=True)) + width * out_features
        biases = sum(row for row, producer in zip(made, found, strict=True) if producer[2])
        block = Block(
            name=f"{self.path}.{self.kind}",
            kind=self.kind,
            units=units,
            least=self._least(config),
            width=width,
            heads=0 if spec.head_dim is None else amounts["heads"],
            head_dim=head_dim,
            consumer=f"{self.path}.{spec.consumer}",
            producers=tuple(f"{self.path}.{path}" for path in spec.producers),
            producer_rows=rows,
            fused=spec.fused,
            sizes=tuple((*self._split(path), amounts[quantity]) for path, quantity in spec.sizes.items()),
            head_inputs=tuple(
                (f"{self.path}.{path}", argument, dimension)
                for path, arguments in spec.head_inputs.items()
                for argument, dimension in arguments.items()
            ),
            config_fields=tuple((name, amounts[quantity]) for name, quantity in spec.config_fields.items()),
            residual_sum=None if spec.residual_sum is None else f"{self.path}.{spec.residual_sum}".rstrip("."),
            bypass=f"{self.path}.{spec.bypass}" if spec.bypass else None,
            unit_params=weights + biases,
            unit_token_macs=weights,
            unit_pair_macs=0 if spec.head_dim is None else 2 * width,
            portable_units=(units,),
        )
        return None if self.problems else _with_portable_units(block, config)

    def _least(self, config: PretrainedConfig) -> int:
        """0 for neurons that a Linear reads (Conv1D fails on no inputs) and for what can be bypassed."""
        if self.spec.bypass is not None:
            return 1 if getattr(config, "is_decoder", False) else 0  # caches count on every attention
        linear = isinstance(self.layer.get_submodule(self.spec.consumer), nn.Linear)
        return 0 if self.kind == "ffn" and linear else 1

    def _split(self, path: str) -> tuple[str, str]:
        module, _, attribute = path.rpartition(".")
        return (f"{self.path}.{module}" if module else self.path), attribute

    def _projection(self, path: str) -> tuple[int, int, bool] | None:
        """`(in_features, out_features, has a bias)`, checked against the weight itself."""
        try:
            module = self.layer.get_submodule(path)
            inputs, outputs = features_of(module)
        except AttributeError:
            self.problems.append(f"{self.path}.{path}: no such module")
            return None
        except TypeError as error:
            self.problems.append(f"{self.path}.{path}: {error}")
            return None
        expected = (inputs, outputs) if isinstance(module, Conv1D) else (outputs, inputs)
        shape = tuple(module.get_parameter("weight").shape)
        if shape != expected:
            self.problems.append(f"{self.path}.{path}.weight is {shape}, expected {expected}")
            return None
        return inputs, outputs, module.bias is not None

    def _attribute(self, path: str) -> int | None:
        module, _, attribute = path.rpartition(".")
        try:
            value = getattr(self.layer.get_submodule(module), attribute)
        except AttributeError:
            self.problems.append(f"{self.path}.{path}: no such attribute")
            return None
        if not isinstance(value, int) or value < 0:
            self.problems.append(f"{self.path}.{path} is {value!r}, expected a number")
            return None
        return value


def _heads_in_group(config: PretrainedConfig) -> int:
    """Query heads for each key/value head, by the config."""
    heads: int = config.num_attention_heads
    return heads // (getattr(config, "num_key_value_heads", None) or heads)


def stock_config(config: PretrainedConfig, blocks: Sequence[Block], units: Sequence[int]) -> PretrainedConfig | None:
    """The stock config that says these sizes, or None where its fields or its own checks cannot.

    Args:
        config: The model's config, stock or pruned; it stays as it is.
        blocks: The blocks whose sizes are to be said.
        units: How many units each of them shall have.

    Returns:
        A copy of the config with the sizes set. Sizes that no field can say are left as they are, so compare the
        shapes of a model built from it.
    """
    values: dict[str, int] = {}
    if not all(units):  # a size of 0 means nothing to a stock config
        return None
    for block, count in zip(blocks, units, strict=True):
        for name, amount in block.config_fields:
            value = amount * count or block.head_dim
            if values.setdefault(name, value) != value:
                return None
    stock = base_class(type(config))
    fields = copy.deepcopy(config.to_dict())
    fields.update(values, model_type=stock.model_type)
    for ours in ("pruning_config", "auto_map", "architectures"):
        fields.pop(ours, None)
    try:
        return stock.from_dict(fields)
    except (StrictDataclassError, ValueError):  # its own checks, such as hidden_size % num_attention_heads
        return None


def _with_portable_units(block: Block, config: PretrainedConfig) -> Block:
    """Ask the stock config which counts it accepts: every one for neurons, some for heads, none where no field is."""
    if not block.config_fields:
        return block
    counts: Sequence[int] = range(1, block.units + 1)
    if block.kind == "attention":
        counts = tuple(n for n in counts if n == block.units or stock_config(config, [block], [n]) is not None)
    return Block(**{**vars(block), "portable_units": counts})
