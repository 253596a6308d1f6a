"""Guess the blocks of a layer from its projections, by name, shape and order. `proving` tells which guess is right."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from torch import nn

from hfprune.structure.discovery.names import (
    AttentionRole,
    role_of,
    says_fused,
    says_head_count,
    says_head_width,
    says_hidden_width,
    says_key_value,
    says_no_units,
)
from hfprune.structure.specs import BlockSpec, Quantity

#: The names that proposed blocks have in their layer; entries, and so plans and records, hold them.
ATTENTION = "attention"
CROSS_ATTENTION = "cross_attention"
FEED_FORWARD = "ffn"

#: `BlockSpec.fused` and `BlockSpec.interleaved` of separate projections, and of one of query, key and value: the three
#: parts stand behind each other, or head by head. No shape tells these two apart.
_SEPARATE_LAYOUTS = ((1, 1),)
_FUSED_LAYOUTS = ((3, 1), (1, 3))
#: The most attributes that are tried as the width of a head, and the most specs of one block.
_MOST_WIDTHS = 3
_MOST_SPECS = 16
#: The most projections that lead up in a feed-forward: a gate and what it multiplies.
_MOST_UP = 2
#: Projections of the smallest layer with attention and a feed-forward: query, key, value, output, up and down; or with
#: the first three in one.
_LEAST_SEPARATE = 6
_LEAST_FUSED = 4


@dataclass(frozen=True, kw_only=True)
class Projection:
    """A projection of a layer, as it ran.

    Attributes:
        path: Its path from the layer.
        inputs: Input features.
        outputs: Output features.
        whole: Whether it read as many rows as the layer has tokens.
    """

    path: str
    inputs: int
    outputs: int
    whole: bool


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A guess at a block of a layer.

    Attributes:
        name: Name of the block in its layer.
        specs: Possible entries, the likeliest first; none if something is missing.
        missing: A sentence on what is missing; empty if nothing is.
    """

    name: str
    specs: tuple[BlockSpec, ...]
    missing: str = ""

    @property
    def projections(self) -> tuple[str, ...]:
        """Paths of the block's projections, producers first; none if something is missing."""
        if not self.specs:
            return ()
        # all specs of a proposal have the same projections
        spec = self.specs[0]
        return (*spec.producers, spec.consumer)


@dataclass(frozen=True, kw_only=True)
class _Sublayer:
    """The projections of a block.

    Attributes:
        producers: The projections that make its units.
        consumer: The projection that reads them.
    """

    producers: tuple[Projection, ...]
    consumer: Projection

    @property
    def producer_paths(self) -> tuple[str, ...]:
        return tuple(producer.path for producer in self.producers)

    @property
    def paths(self) -> tuple[str, ...]:
        return (*self.producer_paths, self.consumer.path)


def has_whole_layer(module: nn.Module, projections: Sequence[str]) -> bool:
    """Whether a module looks like a layer: projections of an attention, and at least two others.

    Args:
        module: The module; it may be a list.
        projections: Paths of its projections.

    Returns:
        True for a module to look for blocks in, False for a part of one.
    """
    if isinstance(module, nn.ModuleList):
        return False
    if any(map(role_of, projections)):
        return len(projections) >= _LEAST_SEPARATE
    return any(map(says_fused, projections)) and len(projections) >= _LEAST_FUSED


