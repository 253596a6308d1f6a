"""Read the blocks of a model by an entry of the table: every path and size is checked before anything is done."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hfprune.errors import StructureError, UnsupportedArchitectureError
from hfprune.structure.blocks import Amount, Block, Slice, features_of, is_biased, weight_dimensions
from hfprune.structure.modeling_pruned import owner_of
from hfprune.structure.pruned_parts import Emptied
from hfprune.structure.sites import Site, sites_of
from hfprune.structure.specs import Architecture, AttentionUnit, HeadInput, Quantity, Unit
from hfprune.structure.stock import Sizes, with_portable_units


def read_blocks(
    model: PreTrainedModel, entry: Architecture, attention_unit: AttentionUnit = "group"
) -> tuple[Block, ...]:
    """The blocks of a model, in the order in which they run, encoders first.

    Args:
        model: A transformers model, dense or pruned, with or without a task head.
        entry: Where its blocks are.
        attention_unit: What units of attention with shared key/value heads are: `group`, or `query` for blocks that are
            named `queries` instead of `attention`.

    Returns:
        Two blocks a layer, three where there is cross-attention; fewer where the entry says so, and without those that
        have modules which the entry does not handle.

    Raises:
        StructureError: The model does not look as the entry says; all problems are listed together.
        UnsupportedArchitectureError: All blocks are left out: they have modules that the entry does not handle.
    """
    problems: list[str] = []
    blocks: list[Block] = []
    sayable: dict[Sizes, bool] = {}
    sites = list(sites_of(model, entry, attention_unit))
    taken = [site for site in sites if not site.unsupported]
    for site in taken:
        reader = _Reader(site)
        block = reader.block()
        problems.extend(reader.problems)
        if block is not None:
            blocks.append(with_portable_units(block, model.config, sayable))
    if problems:
        listed = "\n  ".join(problems)
        raise StructureError(
            f"{type(model).__name__} does not look as the architecture entry of {model.config.model_type!r} says:\n"
            f"  {listed}\nIf modules were replaced (LoRA, quantization), merge or undo that first; "
            "if transformers changed the model, the entry in hfprune/structure/table needs an update."
        )
    if sites and not taken:
        raise UnsupportedArchitectureError(
            f"{type(model).__name__} has no block that hfprune can cut. {left_out_of(sites)}"
        )
    if not blocks:
        raise StructureError(
            f"{type(model).__name__} has no layers at {' or '.join(map(repr, entry.stacks))}, where its "
            f"{model.config.model_type!r} entry expects them. Pass a transformers model of that type, not a wrapper "
            "around one."
        )
    return tuple(blocks)


def left_out_of(sites: Iterable[Site]) -> str:
    """Which blocks are left out, and why; empty if none is."""
    layers: dict[tuple[str, str], int] = {}
    for site in sites:
        if site.unsupported:
            reason = (site.name, site.unsupported)
            layers[reason] = layers.get(reason, 0) + 1
    sentences = []
    for (name, module), count in layers.items():
        sentences.append(f"{name} of {count} layers is left out: hfprune cannot cut {module}.")
    return " ".join(sentences)


def heads_in_group(config: PretrainedConfig) -> int:
    """Query heads for each key/value head, by the config; 1 where it does not say."""
    heads: int = getattr(config, "num_attention_heads", None) or 1
    shared: int = getattr(config, "num_key_value_heads", None) or heads
    # Falcon has other names
    if getattr(config, "new_decoder_architecture", False):
        shared = config.num_kv_heads
    elif getattr(config, "multi_query", False):
        shared = 1
    return heads // shared


@dataclass(frozen=True, kw_only=True)
class _Projection:
    """A Linear or Conv1D of a layer.

    Attributes:
        path: From the layer.
        inputs: Input features.
        outputs: Output features.
        biased: Whether it has a bias.
        input_dimension: The dimension of its weight that holds the inputs.
        output_dimension: The one that holds the outputs.
    """

    path: str
    inputs: int
    outputs: int
    biased: bool
    input_dimension: int
    output_dimension: int


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """What the units of a block are, and what they own.

    Attributes:
        unit: What one unit is.
        units: How many there are.
        groups: In how many groups they stand.
        width: Columns of the consumer that one owns.
        heads: Query heads in one.
        producers: The projections that make them.
        rows: For every producer, the rows of one unit in each of its parts.
        amounts: What every quantity of the table comes to.
    """

    unit: Unit
    units: int
    groups: int
    width: int
    heads: int
    producers: Sequence[_Projection]
    rows: Sequence[tuple[int, ...]]
    amounts: Mapping[Quantity, Amount]


class _Reader:
    """Reads one block of one layer and collects what is wrong instead of stopping at the first problem."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.spec = site.spec
        self.problems: list[str] = []

    def block(self) -> Block | None:
        """The block, or None with `problems` filled."""
        consumer = self._projection(self.spec.consumer)
        producers = [self._projection(path) for path in self.spec.producers]
        head_dim = self._head_dim()
        there = [producer for producer in producers if producer is not None]
        if consumer is None or head_dim is None or len(there) < len(producers):
            return None
        parts = [self._parts(producer, consumer.inputs) for producer in there]
        layout = self._layout(consumer, there, parts, head_dim)
        if layout is None:
            return None
        self._check_sizes(layout)
        of_heads = self._slices_of_heads(layout)
        if self.problems:
            return None
        return self._block(consumer, layout, head_dim, of_heads)

    def _head_dim(self) -> int | None:
        """Width of one head; 1 for neurons, None if no attribute says it."""
        if self.spec.head_dim is None:
            return 1
        return self._attribute(self.spec.head_dim)

    def _parts(self, producer: _Projection, columns: int) -> tuple[int, ...]:
        """The sizes of the parts that a producer stacks."""
        others = self.spec.fused - 1
        if not others:
            return (producer.outputs,)
        other, left = divmod(producer.outputs - columns, others)
        # key and value may have fewer heads than the query; the halves of a gated feed-forward are alike
        unequal_neurons = self.spec.of_neurons and other != columns
        if left or other < 0 or unequal_neurons:
            where = self.site.inside(producer.path)
            self.problems.append(
                f"{where}: its {producer.outputs} output features do not split into {self.spec.fused} parts, the first "
                f"as wide as the {columns} features that the consumer reads and the rest of one width"
            )
        return (columns, *[other] * others)

    def _layout(
        self, consumer: _Projection, producers: Sequence[_Projection], parts: Sequence[tuple[int, ...]], head_dim: int
    ) -> _Layout | None:
        """What the units are; None where sizes do not fit."""
        columns = consumer.inputs
        units = self._count_units(columns, parts, head_dim)
        is_removed = columns == 0 and not any(sum(sizes) for sizes in parts)
        if not is_removed:
            for producer, sizes in zip(producers, parts, strict=True):
                self._check_whole_heads(producer, sizes, units, head_dim)
            self._check_whole_heads(consumer, (columns,), units, head_dim)
        if self.problems:
            return None
        if is_removed:
            width = self._width_of_removed(head_dim)
            rows = self._rows_of_removed(parts, width, head_dim)
        else:
            width = columns // units
            rows = [tuple(size // units for size in sizes) for sizes in parts]
        if self.site.by_query and units:
            return _by_query(units, width, head_dim, producers[0])
        heads = width // head_dim
        return _Layout(
            unit=self._unit(),
            units=units,
            groups=1,
            width=width,
            heads=heads,
            producers=producers,
            rows=rows,
            amounts={
                "heads": Amount(heads),
                "units": Amount(1),
                "features": Amount(width),
                "head_dim": Amount(0, head_dim),
                "group": Amount(0, heads),
            },
        )

    def _count_units(self, columns: int, parts: Sequence[tuple[int, ...]], head_dim: int) -> int:
        """How many neurons, heads or groups of heads there are: as many as there are neurons, keys or values."""
        if self.spec.interleaved > 1:
            # what is behind the queries of a group: a key and a value
            others = self.spec.interleaved - 1
            return (parts[0][0] - columns) // (others * head_dim)
        return min(min(sizes) for sizes in parts) // head_dim

    def _unit(self) -> Unit:
        if self.spec.of_neurons:
            return "neuron"
        if self.site.by_query:
            return "query"
        return "group"

    def _check_whole_heads(self, projection: _Projection, sizes: Sequence[int], units: int, head_dim: int) -> None:
        for size in sizes:
            if not units or size % units or size % head_dim:
                where = self.site.inside(projection.path)
                self.problems.append(f"{where}: {size} features are no whole heads of {head_dim}")

    def _width_of_removed(self, head_dim: int) -> int:
        """Columns of one unit of a block that has no unit: no shape says it, the config does."""
        if self.spec.of_neurons:
            return head_dim
        return head_dim * heads_in_group(self.site.config)

    def _rows_of_removed(self, parts: Sequence[tuple[int, ...]], width: int, head_dim: int) -> list[tuple[int, ...]]:
        """Rows of one unit of such a block: the first part is the query's, the others have one head each."""
        first = width + (self.spec.interleaved - 1) * head_dim
        rows = []
        for number, sizes in enumerate(parts):
            own = [head_dim] * len(sizes)
            if number == 0:
                own[0] = first
            rows.append(tuple(own))
        return rows

    def _check_sizes(self, layout: _Layout) -> None:
        """Attributes that say how many units there are must say what the shapes say."""
        for attribute, quantity in self.spec.sizes.items():
            value = self._attribute(attribute)
            expected = layout.amounts[quantity].of(layout.units // layout.groups)
            if value is not None and value != expected:
                self.problems.append(f"{self.site.inside(attribute)} is {value}, expected {expected}")

    def _slices_of_heads(self, layout: _Layout) -> list[Slice]:
        """What the units own of parameters with one number for every query head."""
        slices = []
        for path in self.spec.head_parameters:
            module, _, name = path.rpartition(".")
            dimension = self._dimension_of_heads(path, layout.units * layout.heads)
            slices.append(
                Slice(
                    module=self.site.inside(module),
                    parameter=name,
                    dimension=dimension,
                    rows=(layout.heads,),
                    role="other",
                )
            )
        return slices

    def _dimension_of_heads(self, path: str, heads: int) -> int:
        """The dimension of such a parameter along which the heads lie; 0 where none does, which is a problem."""
        # a block that was removed whole has lost the parameter too
        if not heads:
            return 0
        where = self.site.inside(path)
        try:
            shape = tuple(self.site.layer.get_parameter(path).shape)
        except AttributeError:
            self.problems.append(f"{where}: no such parameter")
            return 0
        if heads not in shape or prod(shape) != heads:
            self.problems.append(f"{where} is {shape}, expected one number for each of {heads} query heads")
            return 0
        return shape.index(heads)

    def _block(self, consumer: _Projection, layout: _Layout, head_dim: int, of_heads: Sequence[Slice]) -> Block:
        site = self.site
        spec = self.spec
        weights = layout.width * consumer.outputs
        biases = 0
        source_weights = 0
        position_weights = 0
        for producer, rows in zip(layout.producers, layout.rows, strict=True):
            weights += sum(rows) * producer.inputs
            if producer.path in spec.of_positions:
                position_weights += sum(rows) * producer.inputs
            else:
                source_weights += self._source_rows(producer, rows, layout.width) * producer.inputs
            if producer.biased:
                biases += sum(rows)
        heads = 0
        pair_macs = 0
        if not spec.of_neurons:
            heads = layout.heads
            # queries times keys, and attention times values
            pair_macs = 2 * layout.width
        return Block(
            name=site.inside(site.name),
            layer=site.path,
            kind=spec.kind,
            unit=layout.unit,
            uses=site.uses,
            mask=self._mask(),
            units=layout.units,
            groups=layout.groups,
            least=self._least(consumer, layout),
            width=layout.width,
            heads=heads,
            head_dim=head_dim,
            slices=(*self._slices(consumer, layout), *of_heads),
            sizes=self._sizes(layout.amounts),
            head_inputs=self._head_inputs(),
            config_fields=tuple((name, layout.amounts[quantity]) for name, quantity in spec.config_fields.items()),
            residual_sum=site.inside_if_any(spec.residual_sum),
            bypass=site.inside_if_any(spec.bypass or None),
            unit_params=weights + biases + sum(sum(piece.rows) for piece in of_heads),
            unit_token_macs=site.uses * (weights - position_weights),
            unit_pair_macs=site.uses * pair_macs,
            unit_source_macs=site.uses * source_weights,
            unit_cache_bytes=site.uses * self._cached_features(layout) * self._itemsize(consumer),
            portable_units=(layout.units,),
        )

    def _slices(self, consumer: _Projection, layout: _Layout) -> tuple[Slice, ...]:
        """Output rows of the producers, with their biases, and input columns of the consumer."""
        slices = []
        for producer, rows in zip(layout.producers, layout.rows, strict=True):
            module = self.site.inside(producer.path)
            dimension = producer.output_dimension
            slices.append(Slice(module=module, parameter="weight", dimension=dimension, rows=rows, role="producer"))
            if producer.biased:
                slices.append(Slice(module=module, parameter="bias", dimension=0, rows=rows, role="producer"))
        module = self.site.inside(consumer.path)
        dimension = consumer.input_dimension
        columns = (layout.width,)
        slices.append(Slice(module=module, parameter="weight", dimension=dimension, rows=columns, role="consumer"))
        return tuple(slices)

    def _sizes(self, amounts: Mapping[Quantity, Amount]) -> tuple[tuple[str, str, Amount], ...]:
        sizes = []
        for path, quantity in self.spec.sizes.items():
            module, _, attribute = path.rpartition(".")
            sizes.append((self.site.inside(module), attribute, amounts[quantity]))
        return tuple(sizes)

    def _head_inputs(self) -> tuple[tuple[str, str, HeadInput], ...]:
        inputs = []
        for path, arguments in self.spec.head_inputs.items():
            for argument, where in arguments.items():
                inputs.append((self.site.inside(path), argument, where))
        return tuple(inputs)

    def _cached_features(self, layout: _Layout) -> int:
        """Features of key and value of one unit, of the rows that make it; 0 without a cache."""
        if self.spec.of_neurons or not self.site.cached:
            return 0
        by_head = self.spec.cached_by_head
        if by_head is not None:
            owner, attribute = owner_of(self.site.layer, by_head)
            if getattr(owner, attribute):
                return 2 * layout.width
        return sum(sum(parts) for parts in layout.rows) - layout.width

    def _source_rows(self, producer: _Projection, rows: Sequence[int], query: int) -> int:
        """Rows of one unit in a producer that make its key or value."""
        if self.spec.of_neurons:
            return 0
        if producer.path != self.spec.producers[0]:
            return sum(rows)
        # the first projection makes the query, and the others too where they are stacked in one
        return sum(rows) - query

    def _itemsize(self, consumer: _Projection) -> int:
        """Bytes of one number of the block's weights; of the model's where the block has none left."""
        module = self.site.layer.get_submodule(consumer.path)
        if isinstance(module, Emptied):
            return self.site.dtype.itemsize
        return module.get_parameter("weight").dtype.itemsize

    def _mask(self) -> str:
        """The argument that says which tokens are no padding."""
        # the decoder of an encoder-decoder reads other tokens than the encoder
        if self.site.config.is_encoder_decoder and self.site.path.startswith("decoder."):
            return "decoder_attention_mask"
        return "attention_mask"

    def _least(self, consumer: _Projection, layout: _Layout) -> int:
        """The fewest units that the block can have."""
        # keys and values are not removed, and something must read them
        if self.site.by_query:
            return layout.groups
        if self.spec.bypass is not None:
            # BERT as a decoder has a key/value cache, which a module that is left out would not fill
            return int(getattr(self.site.config, "is_decoder", False))
        # GPT-2's blocks keep a unit, and so does attention that cannot run without heads
        is_transposed = isinstance(self.site.layer.get_submodule(consumer.path), Conv1D)
        can_be_empty = self.spec.of_neurons and not is_transposed
        return 0 if can_be_empty else 1

    def _projection(self, path: str) -> _Projection | None:
        """A projection of the layer, checked against the weight itself."""
        where = self.site.inside(path)
        try:
            module = self.site.layer.get_submodule(path)
            inputs, outputs = features_of(module)
        except AttributeError:
            self.problems.append(f"{where}: no such module")
            return None
        except TypeError as error:
            self.problems.append(f"{where}: {error}")
            return None
        input_dimension, output_dimension = weight_dimensions(module)
        expected = (outputs, inputs)
        if input_dimension == 0:
            expected = (inputs, outputs)
        # a quantized or otherwise replaced module says one size and holds another
        shape = expected if isinstance(module, Emptied) else tuple(module.get_parameter("weight").shape)
        if shape != expected:
            self.problems.append(f"{where}.weight is {shape}, expected {expected}")
            return None
        return _Projection(
            path=path,
            inputs=inputs,
            outputs=outputs,
            biased=is_biased(module),
            input_dimension=input_dimension,
            output_dimension=output_dimension,
        )

    def _attribute(self, path: str) -> int | None:
        where = self.site.inside(path)
        try:
            owner, attribute = owner_of(self.site.layer, path)
            value = getattr(owner, attribute)
        except AttributeError:
            self.problems.append(f"{where}: no such attribute")
            return None
        if not isinstance(value, int) or value < 0:
            self.problems.append(f"{where} is {value!r}, expected a number")
            return None
        return value


def _by_query(groups: int, width_of_group: int, head_dim: int, query: _Projection) -> _Layout:
    """The layout whose units are single query heads: only the query's rows and the consumer's columns go."""
    heads = width_of_group // head_dim
    return _Layout(
        unit="query",
        units=groups * heads,
        groups=groups,
        width=head_dim,
        heads=1,
        producers=[query],
        rows=[(head_dim,)],
        amounts={
            "heads": Amount(groups),
            "units": Amount(0, groups),
            "features": Amount(groups * head_dim),
            "head_dim": Amount(0, head_dim),
            "group": Amount(1),
        },
    )
