"""Find the blocks of a model: every path and size is checked before anything is done."""

import inspect
from collections.abc import Sequence

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hfprune.errors import StructureError
from hfprune.structure.blocks import QUERIES, Amount, Block, attention_unit_of, features_of
from hfprune.structure.modeling_pruned import owner_of
from hfprune.structure.specs import Architecture, AttentionUnit, BlockSpec, Quantity, specs_of
from hfprune.structure.stock import Sizes, with_portable_units


def find_blocks(model: PreTrainedModel, attention_unit: AttentionUnit | None = None) -> list[Block]:
    """List the prunable blocks of a model, in the order in which they run, encoders first.

    Args:
        model: A transformers model, dense or pruned, with or without a task head.
        attention_unit: What units of attention with shared key/value heads are: `group`, or `query` for blocks that are
            named `queries` instead of `attention`. None: what the model was pruned by, or else `group`.

    Returns:
        Two blocks a layer, three where there is cross-attention; fewer where the entry says so.

    Raises:
        UnsupportedArchitectureError: The model type has no entry in the table, and none could be proven.
        StructureError: The model does not look as its entry says; all problems are listed together.
    """
    from hfprune.structure.discovery import support_of  # which proves entries with `read_blocks`

    return read_blocks(model, support_of(model).entry, attention_unit)


def read_blocks(
    model: PreTrainedModel, entry: Architecture, attention_unit: AttentionUnit | None = None
) -> list[Block]:
    """The blocks of a model by an entry: what `find_blocks` gives, for an entry that is given.

    Args:
        model: As for `find_blocks`.
        entry: Where its blocks are.
        attention_unit: As for `find_blocks`.

    Returns:
        As `find_blocks`.

    Raises:
        StructureError: As for `find_blocks`.
    """
    own = unit_of(model)
    # where a group has one query head, its units are heads anyway, unless that is what pruning left
    query = (attention_unit or own) == "query" and (own == "query" or _heads_in_group(model.config) > 1)
    problems: list[str] = []
    blocks = []
    sayable: dict[Sizes, bool] = {}
    for stack, specs in entry.stacks.items():
        layers, uses = _layers(model, stack, entry)
        cached = _is_cached(model, stack)
        for path, layer in layers:
            for name, choices in specs_of(specs).items():
                spec = _fitting(layer, choices)
                by_query = query and spec.grouped
                reader = _Reader(layer, path, QUERIES if by_query else name, spec, uses, cached, by_query=by_query)
                block = reader.block(model.config)
                problems.extend(reader.problems)
                if block is not None:
                    blocks.append(with_portable_units(block, model.config, sayable))
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


