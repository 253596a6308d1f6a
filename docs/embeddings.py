"""The page of what pruning does to sentence embeddings, from the rows of `benchmarks/embeddings.py`."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROWS = Path(__file__).parent / "results" / "embeddings.json"
#: The columns, as the page calls them.
_FIGURES = {
    "cosine": "cosine",
    "cosine_5": "its 5 %",
    "spearman": "Spearman",
    "ndcg_10": "nDCG@10",
    "recall_10": "recall@10",
}
#: The stages in order, as the page calls them.
_STAGES = {
    "pruned": "pruned and repaired",
    "recovered": "after {steps} steps of distillation",
    "vocabulary": "and with the tokens of the training texts alone",
}

HEAD = """# Sentence embeddings

How near the embeddings of a pruned MiniLM stay to the dense ones, and how many bytes are saved. Read this page to
choose how much to remove from an embedding model.

- **Model.** all-MiniLM-L6-v2, with its mean pooling and normalisation, {dense} MB in float32.
- **Data.** Texts without labels: sentences of movie reviews and questions (TREC). Pruning looks at as many of them as
  the column *samples* says.{training}
- **Measures.** Of 500 held-out texts of each kind: the cosine between the embeddings of a text by both models, its mean
  and the value that 5 % of the texts stay below; Spearman's correlation between the similarities of all pairs of texts;
  nDCG@10 and recall@10 of the dense model's nearest neighbours.
- **Removed** are per cent of the multiply-adds (MACs) of heads and neurons, for 64 tokens.
- **Seeds.** The means, and half the range, over as many seeds as the last column says. A seed draws the split of the
  data, the calibration texts and the batches. [Every row](embeddings.json) is in a file.
- **Device.** CPU, float32.

```bash
python benchmarks/embeddings.py --bf16 --vocabulary
```

"""
TAIL = """
## Next

- [Prune a sentence-embedding model or a reranker](../how-to/sentence-embeddings.md)
- [Drop tokens that are never used](../how-to/fewer-tokens.md)
"""
#: What the page says of training, where there was any.
_TRAINING = " Distillation takes batches of 32 of all training texts, in bfloat16 autocast."
#: Megabytes of the dense model: 22,713,216 parameters of four bytes.
_DENSE = 90.9


def embeddings() -> str:
    """docs/results/embeddings.md, from the rows that the benchmark left."""
    rows: Sequence[Mapping[str, Any]] = json.loads(ROWS.read_text(encoding="utf-8"))
    is_trained = any(row["stage"] != "pruned" for row in rows)
    training = _TRAINING if is_trained else ""
    return HEAD.format(dense=_DENSE, training=training) + "\n".join(_table(rows)) + "\n" + TAIL


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """One row for each scorer, number of samples, size and stage."""
    cells: dict[tuple[Any, ...], list[Mapping[str, Any]]] = defaultdict(list)
    stages = list(_STAGES)
    for row in rows:
        key = (row["scorer"], row["samples"], row["removed"], stages.index(row["stage"]))
        cells[key].append(row)
    yield f"| scorer | samples | removed | | {' | '.join(_FIGURES.values())} | MB | seeds |"
    yield "|---|---:|---:|---|" + "---:|" * (len(_FIGURES) + 2)
    for (scorer, samples, removed, stage), found in sorted(cells.items()):
        said = _STAGES[stages[stage]].format(steps=found[0].get("steps"))
        figures = [_figure([row[name] for row in found]) for name in _FIGURES]
        megabytes = sum(row["bytes"] for row in found) / len(found) / 1e6
        yield (
            f"| `{scorer}` | {samples} | {removed} % | {said} | {' | '.join(figures)} | {megabytes:.1f} | "
            f"{len(found)} |"
        )


def _figure(values: Sequence[float]) -> str:
    """The mean, and half the range where there are several."""
    mean = f"{sum(values) / len(values):.3f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {(max(values) - min(values)) / 2:.3f}"
