"""Guess the blocks of a layer from its projections, by name, shape and order. `proving` tells which guess is right."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, NamedTuple, TypeAlias

from torch import nn

from hfprune.structure.specs import BlockSpec, Quantity

#: The names that proposed blocks have in their layer; entries, and so plans and records, hold them.
ATTENTION = "attention"
CROSS_ATTENTION = "cross_attention"
FEED_FORWARD = "ffn"

#: What a projection of attention makes; `all` is one projection that makes the three of them.
_Role: TypeAlias = Literal["query", "key", "value", "all"]
_SEPARATE: tuple[_Role, ...] = ("query", "key", "value")
_ROLE_OF_WORD: dict[str, _Role] = {
    **dict.fromkeys(("q", "qs", "query", "queries"), "query"),
    **dict.fromkeys(("k", "ks", "key", "keys"), "key"),
    **dict.fromkeys(("v", "vs", "value", "values"), "value"),
}
#: Words that say nothing of what a projection makes.
_FILLERS = {"proj", "projection", "project", "lin", "linear", "layer", "to", "w", "dense", "in", "fc", "self", "attn"}
#: Names of one projection of query, key and value together.
_FUSED = re.compile(r"(?i).*w?qkv.*|query_key_value|c_attn|in_proj")
#: The words of a name: `head_dim`, `headDim` and `QKVProj` all fall into their parts.
_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")
#: Words of attributes that never count units: numbers of layers, positions and tokens, and indices.
_NEVER_OF_UNITS = {
    "layer",
    "layers",
    "idx",
    "index",
    "id",
    "group",
    "groups",
    "position",
    "positions",
    "window",
    "vocab",
    "chunk",
}
#: Attributes that hold the width of the hidden states. It may equal a number of units by chance.
_HIDDEN_WIDTHS = {
    "hidden_size",
    "hidden_dim",
    "embed_dim",
    "embed_size",
    "d_model",
    "n_embd",
    "dim",
    "model_dim",
    "input_dim",
}
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
        """Paths of the block's projections, producers first."""
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


class _Named(NamedTuple):
    """What the name of a projection says.

    Attributes:
        role: What the projection makes.
        around: Path of the module that the name stands in.
    """

    role: _Role
    around: str


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
    if any(_role(path) is not None for path in projections):
        return len(projections) >= _LEAST_SEPARATE
    return any(map(_is_fused, projections)) and len(projections) >= _LEAST_FUSED


