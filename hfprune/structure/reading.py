"""Find the blocks of a model: every path and size is checked before anything is done."""

import copy
import inspect
from collections.abc import Sequence

from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hfprune.errors import StructureError
from hfprune.structure.architectures import architecture_of
from hfprune.structure.blocks import Block, features_of
from hfprune.structure.modeling_pruned import base_class
from hfprune.structure.specs import Architecture, BlockSpec, Quantity, specs_of


def find_blocks(model: PreTrainedModel) -> list[Block]:
    """List the prunable blocks of a model, in the order in which they run, encoders first.

    Args:
        model: A transformers model, dense or pruned, with or without a task head.

    Returns:
        Two blocks a layer, three where there is cross-attention; fewer where the entry says so.

    Raises:
        UnsupportedArchitectureError: The model type has no entry in the table.
        StructureError: The model does not look as its entry says; all problems are listed together.
    """
    entry = architecture_of(model.config.model_type)
    problems: list[str] = []
    blocks = []
    for stack, specs in entry.stacks.items():
        layers, uses = _layers(model, stack, entry)
        cached = _is_cached(model, stack)
        for path, layer in layers:
            for name, choices in specs_of(specs).items():
                reader = _Reader(layer, path, name, _fitting(layer, choices), uses, cached)
                block = reader.block(model.config)
                problems.extend(reader.problems)
                if block is not None:
                    blocks.append(block)
    if not problems and not blocks:
        raise StructureError(
            f"{type(model).__name__} has no layers at {' or '.join(map(repr, entry.stacks))}, where its "
            f"{model.config.model_type!r} entry expects them. Pass a transformers model of that type, not a wrapper "
            "around one."
        )
    if problems:
        listed = "\n  ".join(problems)
        raise StructureError(
            f"{type(model).__name__} does not look as the architecture entry of {model.config.model_type!r} says:\n"
            f"  {listed}\nIf modules were replaced (LoRA, quantization), merge or undo that first; "
            "if transformers changed the model, the entry in hfprune/structure/table needs an update."
        )
    return blocks


def _layers(model: PreTrainedModel, stack: str, entry: Architecture) -> tuple[list[tuple[str, nn.Module]], int]:
    """The layers of a stack with their paths, and how often each runs; none if the model lacks the stack."""
    found: list[tuple[str, nn.Module]] = [("", model.base_model)]
    outermost = 0
    for part in stack.split(".*."):
        inside = []
        for path, module in found:
            try:
                layers = module.get_submodule(part)
            except AttributeError:
                return [], 1
            entries = enumerate(layers) if isinstance(layers, nn.ModuleList) else ()
            inside += [(f"{path}.{part}.{index}".lstrip("."), layer) for index, layer in entries]
        found, outermost = inside, outermost or len(inside)
    if not entry.runs:
        return found, 1
    runs: int = getattr(model.config, entry.runs)
    if runs % outermost:
        raise StructureError(
            f"{entry.runs}={runs} is no multiple of the {outermost} groups of layers that {type(model).__name__} "
            "shares among them: how often each runs differs, which hfprune does not count."
        )
    return found, runs // outermost


def _is_cached(model: PreTrainedModel, stack: str) -> bool:
    """Whether attention in a stack of layers keeps keys and values while the model generates."""
    config = model.config
    if "past_key_values" not in inspect.signature(model.base_model.forward).parameters:
        return False
    if config.is_encoder_decoder:
        return stack.startswith("decoder.")
    can_be_either = hasattr(config, "add_cross_attention")  # BERT and its kin are decoders if the config says so
    return not can_be_either or getattr(config, "is_decoder", True)


def _fitting(layer: nn.Module, choices: Sequence[BlockSpec]) -> BlockSpec:
    """The first spec whose projections the layer has; the first of all if none fits."""
    names = {name for name, _ in layer.named_modules()}
    fits = (spec for spec in choices if names.issuperset({*spec.producers, spec.consumer}))
    return next(fits, choices[0])


class _Reader:
    """Reads one block of one layer and collects what is wrong instead of stopping at the first problem."""

    def __init__(self, layer: nn.Module, path: str, name: str, spec: BlockSpec, uses: int, cached: bool) -> None:
        self.layer, self.path, self.name, self.spec, self.uses, self.cached = layer, path, name, spec, uses, cached
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
            name=f"{self.path}.{self.name}",
            layer=self.path,
            kind=spec.kind,
            uses=self.uses,
            mask=self._mask(config),
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
                (f"{self.path}.{path}", argument, where)
                for path, arguments in spec.head_inputs.items()
                for argument, where in arguments.items()
            ),
            config_fields=tuple((name, amounts[quantity]) for name, quantity in spec.config_fields.items()),
            residual_sum=None if spec.residual_sum is None else f"{self.path}.{spec.residual_sum}".rstrip("."),
            bypass=f"{self.path}.{spec.bypass}" if spec.bypass else None,
            unit_params=weights + biases,
            unit_token_macs=self.uses * weights,
            unit_pair_macs=0 if spec.head_dim is None else 2 * self.uses * width,
            unit_cache_bytes=self.uses * self._cached_features(made) * self._itemsize(),
            portable_units=(units,),
        )
        return None if self.problems else _with_portable_units(block, config)

    def _cached_features(self, made: Sequence[int]) -> int:
        """Features of key and value of one unit, of what its producers make of a token; 0 without a cache."""
        if self.spec.head_dim is None or not self.cached:
            return 0
        parts = self.spec.fused * self.spec.interleaved  # 3, or there is a projection for each
        return sum(made) * (parts - 1) // parts if parts > 1 else sum(made[1:])

    def _itemsize(self) -> int:
        return self.layer.get_submodule(self.spec.consumer).get_parameter("weight").dtype.itemsize

    def _mask(self, config: PretrainedConfig) -> str:
        """The decoder of an encoder-decoder reads other tokens than the encoder."""
        of_decoder = config.is_encoder_decoder and self.path.startswith("decoder.")
        return "decoder_attention_mask" if of_decoder else "attention_mask"

    def _least(self, config: PretrainedConfig) -> int:
        """0 for neurons that a Linear reads (Conv1D fails on no inputs) and for what can be bypassed."""
        if self.spec.bypass is not None:
            return 1 if getattr(config, "is_decoder", False) else 0  # caches count on every attention
        linear = isinstance(self.layer.get_submodule(self.spec.consumer), nn.Linear)
        return 0 if self.spec.kind == "ffn" and linear else 1

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
