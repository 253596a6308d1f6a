"""Draw the pages of docs/ that follow from data: `python docs/draw.py`. A test fails when one is out of date."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from hfprune.publishing.record import schema
from hfprune.structure import BlockSpec, known_architectures
from hfprune.structure.specs import specs_of
from hfprune.structure.table import DECODERS, ENCODER_DECODERS

HEAD = """# Sparsity metadata

A pruned checkpoint says what was done to it in four places:

- `config.json`, under `pruning_config`: the shape table that loading needs, and a `summary` of six facts (base model,
  scorer, both sparsities, plan digest, version of hfprune). In place of the name of the weights, `transformers_weights`
  says that a stock class cannot read them, so such a class stops there, also with `ignore_mismatched_sizes=True`; a
  pruned class passes over it.
- `pruning_plan.json`: the units that stay, by block, in the numbering of the dense model, with a digest.
- `pruning_record.json`: all the rest, below. Its [JSON Schema](../hfprune/publishing/record.schema.json) is part of
  the package; records are checked against it when they are saved and when they are loaded.
- `README.md`, the card, drawn from plan and record. Its YAML head holds what the Hub can search: base model, tags
  (`pruned`, `structured-pruning`, `hfprune`), data sets, metrics and results, and under `pruning` the digest and both
  sparsities.

Beside them `pruning_probe.json` holds a fixed input of 2 × 8 tokens and what the saved model gave for it: with it, and
with the SHA-256 of every file in the record, `hfprune verify` tells whether a checkpoint computes what its author saw.

`format_version` grows when a reader of today would misread a file; a reader that finds a newer one says that it must be
upgraded. Fields that are not in the schema are refused. Nothing in a record is ever executed, and a card quotes what it
says.

## Fields of pruning_record.json

| field | type | meaning |
|---|---|---|
"""


def metadata() -> str:
    """docs/metadata.md, from the schema."""
    return HEAD + "\n".join(_rows(schema()["properties"], "")) + "\n"


def _rows(properties: dict[str, Any], prefix: str) -> Iterator[str]:
    for name, field in properties.items():
        shape = _resolved(field)
        kind = shape.get("type") or ("one of " + ", ".join(shape["enum"]) if "enum" in shape else "")
        kind = (
            " or ".join(kind) if isinstance(kind, list) else kind or ("1" if "const" in shape else "number or mapping")
        )
        yield f"| `{prefix}{name}` | {kind} | {field.get('description') or shape.get('description', '')} |"
        yield from _rows(shape.get("properties", {}), f"{prefix}{name}.")
        for inner, mark in ((shape.get("additionalProperties"), ".*"), (shape.get("items"), "[]")):
            if isinstance(inner, dict):
                yield from _rows(_resolved(inner).get("properties", {}), f"{prefix}{name}{mark}.")


def _resolved(field: dict[str, Any]) -> dict[str, Any]:
    reference = field.get("$ref", "").rpartition("/")[2]
    found: dict[str, Any] = schema()["$defs"][reference] if reference else field
    return found


ARCHITECTURES = """# Architectures

The model types of the [table](../hfprune/structure/table). For each one tests build small random models with the heads
that transformers has for it, gate units, remove them, save and load again: equal outputs with sdpa and eager,
in float32 and bfloat16, with another width in every layer. They score, plan, prune and repair each one.

- *attention*, *feed-forward*: what a unit is. Where key/value heads are shared it is a key/value head with its query
  heads; for types with *or query heads* also, by `attention_unit="query"`, a query head, as many of every group.
- *stock*: what the stock config can say, if all layers have the same; the rest loads as `pruned_<type>`.
- *may go whole*: blocks that `min_units=0` may empty; a whole layer goes as all of its blocks. Without its attention a
  layer of a decoder keeps one number a token in the cache, as caches take the length of a text from their layers. With
  `attention_unit="query"` every group keeps a query head.
- *repair*: what reconstruction aims at: the residual stream, or the consumer's own output where that is normalised or
  scaled before it joins the stream.
- *generate*: checked with dynamic and static caches, and without: the same tokens before saving and after loading
  (Falcon: no static cache, which its own position biases do not fit).

