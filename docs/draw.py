"""Draw the pages of docs/ that follow from data: `python -m docs.draw`. A test fails when one is out of date."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from docs.commands import command_line, scripts
from docs.deployment import ROWS, deployment
from docs.embeddings import ROWS as EMBEDDING_ROWS
from docs.embeddings import embeddings
from docs.foreign import foreign_suites
from docs.tasks import tasks
from hfprune.publishing.record import schema
from hfprune.structure import BlockSpec, known_architectures
from hfprune.structure.specs import specs_of
from hfprune.structure.table import DECODERS, ENCODER_DECODERS

HEAD = """# Sparsity metadata

Four files of a pruned checkpoint describe the pruning:

- `config.json` has a field `pruning_config`: the shape table that loading needs, and a `summary` of six facts (base
  model, scorer, both sparsities, plan digest, version of hfprune). transformers reads the name of the weights from the
  field `transformers_weights`. Here this field holds a sentence instead: a stock class cannot read these weights. A
  stock class therefore stops with this sentence, also with `ignore_mismatched_sizes=True`. A pruned class ignores it.
- `pruning_plan.json` lists the units that stay in each block, in the numbering of the dense model, with a digest.
- `pruning_record.json` holds all other facts; the table below lists them. Its
  [JSON Schema](schema.md) is part of the package. hfprune checks records against it when
  it saves and when it loads them.
- `README.md` is the model card, drawn from plan and record. Its YAML head holds the facts that the Hub can search: base
  model, tags (`pruned`, `structured-pruning`, `hfprune`), data sets, metrics and results, and under `pruning` the
  digest and both sparsities.

A fifth file, `pruning_probe.json`, holds a fixed input of 2 × 8 tokens and the saved model's output for it. With this
output, and with the SHA-256 of every file in the record, `hfprune verify` tests whether a checkpoint computes the same
as its author's model.

`format_version` grows when a present reader would misread a file. A reader that finds a newer version asks for an
upgrade. Fields that are not in the schema are refused. Nothing in a record is ever executed, and a card shows the text
of a record as plain text, never as markup.

## Fields of pruning_record.json

| field | type | meaning |
|---|---|---|
"""


def metadata() -> str:
    """docs/reference/metadata.md, from the schema."""
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


ARCHITECTURES = """# Model types

Look for your model type in the first column of the table; it is the `model_type` in the model's `config.json`. A type
that is not there may still work: see [By proof](#by-proof).

The table is that of `hfprune/structure/table/`. For each type, tests build small random
models with the heads that transformers has for it. The tests gate units, remove them, save and load again, and demand
equal outputs: with sdpa and eager attention, in float32 and bfloat16, with another width in every layer. Other tests
score, plan, prune and repair each type.

- *attention*, *feed-forward*: the units of these blocks. Where query heads share key/value heads, an attention unit is
  a key/value head with its query heads. For types with *or query heads* it can also be one query head, with
  `attention_unit="query"`; every group then keeps equally many.
- *stock*: the units whose number the stock config can state, if it is the same in all layers. All other shapes load as
  `pruned_<type>`.
- *may go whole*: the blocks that `min_units=0` may empty. A whole layer is removed by emptying all its blocks. A
  decoder layer without attention keeps one number for each token in the cache, because caches take the length of a text
  from their layers. With `attention_unit="query"` every group keeps a query head.
- *repair*: the target of reconstruction. It is the residual stream, or the consumer's own output where that is
  normalised or scaled before it joins the stream.
- *generate*: *checked* means that the model generates the same tokens before saving and after loading, with dynamic and
  static caches and without a cache (Falcon without a static cache, which its own position biases do not fit).

| model type | attention | feed-forward | stock | may go whole | repair | generate | notes |
|---|---|---|---|---|---|---|---|
"""
GENERATE = {*DECODERS, *ENCODER_DECODERS}


def architectures() -> str:
    """docs/reference/model-types.md, from the table."""
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

For a model type that is not in the table, hfprune proposes blocks from the structure of a layer. It proves them on a
small random model of the same class and config: gating units must give the same outputs as removing them. Attention
then keeps at least one head. A block whose proof fails is left out, with a warning that shows the findings and the
entry to write; `PruningConfig(all_blocks=True)` refuses the model instead. If no block can be proven, hfprune refuses
the model. `hfprune inspect` says whether a model is supported by the table or by proof.

A model type of your own is proven in the same way, if its classes are registered with the Auto classes. Import its
module before you load a checkpoint. `hfprune.load` needs nothing else. The Auto classes know `pruned_<type>` after such
a model was proven or loaded in the process, or with `trust_remote_code=True`.

Discovery was tried with tiny models of {tried} model types of transformers outside the table: {found} are proven,
{refused} are refused. With another width in every layer, the outputs of gated and pruned models differ by at most
{worst:.0e} of the change that the gates make. `python -m tests.support.by_proof` writes the source of this section,
[by_proof.json](by_proof.json).

| model type | attention | feed-forward | notes |
|---|---|---|---|
"""


def by_proof() -> str:
    """The section on discovery, from docs/reference/by_proof.json."""
    tried = json.loads((Path(__file__).parent / "reference" / "by_proof.json").read_text(encoding="utf-8"))
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
PAGES: dict[str, Callable[[], str]] = {
    "reference/metadata.md": metadata,
    "reference/model-types.md": architectures,
    "reference/command-line.md": command_line,
    "reference/scripts.md": scripts,
    "results/foreign-suites.md": foreign_suites,
    "results/tasks.md": tasks,
}
# a page of figures is there when its benchmark has run
if ROWS.is_file():
    PAGES["results/deployment.md"] = deployment
if EMBEDDING_ROWS.is_file():
    PAGES["results/embeddings.md"] = embeddings


def main() -> None:
    """Write the pages."""
    for name, draw in PAGES.items():
        (Path(__file__).parent / name).write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