def propose(layer: nn.Module, projections: Sequence[Projection]) -> list[Proposal]:
    """The blocks that a layer may have.

    Args:
        layer: The layer.
        projections: Its projections, in the order in which they run.

    Returns:
        Attention first, then cross-attention, then feed-forwards.

    Examples:
        >>> layer = nn.ModuleDict({"up": nn.Linear(4, 8), "down": nn.Linear(8, 4)})
        >>> up = Projection(path="up", inputs=4, outputs=8, whole=True)
        >>> down = Projection(path="down", inputs=8, outputs=4, whole=True)
        >>> [(proposal.name, proposal.projections) for proposal in propose(layer, [up, down])]
        [('ffn', ('up', 'down'))]
    """
    proposals: list[Proposal] = []
    for index, sublayer in enumerate(_attentions(projections)):
        proposals.append(_attention(layer, _name_of_attention(index), sublayer))
    in_attention: set[str] = set()
    for proposal in proposals:
        in_attention.update(proposal.projections)
    others = []
    for projection in projections:
        # a query, key or value whose consumer was not found must not start a feed-forward
        named_for_attention = role_of(projection.path) is not None or says_fused(projection.path)
        if not named_for_attention and projection.path not in in_attention:
            others.append(projection)
    for index, sublayer in enumerate(_feed_forwards(others)):
        proposals.append(_feed_forward(layer, _name_of_feed_forward(index), sublayer))
    return proposals


def _name_of_attention(index: int) -> str:
    # a decoder layer attends to its own tokens first, and then to those of the encoder
    if index == 0:
        return ATTENTION
    if index == 1:
        return CROSS_ATTENTION
    return f"{ATTENTION}_{index + 1}"


def _name_of_feed_forward(index: int) -> str:
    if index == 0:
        return FEED_FORWARD
    return f"{FEED_FORWARD}_{index + 1}"


def _attentions(projections: Sequence[Projection]) -> Iterator[_Sublayer]:
    """Every attention of a layer: query, key and value in one module, or in one projection, and what reads them.

    Args:
        projections: All projections of the layer, in the order in which they run.

    Yields:
        Producers and consumer of an attention.
    """
    for group in _groups_by_role(projections).values():
        if "all" in group:
            fused = group["all"]
            producers: tuple[Projection, ...] = (fused,)
            # the parts of query, key and value are equally wide
            columns = fused.outputs // 3
        elif group.keys() == {"query", "key", "value"}:
            producers = (group["query"], group["key"], group["value"])
            columns = group["query"].outputs
        else:
            continue
        consumer = _consumer(projections, producers, columns)
        if consumer is not None:
            yield _Sublayer(producers=producers, consumer=consumer)


def _groups_by_role(projections: Sequence[Projection]) -> dict[str, dict[AttentionRole, Projection]]:
    """The projections whose names say query, key or value, by the module around them; fused ones alone.

    Args:
        projections: The projections of a layer.

    Returns:
        By path of the module around them, or of the fused projection itself: the first projection of every role.
    """
    groups: dict[str, dict[AttentionRole, Projection]] = {}
    for projection in projections:
        named = role_of(projection.path)
        if named is not None:
            groups.setdefault(named.around, {}).setdefault(named.role, projection)
        elif says_fused(projection.path):
            groups.setdefault(projection.path, {})["all"] = projection
    return groups


def _consumer(projections: Sequence[Projection], producers: Sequence[Projection], columns: int) -> Projection | None:
    """The first projection behind all producers that reads as many features as the query makes."""
    last = max(map(projections.index, producers))
    for projection in projections[last + 1 :]:
        if projection.inputs == columns and projection.whole and role_of(projection.path) is None:
            return projection
    return None


def _feed_forwards(projections: Sequence[Projection]) -> Iterator[_Sublayer]:
    """Every feed-forward of a layer: one or two projections up, and right behind them one down.

    Args:
        projections: The projections outside attention, in the order in which they run.

    Yields:
        Producers and consumer of a feed-forward.
    """
    start = 0
    for index, down in enumerate(projections):
        if not down.whole:
            continue
        up = _projections_up(projections[start:index], down)
        if up:
            yield _Sublayer(producers=tuple(up), consumer=down)
            # a projection belongs to one feed-forward only
            start = index + 1


def _projections_up(before: Sequence[Projection], down: Projection) -> list[Projection]:
    """The projections right before a projection down that make what it reads.

    Args:
        before: The projections that ran before it.
        down: The projection down.

    Returns:
        One or two projections as wide as its input, or one of twice that width (gate and up in one); or none.
    """
    up: list[Projection] = []
    for projection in reversed(before):
        leads_up = projection.inputs == down.outputs and projection.whole
        if not leads_up or len(up) == _MOST_UP:
            break
        if projection.outputs == down.inputs:
            up.insert(0, projection)
            continue
        if projection.outputs == 2 * down.inputs and not up:
            up.append(projection)
        break
    return up