| model type | attention | feed-forward | stock | may go whole | repair | generate | notes |
|---|---|---|---|---|---|---|---|
"""
GENERATE = {*DECODERS, *ENCODER_DECODERS}


def architectures() -> str:
    """docs/architectures.md, from the table."""
    lines = []
    for name, entry in sorted(known_architectures().items()):
        found = [
            (stack.partition(".")[0], block, specs[0])
            for stack, layer in entry.stacks.items()
            for block, specs in specs_of(layer).items()
        ]
        units = [_unit(kind, {block: spec for _, block, spec in found if spec.kind == kind}) for kind in _UNITS]
        stock = dict.fromkeys(_UNITS[spec.kind] for *_, spec in found if spec.config_fields)
        kept = {(stack, block) for stack, block, spec in found if not _may_go(spec, name)}
        whole = {
            _NAMES[block] + (f" of the {stack}" if any(block == other for _, other in kept) else "")
            for stack, block, _ in found
            if (stack, block) not in kept
        }
        target = "consumer" if any(spec.residual_sum is None for *_, spec in found) else "residual stream"
        cells = [*units, _list(stock), _list(sorted(whole)), target, "checked" if name in GENERATE else "", entry.note]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return ARCHITECTURES + "\n".join(lines) + "\n" + by_proof()


BY_PROOF = """
## By proof

For a model type that is not in the table hfprune proposes blocks from the structure of a layer, and proves them on a
small random model of the same class and config: gating units must equal removing them. `hfprune inspect` says whether
support is by table or by proof. Attention then keeps at least one head. What cannot be proven is refused, with what was
found and the entry to write. A model type of your own takes the same way, if its classes are registered with the Auto
classes; import its module before a checkpoint is loaded. With `hfprune.load` nothing else is needed; the Auto classes
know `pruned_<type>` once such a model was found or loaded in the process, or with `trust_remote_code=True`.

Tried with tiny models of {tried} model types of transformers outside the table: {found} are found, {refused} are
refused. With other widths in every layer outputs of gated and pruned models are at most {worst:.0e} apart, relative to
what the gates change. `python -m tests.support.by_proof` writes [by_proof.json](by_proof.json), its source.

| model type | attention | feed-forward | notes |
|---|---|---|---|
"""


def by_proof() -> str:
    """The section on discovery, from docs/by_proof.json."""
    tried = json.loads((Path(__file__).parent / "by_proof.json").read_text(encoding="utf-8"))
    found = {name: value for name, value in tried.items() if not value["refused"]}
    lines = [
        f"| {name} | {' | '.join(_UNITS[kind] if kind in value['kinds'] else 'none' for kind in _UNITS)} | "
        f"{value['note']} |"
        for name, value in found.items()
    ]
    head = BY_PROOF.format(
        tried=len(tried),
        found=len(found),
        refused=len(tried) - len(found),
        worst=max(value["difference"] / value["effect"] for value in found.values()),
    )
    return head + "\n".join(lines) + f"\n\nRefused: {', '.join(name for name in tried if name not in found)}.\n"


_UNITS = {"attention": "heads", "ffn": "neurons"}
_NAMES = {"attention": "attention", "cross_attention": "cross-attention", "ffn": "feed-forward"}


def _unit(kind: str, blocks: dict[str, BlockSpec]) -> str:
    if not blocks:
        return "none"
    also = ", also of cross-attention" if "cross_attention" in blocks else ""
    return _UNITS[kind] + (" or query heads" if any(spec.grouped for spec in blocks.values()) else also)


def _may_go(spec: BlockSpec, name: str) -> bool:
    return spec.bypass is not None or (spec.kind == "ffn" and name != "gpt2")  # its Conv1D takes no empty input


def _list(words: Iterable[str]) -> str:
    return ", ".join(words) or "none"


#: What draws each page.
PAGES: dict[str, Callable[[], str]] = {"metadata.md": metadata, "architectures.md": architectures}


def main() -> None:
    """Write the pages."""
    for name, draw in PAGES.items():
        (Path(__file__).parent / name).write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