def unit_of(model: PreTrainedModel) -> AttentionUnit | None:
    """The unit of grouped attention in the plan that a model carries; None if it carries none."""
    plan = getattr(model, "pruning_plan", None)
    return None if plan is None else attention_unit_of(plan.blocks)


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

    def __init__(
        self, layer: nn.Module, path: str, name: str, spec: BlockSpec, uses: int, cached: bool, *, by_query: bool
    ) -> None:
        self.layer, self.path, self.name, self.spec, self.uses = layer, path, name, spec, uses
        self.cached, self.by_query = cached, by_query
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
        columns, out_features, _ = consumer
        parts = [self._parts(path, out, columns) for path, (_, out, _) in zip(spec.producers, found, strict=True)]
        removed = columns == 0 and not any(map(sum, parts))
        units = min(map(min, parts)) // (head_dim * spec.interleaved)
        for path, sizes in [*zip(spec.producers, parts, strict=True), (spec.consumer, (columns,))]:
            for size in sizes if not removed else ():
                if not units or size % units or size % head_dim:
                    self.problems.append(f"{self.path}.{path}: {size} features are no whole heads of {head_dim}")
        if self.problems:
            return None
        if removed:  # no shape says what a unit was
            width = head_dim if spec.head_dim is None else head_dim * _heads_in_group(config)
            sides = iter([width * spec.interleaved, *[head_dim] * sum(map(len, parts))])
            rows = [tuple(next(sides) for _ in sizes) for sizes in parts]
        else:
            width = columns // units
            rows = [tuple(size // units for size in sizes) for sizes in parts]
        heads, groups = width // head_dim, 1
        amounts: dict[Quantity, Amount] = {
            "heads": Amount(heads),
            "units": Amount(1),
            "features": Amount(width),
            "head_dim": Amount(0, head_dim),
            "group": Amount(0, heads),
        }
        if self.by_query and units:  # keys and values stay
            groups, units, width = units, units * heads, head_dim
            rows, found = [(head_dim,)], found[:1]
            amounts |= {
                "heads": Amount(groups),
                "units": Amount(0, groups),
                "features": Amount(groups * head_dim),
                "group": Amount(1),
            }
            heads = 1
        for attribute, quantity in spec.sizes.items():
            value, expected = self._attribute(attribute), amounts[quantity].of(units // groups)
            if value is not None and value != expected:
                self.problems.append(f"{self.path}.{attribute} is {value}, expected {expected}")
        made = [sum(row) for row in rows]
        weights = sum(row * producer[0] for row, producer in zip(made, found, strict=True)) + width * out_features
        biases = sum(row for row, producer in zip(made, found, strict=True) if producer[2])
        block = Block(
            name=f"{self.path}.{self.name}",
            layer=self.path,
            kind=spec.kind,
            uses=self.uses,
            mask=self._mask(config),
            units=units,
            groups=groups,
            least=groups if self.by_query else self._least(config),
            width=width,
            heads=0 if spec.head_dim is None else heads,
            head_dim=head_dim,
            consumer=f"{self.path}.{spec.consumer}",
            producers=tuple(f"{self.path}.{path}" for path in spec.producers[: len(rows)]),
            producer_rows=tuple(rows),
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
            unit_cache_bytes=self.uses * self._cached_features(rows) * self._itemsize(),
            portable_units=(units,),
        )
        return None if self.problems else block

    def _parts(self, path: str, size: int, columns: int) -> tuple[int, ...]:
        """The sizes of the parts that a producer stacks."""
        others = self.spec.fused - 1
        if not others:
            return (size,)
        other, left = divmod(size - columns, others)
        if left or other < 0 or (self.spec.kind == "ffn" and other != columns):
            self.problems.append(f"{self.path}.{path}: {size} features are not {others + 1} parts beside {columns}")
        return (columns, *[other] * others)

    def _cached_features(self, rows: Sequence[Sequence[int]]) -> int:
        """Features of key and value of one unit, of the rows that make it; 0 without a cache."""
        if self.spec.head_dim is None or not self.cached:
            return 0
        query = rows[0][0] // self.spec.interleaved
        return sum(map(sum, rows)) - query

    def _itemsize(self) -> int:
        return self.layer.get_submodule(self.spec.consumer).get_parameter("weight").dtype.itemsize

    def _mask(self, config: PretrainedConfig) -> str:
        """The decoder of an encoder-decoder reads other tokens than the encoder."""
        of_decoder = config.is_encoder_decoder and self.path.startswith("decoder.")
        return "decoder_attention_mask" if of_decoder else "attention_mask"

    def _least(self, config: PretrainedConfig) -> int:
        """0 for neurons that a Linear reads (Conv1D fails on no inputs) and for what can be bypassed."""
        if self.spec.bypass is not None:
            return 1 if getattr(config, "is_decoder", False) else 0  # an encoder's, in the place of a decoder
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
        try:
            owner, attribute = owner_of(self.layer, path)
            value = getattr(owner, attribute)
        except AttributeError:
            self.problems.append(f"{self.path}.{path}: no such attribute")
            return None
        if not isinstance(value, int) or value < 0:
            self.problems.append(f"{self.path}.{path} is {value!r}, expected a number")
            return None
        return value


def _heads_in_group(config: PretrainedConfig) -> int:
    """Query heads for each key/value head, by the config; 1 where it does not say."""
    heads: int = getattr(config, "num_attention_heads", None) or 1
    return heads // (getattr(config, "num_key_value_heads", None) or heads)