def _attention(layer: nn.Module, name: str, attention: _Sublayer) -> Proposal:
    """The specs that an attention may have: one for every width of a head, layout and choice of sizes."""
    columns = attention.consumer.inputs
    if len(attention.producers) == 1:
        # the query's part is as wide as the consumer, and the parts of key and value are as wide as that
        rows = [columns]
        layouts: tuple[tuple[int, int], ...] = _FUSED_LAYOUTS
    else:
        rows = [producer.outputs for producer in attention.producers]
        layouts = _SEPARATE_LAYOUTS
    numbers = _numbers(layer, attention.paths)
    specs = []
    for head_dim, (fused, interleaved) in product(_widths_of_heads(numbers, columns, rows), layouts):
        width = numbers[head_dim]
        others = {attribute: value for attribute, value in numbers.items() if attribute != head_dim}
        heads = columns // width
        all_sizes = _sizes(others, columns, heads=heads, units=min(rows) // width)
        for sizes, head_parameters in product(all_sizes, _parameters_of_heads(layer, attention.paths, heads)):
            spec = BlockSpec(
                producers=attention.producer_paths,
                consumer=attention.consumer.path,
                fused=fused,
                interleaved=interleaved,
                head_dim=head_dim,
                sizes=sizes,
                head_parameters=head_parameters,
            )
            specs.append(spec)
    missing = ""
    if not specs:
        listed = ", ".join(attention.producer_paths)
        missing = f"no attribute holds the width of one head of {listed} (numbers there: {numbers or 'none'})"
    return Proposal(name=name, specs=tuple(specs[:_MOST_SPECS]), missing=missing)


def _widths_of_heads(numbers: Mapping[str, int], columns: int, rows: Sequence[int]) -> list[str]:
    """Attributes that may hold the width of one head, the likeliest first.

    Args:
        numbers: The numbers that the modules around the projections hold, by attribute.
        columns: Input features of the consumer.
        rows: Output features of every producer.

    Returns:
        Only the attributes whose names say a width, if there are any among the likeliest.
    """
    values = set(numbers.values())

    def rank(attribute: str) -> tuple[bool, bool]:
        # a name that says it comes first, and then a value whose number of heads stands in an attribute as well
        heads = columns // numbers[attribute]
        return not says_head_width(attribute), heads not in values

    possible = []
    for attribute, value in numbers.items():
        says_otherwise = says_head_count(attribute) or says_hidden_width(attribute)
        if not says_otherwise and value <= columns and all(count % value == 0 for count in rows):
            possible.append(attribute)
    likeliest = sorted(possible, key=rank)[:_MOST_WIDTHS]
    return list(filter(says_head_width, likeliest)) or likeliest


def _feed_forward(layer: nn.Module, name: str, feed_forward: _Sublayer) -> Proposal:
    """The specs that a feed-forward may have: one for every choice of sizes."""
    columns = feed_forward.consumer.inputs
    fused = 1
    if columns:
        # 2 where gate and up are stacked in one projection
        fused = feed_forward.producers[0].outputs // columns
    numbers = _numbers(layer, feed_forward.paths)
    specs = []
    for sizes in _sizes(numbers, columns):
        spec = BlockSpec(
            producers=feed_forward.producer_paths, consumer=feed_forward.consumer.path, fused=fused, sizes=sizes
        )
        specs.append(spec)
    return Proposal(name=name, specs=tuple(specs))


def _sizes(numbers: Mapping[str, int], features: int, *, heads: int = 0, units: int = 0) -> list[dict[str, Quantity]]:
    """The attributes that may have to follow the number of units, by their values and names.

    Args:
        numbers: The numbers that the modules around the projections hold, by attribute.
        features: Input features of the consumer.
        heads: Query heads; 0 for a feed-forward.
        units: Key/value heads; 0 for a feed-forward.

    Returns:
        Choices of `BlockSpec.sizes`, the likeliest first: the attributes whose names say it or leave it open; only
        those that say it; and these with the attributes that seem to be the width of the hidden states.
    """
    sure: dict[str, Quantity] = {}
    unsure: dict[str, Quantity] = {}
    hidden: dict[str, Quantity] = {}
    for attribute, value in numbers.items():
        quantity = _quantity(attribute, value, features, heads=heads, units=units)
        if quantity is None:
            continue
        # an attribute of the layer may equal the number by chance, one of a module around the projection hardly ever
        is_of_module = quantity == "features" and "." in attribute
        # a width of hidden states may equal a number of features or heads by chance
        if says_hidden_width(attribute):
            hidden[attribute] = quantity
        elif says_head_count(attribute) or is_of_module:
            sure[attribute] = quantity
        else:
            unsure[attribute] = quantity
    choices: list[dict[str, Quantity]] = []
    for choice in ({**sure, **unsure}, sure, {**sure, **hidden}):
        if choice not in choices:
            choices.append(choice)
    return choices


def _quantity(attribute: str, value: int, features: int, *, heads: int, units: int) -> Quantity | None:
    """What an attribute may count, by its value; None if it equals no size of the block.

    >>> _quantity("attn.num_heads", 8, features=64, heads=8, units=2)
    'heads'
    >>> _quantity("attn.num_key_value_heads", 8, features=64, heads=8, units=8)
    'units'
    """
    if heads and value == heads:
        # where every query head has a key/value head of its own only the name tells the two numbers apart
        if units == heads and says_key_value(attribute):
            return "units"
        return "heads"
    if heads and value == units:
        return "units"
    if value == features:
        return "features"
    return None


def _numbers(layer: nn.Module, paths: Sequence[str]) -> dict[str, int]:
    """The whole numbers that the modules around projections hold, without those whose names say something else.

    Args:
        layer: The layer.
        paths: Paths of the projections.

    Returns:
        The numbers by path of the attribute, from the layer.
    """
    owners: list[str] = []
    for path in paths:
        owners += _modules_around(path)
    numbers: dict[str, int] = {}
    for owner in dict.fromkeys(owners):
        for name, value in vars(layer.get_submodule(owner)).items():
            # isinstance would take flags, too: bool is a kind of int
            is_size = type(value) is int and value > 0
            is_private = name.startswith("_")
            if is_size and not is_private and not says_no_units(name):
                numbers[f"{owner}.{name}".lstrip(".")] = value
    return numbers


def _parameters_of_heads(layer: nn.Module, paths: Sequence[str], heads: int) -> list[tuple[str, ...]]:
    """The parameters around projections that may have one number for every query head.

    Args:
        layer: The layer.
        paths: Paths of the projections.
        heads: How many query heads there are.

    Returns:
        Choices of `BlockSpec.head_parameters`, the likeliest first: those with as many numbers, and none.
    """
    owners: list[str] = []
    for path in paths:
        owners += _modules_around(path)
    found: list[str] = []
    for owner in dict.fromkeys(owners):
        for name, parameter in layer.get_submodule(owner).named_parameters(recurse=False):
            # one of shape (1, heads, 1, 1) as well
            if heads in parameter.shape and parameter.numel() == heads:
                found.append(f"{owner}.{name}".lstrip("."))
    if not found:
        return [()]
    # a parameter may have as many numbers by chance
    return [tuple(found), ()]


def _modules_around(path: str) -> list[str]:
    """Paths of the modules around a projection, the nearest first; the layer only where nothing is between.

    >>> _modules_around("attention.self.query"), _modules_around("query")
    (['attention.self', 'attention'], [''])
    """
    modules = []
    around = path.rpartition(".")[0]
    while around:
        modules.append(around)
        around = around.rpartition(".")[0]
    return modules or [""]
