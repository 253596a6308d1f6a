"""Draw the pages of docs/ that follow from data: `python docs/draw.py`. A test fails when one is out of date."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hfprune.record import schema
from hfprune.structure import BlockSpec, known_architectures

HEAD = """# Sparsity metadata

A pruned checkpoint says what was done to it in four places:

- `config.json`, under `pruning_config`: the shape table that loading needs, and a `summary` of six facts (base model,
  scorer, both sparsities, plan digest, version of hfprune).
- `pruning_plan.json`: the units that stay, by block, in the numbering of the dense model, with a digest.
- `pruning_record.json`: all the rest, below. Its [JSON Schema](../hfprune/record.schema.json) is part of the package;
  records are checked against it when they are saved and when they are loaded.
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

The model types of the [table](../hfprune/structure/table.py). For each one tests build small random models with the
heads that transformers has for it, gate units, remove them, save and load again: equal outputs with sdpa and eager,
in float32 and bfloat16, with another width in every layer; decoders generate the same tokens with dynamic and static
caches.

- *attention*: what a unit is. Where key/value heads are shared a unit is a key/value head with its query heads.
- *stock*: what the stock config can say, if all layers have the same; the rest loads as `pruned_<type>`.
- *may go whole*: blocks that `min_units=0` may empty.
- *repair*: what reconstruction aims at: the residual stream, or the consumer's own output where that is normalised or
  scaled before it joins the stream.

| model type | attention | feed-forward | stock | may go whole | repair |
|---|---|---|---|---|---|
"""


def architectures() -> str:
    """docs/architectures.md, from the table."""
    lines = []
    for name, entry in sorted(known_architectures().items()):
        attention, ffn = entry.blocks.get("attention"), entry.blocks["ffn"]
        heads = "none" if attention is None else "heads"
        stock = [kind for kind, spec in (("heads", attention), ("neurons", ffn)) if spec and spec.config_fields]
        whole = [
            kind for kind, spec in (("attention", attention), ("feed-forward", ffn)) if spec and _may_go(spec, name)
        ]
        target = "consumer" if ffn.residual_sum is None else "residual stream"
        lines.append(f"| {name} | {heads} | neurons | {_list(stock)} | {_list(whole)} | {target} |")
    return ARCHITECTURES + "\n".join(lines) + "\n"


def _may_go(spec: BlockSpec, name: str) -> bool:
    return spec.bypass is not None or (spec.head_dim is None and name != "gpt2")  # its Conv1D takes no empty input


def _list(words: list[str]) -> str:
    return ", ".join(words) or "none"


#: What draws each page.
PAGES: dict[str, Callable[[], str]] = {"metadata.md": metadata, "architectures.md": architectures}


def main() -> None:
    """Write the pages."""
    for name, draw in PAGES.items():
        (Path(__file__).parent / name).write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
