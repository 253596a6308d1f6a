"""The page on which plans run in which engine, from docs/results/engines.json."""

import json
from pathlib import Path
from typing import Any

ROWS = Path(__file__).parent / "results" / "engines.json"
HEAD = """# Which plans run where

Which kinds of pruned models each engine can run, tried one by one. Read this page before you choose how to prune, if
you know what will serve the model.

A plan says how many units of each [block](../glossary.md#block) stay. What an engine can run depends on the kind of
plan:

- *portable*: all layers have the same widths, so the stock config can say them.
- *feed-forward only*: neurons go, and every layer has another number of them; heads stay.
- *attention groups*: heads go too, of language models as whole [groups](../glossary.md#group) with their keys and
  values.
- *query heads*: single query heads go, and keys and values stay. The encoder has a key and a value for each head, so
  for it this is the same as groups.
- *emptied blocks*: two whole blocks go too, an attention and a feed-forward block.

A cell says how far the engine's outputs are from those of hfprune in PyTorch in float32: the largest difference,
relative to the largest output. For vLLM it is the largest difference of a log-probability. It is a few millionths
where nothing is quantised. *no* means that the engine refuses the model or fails, for a reason that stands below the
table; the reasons are the messages that were printed. *too far off* means that the engine runs the file, and that
quantised weights changed the outputs by more than hfprune lets pass. *not tried* means just that.

The checkpoints are MiniLM-L6 without a head and SmolLM2-135M, pruned by a fifth without regard to accuracy: these
tables are about shapes. Neurons are in multiples of 64, as bitsandbytes in 4 bits wants them. Files of llama.cpp in 8
and 4 bits want multiples of 32, the others any number. `python benchmarks/engines.py` tried every cell (cpu; one run).
"""
#: By name in the rows: what the engine is called on the page.
ENGINES = {
    "transformers": "transformers alone, `trust_remote_code`",
    "compile": "`torch.compile`",
    "torch": "`hfprune export --to torch`",
    "onnx": "ONNX Runtime",
    "onnx int8": "ONNX Runtime, int8",
    "openvino": "OpenVINO",
    "openvino int8": "OpenVINO, int8 weights",
    "executorch": "ExecuTorch",
    "litert": "LiteRT",
    "gguf": "llama.cpp, float32",
    "gguf q8_0": "llama.cpp, q8_0",
    "gguf q4_0": "llama.cpp, q4_0",
    "vllm": "vLLM",
    "torchao int8 weights": "torchao, int8 weights",
    "torchao int8": "torchao, int8 weights and activations",
    "bitsandbytes 8 bits": "bitsandbytes, 8 bits",
    "bitsandbytes 4 bits": "bitsandbytes, 4 bits",
}
#: In the message of a file that runs, and is refused for its outputs.
TOO_FAR = "does not compute what the model computes"
PLANS = ("portable", "feed-forward only", "attention groups", "query heads", "emptied blocks")
MODELS = {"encoder": "An encoder (MiniLM-L6)", "decoder": "A language model (SmolLM2-135M)"}


def engines() -> str:
    """docs/reference/engines.md, from the rows."""
    rows = json.loads(ROWS.read_text(encoding="utf-8"))
    found = {(row["model"], row["engine"], row["plan"]): row for row in rows}
    lines = [HEAD.rstrip()]
    for model, title in MODELS.items():
        lines += ["", f"## {title}", "", *_table(found, model), *_reasons(found, model)]
    return "\n".join(lines) + "\n"


def _table(found: dict[tuple[str, str, str], dict[str, Any]], model: str) -> list[str]:
    lines = ["| engine | " + " | ".join(PLANS) + " |", "|---|" + "---|" * len(PLANS)]
    for engine, title in ENGINES.items():
        cells = [_cell(found[model, engine, plan]) if (model, engine, plan) in found else "" for plan in PLANS]
        if any(cells):
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return lines


def _cell(row: dict[str, Any]) -> str:
    if row["outcome"] == "runs":
        return f"{row['largest']:.0e}" if row["largest"] else "0"
    if row["outcome"] == "not tried":
        return "not tried"
    return "too far off" if TOO_FAR in row.get("reason", "") else "no"


def _reasons(found: dict[tuple[str, str, str], dict[str, Any]], model: str) -> list[str]:
    """Every message once, with the plans that it was printed for."""
    plans: dict[tuple[str, str, str], list[str]] = {}
    for engine in ENGINES:
        for plan in PLANS:
            row = found.get((model, engine, plan), {})
            if "reason" in row:
                plans.setdefault((ENGINES[engine], row["outcome"], row["reason"]), []).append(plan)
    lines = []
    for (engine, outcome, reason), having in plans.items():
        which = "all plans" if len(having) == len(PLANS) else ", ".join(having)
        lines.append(f"- {engine}, {which}: {outcome}. `{reason.replace('`', chr(39))}`")
    return ["", *lines] if lines else []