def propose(layer: nn.Module, projections: Sequence[Projection]) -> list[Proposal]:
    """The blocks that a layer may have.

    Args:
        layer: The layer.
        projections: Its projections, in the order in which they run.

    Returns:
        Attention first, then cross-attention, then feed-forwards.

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
        by_name = _role(projection.path) is not None or _is_fused(projection.path)
        if not by_name and projection.path not in in_attention:
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
    return f"{FEED_FORWARD}_{index + 1}" if index else FEED_FORWARD


def _attentions(projections: Sequence[Projection]) -> Iterator[_Sublayer]:
    """Every attention of a layer: query, key and value in one module, or in one projection, and what reads them.

    Args:
        projections: All projections of the layer, in the order in which they run.

    Yields:
        Producers and consumer of an attention.
    """
    for group in _groups_by_role(projections).values():
        is_fused = "all" in group
        roles: tuple[_Role, ...] = ("all",) if is_fused else _SEPARATE
        if not group.keys() >= set(roles):
            continue
        producers = tuple(group[role] for role in roles)
        # of one projection for all three, the query is a third
        columns = producers[0].outputs // 3 if is_fused else producers[0].outputs
        consumer = _consumer(projections, producers, columns)
        if consumer is not None:
            yield _Sublayer(producers=producers, consumer=consumer)


def _groups_by_role(projections: Sequence[Projection]) -> dict[str, dict[_Role, Projection]]:
    """The projections whose names say query, key or value, by the module around them; fused ones alone.

    Args:
        projections: The projections of a layer.

    Returns:
        By path of the module around them, or of the fused projection itself: the first projection of every role.
    """
    groups: dict[str, dict[_Role, Projection]] = {}
    for projection in projections:
        named = _role(projection.path)
        if named is not None:
            groups.setdefault(named.around, {}).setdefault(named.role, projection)
        elif _is_fused(projection.path):
            groups.setdefault(projection.path, {})["all"] = projection
    return groups


def _consumer(projections: Sequence[Projection], producers: Sequence[Projection], columns: int) -> Projection | None:
    """The first projection behind all producers that reads as many features as the query makes."""
    last = max(projections.index(producer) for producer in producers)
    for projection in projections[last + 1 :]:
        if projection.inputs == columns and projection.whole and _role(projection.path) is None:
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
    is_fused = len(attention.producers) == 1
    # every head has its rows in each producer; of a fused one the query's part is all that is known
    rows = [columns] if is_fused else [producer.outputs for producer in attention.producers]
    layouts = _FUSED_LAYOUTS if is_fused else _SEPARATE_LAYOUTS
    numbers = _numbers(layer, attention.paths)
    specs = []
    for head_dim, (fused, interleaved) in product(_widths_of_heads(numbers, columns, rows), layouts):
        width = numbers[head_dim]
        others = {attribute: value for attribute, value in numbers.items() if attribute != head_dim}
        for sizes in _sizes(others, columns, heads=columns // width, units=min(rows) // width):
            spec = BlockSpec(
                producers=attention.producer_paths,
                consumer=attention.consumer.path,
                fused=fused,
                interleaved=interleaved,
                head_dim=head_dim,
                sizes=sizes,
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
        is_counted = columns // numbers[attribute] in values
        return not _is_width(attribute), not is_counted

    possible = [attribute for attribute in numbers if _may_be_width(attribute, numbers[attribute], columns, rows)]
    likeliest = sorted(possible, key=rank)[:_MOST_WIDTHS]
    named = [attribute for attribute in likeliest if _is_width(attribute)]
    return named or likeliest


def _may_be_width(attribute: str, value: int, columns: int, rows: Sequence[int]) -> bool:
    """Whether an attribute may hold the width of one head, by its name and value."""
    says_otherwise = _counts_heads(attribute) or _last_name(attribute) in _HIDDEN_WIDTHS
    if says_otherwise or value > columns:
        return False
    return all(count % value == 0 for count in rows)


def _feed_forward(layer: nn.Module, name: str, feed_forward: _Sublayer) -> Proposal:
    """The specs that a feed-forward may have: one for every choice of sizes."""
    columns = feed_forward.consumer.inputs
    # 2 where gate and up are stacked in one projection
    fused = feed_forward.producers[0].outputs // columns if columns else 1
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
        # the layer itself may hold the same number for another reason, a module inside it hardly
        is_of_module = quantity == "features" and "." in attribute
        if _last_name(attribute) in _HIDDEN_WIDTHS:
            hidden[attribute] = quantity
        elif _counts_heads(attribute) or is_of_module:
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
    if heads and value in (heads, units):
        if value != heads:
            return "units"
        # where every query head has a key/value head of its own only the name tells the two numbers apart
        says_shared = not {"kv", "key", "value"}.isdisjoint(_words(_last_name(attribute)))
        return "units" if units == heads and says_shared else "heads"
    return "features" if value == features else None


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
            # bool is an int for isinstance
            is_size = type(value) is int and value > 0
            is_private = name.startswith("_")
            if is_size and not is_private and _NEVER_OF_UNITS.isdisjoint(_words(name)):
                numbers[f"{owner}.{name}".lstrip(".")] = value
    return numbers


def _modules_around(path: str) -> list[str]:
    """Paths of the modules around a projection, the nearest first; the layer only where nothing is between.

    >>> _modules_around("attention.self.query"), _modules_around("query")
    (['attention.self', 'attention'], [''])
    """
    parts = path.split(".")[:-1]
    modules = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return modules or [""]


def _is_width(attribute: str) -> bool:
    """Whether the name of an attribute says the width of one head.

    >>> _is_width("self.head_dim"), _is_width("self.attention_head_size"), _is_width("self.all_head_size")
    (True, True, False)
    """
    words = set(_words(_last_name(attribute)))
    of_many = words & {"all", "num", "n"}
    return bool(words & {"dim", "size", "width"} and words & {"head", "proj"}) and not of_many


def _counts_heads(attribute: str) -> bool:
    """Whether the name of an attribute says a number of heads.

    >>> _counts_heads("self.num_attention_heads"), _counts_heads("n_head"), _counts_heads("head_dim")
    (True, True, False)
    """
    words = set(_words(_last_name(attribute)))
    return "heads" in words or ("head" in words and bool(words & {"n", "num"}))


def _role(path: str) -> _Named | None:
    """What a projection makes, where its name says query, key or value and no more.

    >>> _role("attention.self.query")
    _Named(role='query', around='attention.self')
    >>> _role("attn.to_k.linear").role, _role("mlp.key_states_up")
    ('key', None)
    """
    parts = path.split(".")
    for index in reversed(range(len(parts))):
        words = [word for word in _words(parts[index]) if word not in _FILLERS]
        # a name of fillers only is explained by the module around it
        if not words:
            continue
        if len(words) > 1:
            return None
        # some write Wq
        role = _ROLE_OF_WORD.get(words[0].removeprefix("w"))
        return None if role is None else _Named(role=role, around=".".join(parts[:index]))
    return None


def _is_fused(path: str) -> bool:
    """Whether the name of a projection says query, key and value together.

    >>> _is_fused("attn.qkv_proj"), _is_fused("attn.c_proj")
    (True, False)
    """
    return _FUSED.fullmatch(_last_name(path)) is not None


def _last_name(path: str) -> str:
    return path.rpartition(".")[2]


def _words(name: str) -> list[str]:
    """The words of a name, in lower case.

    >>> _words("num_heads"), _words("numHeads"), _words("QKVProj")
    (['num', 'heads'], ['num', 'heads'], ['qkv', 'proj'])
    """
    return [word.lower() for word in _WORD.findall(name)]
