"""Guess the blocks of a layer from its projections, by name, shape and order. `proving` tells which guess is right."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from torch import nn

from hfprune.structure.specs import BlockSpec, Quantity

_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")
_ROLES = {
    **dict.fromkeys(("q", "qs", "query", "queries"), "query"),
    **dict.fromkeys(("k", "ks", "key", "keys"), "key"),
    **dict.fromkeys(("v", "vs", "value", "values"), "value"),
}
#: Words that say nothing of what a projection makes.
_FILLERS = {"proj", "projection", "project", "lin", "linear", "layer", "to", "w", "dense", "in", "fc", "self", "attn"}
_FUSED = re.compile(r"(?i).*w?qkv.*|query_key_value|c_attn|in_proj")
#: Attributes that never count units: the width of the hidden states, numbers of layers and positions.
_OTHER = {
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
_HIDDEN = {"hidden_size", "hidden_dim", "embed_dim", "embed_size", "d_model", "n_embd", "dim", "model_dim", "input_dim"}
_MOST = 16


@dataclass(frozen=True, kw_only=True)
class Projection:
    """A projection of a layer, as it ran.

    Attributes:
        path: From the layer.
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
    """What a block may be.

    Attributes:
        name: Of the block in its layer.
        specs: Possible entries, the likeliest first; none if something is missing.
        missing: What that is.
    """

    name: str
    specs: tuple[BlockSpec, ...]
    missing: str = ""

    @property
    def projections(self) -> tuple[str, ...]:
        """Paths of the projections that it takes."""
        return (*self.specs[0].producers, self.specs[0].consumer) if self.specs else ()


def has_whole_layer(module: nn.Module, projections: Sequence[str]) -> bool:
    """Whether a module looks like a layer: projections of an attention, and at least two others.

    Args:
        module: The module; it may be a list.
        projections: Paths of its projections.

    Returns:
        True for something to look for blocks in, False for a part of it.
    """
    roles = sum(_role(path) is not None for path in projections)
    fused = any(map(_is_fused, projections))
    return not isinstance(module, nn.ModuleList) and (
        len(projections) >= 6 if roles else fused and len(projections) > 3
    )


def propose(layer: nn.Module, projections: Sequence[Projection]) -> list[Proposal]:
    """The blocks that a layer may have.

    Args:
        layer: The layer.
        projections: Its projections, in the order in which they run.

    Returns:
        Attention first, then what reads it, then the feed-forward.
    """
    found = []
    for index, (producers, consumer) in enumerate(_attentions(projections)):
        name = ("attention", "cross_attention")[index] if index < 2 else f"attention_{index + 1}"
        found.append(_attention(layer, name, producers, consumer))
    taken = {path for proposal in found for path in proposal.projections}
    rest = [p for p in projections if p.path not in taken and _role(p.path) is None and not _is_fused(p.path)]
    for index, (producers, consumer) in enumerate(_feed_forwards(rest)):
        found.append(_feed_forward(layer, f"ffn_{index + 1}" if index else "ffn", producers, consumer))
    return found


def _attentions(projections: Sequence[Projection]) -> Iterator[tuple[tuple[Projection, ...], Projection]]:
    """Producers and consumer of every attention: projections of query, key and value in one module, or one of all."""
    groups: dict[str, dict[str, Projection]] = {}
    for projection in projections:
        found = _role(projection.path)
        if found is not None:
            role, parent = found
            groups.setdefault(parent, {}).setdefault(role, projection)
        elif _is_fused(projection.path):
            groups.setdefault(projection.path, {})["all"] = projection
    order = {projection.path: index for index, projection in enumerate(projections)}
    for group in groups.values():
        names = ("all",) if "all" in group else ("query", "key", "value")
        if not set(names) <= set(group):
            continue
        producers = tuple(group[name] for name in names)
        columns = producers[0].outputs // (3 if "all" in group else 1)
        behind = projections[max(order[producer.path] for producer in producers) + 1 :]
        consumer = next((p for p in behind if p.inputs == columns and p.whole and _role(p.path) is None), None)
        if consumer is not None:
            yield producers, consumer


def _feed_forwards(projections: Sequence[Projection]) -> Iterator[tuple[tuple[Projection, ...], Projection]]:
    """One or two projections up, one right behind them down to where they came from."""
    start = 0
    for index, down in enumerate(projections):
        up = list[Projection]()
        for before in reversed(projections[start:index]):
            wide = (down.inputs, 2 * down.inputs) if not up else (down.inputs,)
            if len(up) == 2 or before.inputs != down.outputs or before.outputs not in wide or not before.whole:
                break
            up.insert(0, before)
            if before.outputs != down.inputs:
                break
        if up and down.whole:
            yield tuple(up), down
            start = index + 1


def _attention(layer: nn.Module, name: str, producers: tuple[Projection, ...], consumer: Projection) -> Proposal:
    columns = consumer.inputs
    paths = tuple(producer.path for producer in producers)
    layouts = ((3, 1), (1, 3)) if len(producers) == 1 else ((1, 1),)
    numbers = _numbers(layer, (*paths, consumer.path))
    values = set(numbers.values())
    rows = [columns] if len(producers) == 1 else [producer.outputs for producer in producers]
    widths = {
        attribute: value
        for attribute, value in numbers.items()
        if value <= columns
        and all(row % value == 0 for row in rows)
        and not (_counts(attribute) or attribute.rpartition(".")[2] in _HIDDEN)
    }
    ranked = sorted(widths, key=lambda a: (not _is_width(a), columns // widths[a] not in values))[:3]
    named = [attribute for attribute in ranked if _is_width(attribute)]
    specs = []
    for head_dim, (fused, interleaved) in product(named or ranked, layouts):
        heads, units = columns // widths[head_dim], min(rows) // widths[head_dim]
        for sizes in _sizes({a: v for a, v in numbers.items() if a != head_dim}, heads, units, columns):
            spec = BlockSpec(producers=paths, consumer=consumer.path, head_dim=head_dim, sizes=sizes)
            specs.append(replace(spec, fused=fused, interleaved=interleaved))
    if not specs:
        missing = f"no attribute holds the width of one head of {', '.join(paths)} (numbers there: {numbers or 'none'})"
        return Proposal(name=name, specs=(), missing=missing)
    return Proposal(name=name, specs=tuple(specs[:_MOST]))


def _feed_forward(layer: nn.Module, name: str, producers: tuple[Projection, ...], consumer: Projection) -> Proposal:
    paths = tuple(producer.path for producer in producers)
    fused = producers[0].outputs // consumer.inputs if consumer.inputs else 1
    numbers = _numbers(layer, (*paths, consumer.path))
    return Proposal(
        name=name,
        specs=tuple(
            BlockSpec(producers=paths, consumer=consumer.path, fused=fused, sizes=sizes)
            for sizes in _sizes(numbers, 0, 0, consumer.inputs)
        ),
    )


def _sizes(numbers: Mapping[str, int], heads: int, units: int, features: int) -> list[dict[str, Quantity]]:
    """Which attributes follow the units: those with their value whose names say so, or could; without; with all."""
    sure: dict[str, Quantity] = {}
    unsure: dict[str, Quantity] = {}
    hidden: dict[str, Quantity] = {}
    for attribute, value in numbers.items():
        name = attribute.rpartition(".")[2]
        quantity: Quantity
        if heads and value in (heads, units):
            shared = not {"kv", "key", "value"}.isdisjoint(_words(name))
            quantity = "units" if value != heads or (value == units and shared) else "heads"
        elif value == features:
            quantity = "features"
        else:
            continue
        known = _counts(attribute) or (quantity == "features" and "." in attribute)
        (hidden if name in _HIDDEN else sure if known else unsure)[attribute] = quantity
    variants = [{**sure, **unsure}, sure, {**sure, **hidden}]
    return [sizes for index, sizes in enumerate(variants) if sizes not in variants[:index]]


def _numbers(layer: nn.Module, paths: Sequence[str]) -> dict[str, int]:
    """Whole numbers that the modules around projections hold, by path, but for names that say something else."""
    owners = list(dict.fromkeys(parent for path in paths for parent in _parents(path)))
    found = {}
    for owner in owners:
        for name, value in vars(layer.get_submodule(owner)).items():
            if type(value) is int and value > 0 and not name.startswith("_") and _OTHER.isdisjoint(_words(name)):
                found[f"{owner}.{name}".lstrip(".")] = value
    return found


def _parents(path: str) -> list[str]:
    """Modules around a projection, the nearest first; the layer only where nothing is between."""
    parts = path.split(".")[:-1]
    return [".".join(parts[:length]) for length in range(len(parts), 0, -1)] or [""]


def _is_width(attribute: str) -> bool:
    words = set(_words(attribute.rpartition(".")[2]))
    return bool(words & {"dim", "size", "width"} and words & {"head", "proj"}) and not words & {"all", "num", "n"}


def _counts(attribute: str) -> bool:
    words = set(_words(attribute.rpartition(".")[2]))
    return "heads" in words or ("head" in words and bool(words & {"n", "num"}))


def _role(path: str) -> tuple[str, str] | None:
    """`("query", path of the module around it)` and so on, where the name of a projection says that and no more."""
    parts = path.split(".")
    for index in range(len(parts) - 1, -1, -1):
        words = [word for word in _words(parts[index]) if word not in _FILLERS]
        if words:
            role = _ROLES.get(words[0].removeprefix("w")) if len(words) == 1 else None  # Wq
            return None if role is None else (role, ".".join(parts[:index]))
    return None


def _is_fused(path: str) -> bool:
    return _FUSED.fullmatch(path.rpartition(".")[2]) is not None


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name)]
