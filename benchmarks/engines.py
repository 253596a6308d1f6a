"""Which plans run where: kinds of pruned models in the engines that models are served by, each tried.

    python benchmarks/engines.py [--vllm-python PATH]
    python benchmarks/engines.py --models decoder --plans portable --engines onnx gguf
    python benchmarks/engines.py --show

The encoder is MiniLM-L6 without a head, the decoder SmolLM2-135M-Instruct. Each is pruned by a fifth in five ways,
without data that matters, with neurons in multiples of 64: this is about shapes, not about accuracy. Every checkpoint
is then given to every engine, and the outputs are compared with those of hfprune in PyTorch, float32. A row says `runs`
and how far the outputs are apart, relative to the largest one, or `refused` and the message, or `not tried` and why.

vLLM needs an environment of its own, because it asks for an older transformers; `--vllm-python` is the interpreter of
one (benchmarks/vllm_serving.py says how to make it). Rows go to docs/results/engines.json as they are measured; a cell
that is there is not tried again (`--again` tries it). `python -m docs.draw` draws the page. CPU.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import Row, write
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import hfprune
from hfprune.data import resolve_model
from hfprune.deployment.proof import logits_of
from hfprune.errors import HfpruneError, one_line

#: Where rows are kept, from the root of the repository.
RESULTS = Path("docs/results/engines.json")
#: By model: its name, and the class that loads it.
MODELS = {"encoder": ("minilm-l6", AutoModel), "decoder": ("smollm2-135m", AutoModelForCausalLM)}
#: By plan, the fields of its config. Every plan but the portable one has another width in every layer.
PLANS: dict[str, dict[str, Any]] = {
    "portable": {"portable": True},
    "feed-forward only": {"exclude": ["*.attention"]},
    "attention groups": {"attention_unit": "group"},
    "query heads": {"attention_unit": "query"},
    "emptied blocks": {"min_units": 0},
}
#: Blocks that the plan of that name removes whole, beside the fifth of all others.
EMPTIED = {"*.1.attention": 1.0, "*.2.ffn": 1.0}
TEXTS = (
    "The people of this country have waited for an answer.",
    "What is the capital of France?",
    "It was a bright cold day in April, and the clocks were striking thirteen.",
    "No",
)
#: What the line with a row begins with in what benchmarks/vllm_serving.py prints.
VLLM_MARK = "row: "
#: A child process that can import transformers, and not hfprune.
ALONE = """
import sys
sys.modules["hfprune"] = None
import torch, transformers
folder, loader, batch, output = sys.argv[1:]
model = getattr(transformers, loader).from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
with torch.no_grad():
    outputs = model(**torch.load(batch, weights_only=True))
torch.save(outputs["logits"] if "logits" in outputs else outputs[0], output)
"""


class Cell(NamedTuple):
    """A checkpoint that an engine is given.

    Attributes:
        kind: `encoder` or `decoder`.
        folder: The checkpoint.
        model: The same model in memory, float32.
        tokenizer: Its tokenizer.
        vllm_python: The interpreter of vLLM's environment; None without one.
    """

    kind: str
    folder: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    vllm_python: str | None

    @property
    def loader(self) -> type:
        """The class of transformers that loads the checkpoint."""
        return MODELS[self.kind][1]

    @property
    def batch(self) -> dict[str, torch.Tensor]:
        """The texts, padded behind."""
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        return dict(self.tokenizer(list(TEXTS), padding=True, padding_side="right", return_tensors="pt"))


class NotTriedError(Exception):
    """The cell makes no sense here; the message says why."""


Engine = Callable[[Cell], Row]


def compared(cell: Cell, found: torch.Tensor) -> Row:
    """How far outputs are from those of hfprune, at the tokens that are no padding."""
    batch = cell.batch
    with torch.no_grad():
        expected = logits_of(cell.model(**batch))
    there = batch["attention_mask"].bool()
    expected, found = expected[there], found.float()[there]
    difference = (expected - found).abs().max() / expected.abs().max()
    row: Row = {"outcome": "runs", "largest": float(f"{difference.item():.1e}")}
    if cell.kind == "decoder":
        row["agreement"] = round((expected.argmax(-1) == found.argmax(-1)).float().mean().item(), 3)
    return row


def transformers_alone(cell: Cell) -> Row:
    """A process with transformers and without hfprune."""
    with tempfile.TemporaryDirectory() as place:
        batch, output = Path(place) / "batch.pt", Path(place) / "output.pt"
        torch.save(cell.batch, batch)
        command = [sys.executable, "-c", ALONE, str(cell.folder), cell.loader.__name__, str(batch), str(output)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        return compared(cell, torch.load(output, weights_only=True))


def compiled(cell: Cell) -> Row:
    """torch.compile with the default backend."""
    torch.compiler.reset()
    with torch.no_grad():
        return compared(cell, logits_of(torch.compile(cell.model)(**cell.batch)))


def exported_to(target: str, quantize: str | None = None) -> Engine:
    """The target of `hfprune export` of that name."""
    return lambda cell: proved(cell, lambda output: hfprune.export(cell.folder, target, output, quantize=quantize))


def quantized_by(method: str) -> Engine:
    """The method of `hfprune quantize` of that name."""
    return lambda cell: proved(cell, lambda output: hfprune.quantize(cell.folder, output, method=method))


def proved(cell: Cell, make: Callable[[Path], hfprune.Export]) -> Row:
    """Write what an engine loads, and say how far it was from PyTorch when hfprune compared it."""
    with tempfile.TemporaryDirectory() as place:
        exported = make(Path(place) / "made")
    row: Row = {
        "outcome": "runs",
        "largest": float(f"{max(each.relative for each in exported.differences):.1e}"),
        "megabytes": round(exported.size_bytes / 1e6, 1),
    }
    if cell.kind == "decoder":
        row["agreement"] = round(min(each.agreement for each in exported.differences), 3)
    return row


def vllm(cell: Cell) -> Row:
    """The build of vLLM for CPUs, by the script that compares log-probabilities."""
    if cell.kind == "encoder":
        raise NotTriedError("vLLM serves models that write")
    if cell.vllm_python is None:
        raise NotTriedError("no environment of vLLM was given")
    script = Path(__file__).parent / "vllm_serving.py"
    environment = {**os.environ, "PYTHONPATH": "", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    command = [cell.vllm_python, str(script), str(cell.folder), "--one"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(_reason_in(done.stderr + done.stdout))
    line = next(line for line in done.stdout.splitlines() if line.startswith(VLLM_MARK))
    found = json.loads(line.removeprefix(VLLM_MARK))
    return {"outcome": "runs", "largest": float(found["log-probabilities"]), "tokens": found["same tokens"]}


def _reason_in(text: str) -> str:
    """The last line that names an error."""
    lines = [line.strip() for line in text.splitlines() if "Error" in line]
    return lines[-1] if lines else text.strip().splitlines()[-1]


ENGINES: dict[str, Engine] = {
    "transformers": transformers_alone,
    "compile": compiled,
    "torch": exported_to("torch"),
    "onnx": exported_to("onnx"),
    "onnx int8": exported_to("onnx", "int8"),
    "openvino": exported_to("openvino"),
    "openvino int8": exported_to("openvino", "int8"),
    "executorch": exported_to("executorch"),
    "litert": exported_to("litert"),
    "gguf": exported_to("gguf"),
    "gguf q8_0": exported_to("gguf", "q8_0"),
    "gguf q4_0": exported_to("gguf", "q4_0"),
    "vllm": vllm,
    "torchao int8 weights": quantized_by("int8-weights"),
    "torchao int8": quantized_by("int8"),
    "bitsandbytes 8 bits": quantized_by("bitsandbytes-8bit"),
    "bitsandbytes 4 bits": quantized_by("bitsandbytes-4bit"),
}


def checkpoint(kind: str, plan: str, folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Prune a model in one of the ways and save it, with its tokenizer."""
    name, loader = MODELS[kind]
    source = resolve_model(name)
    tokenizer = AutoTokenizer.from_pretrained(source)
    dense = loader.from_pretrained(source, dtype=torch.float32)
    torch.manual_seed(0)
    rows = [{"input_ids": torch.randint(5, len(tokenizer), (4, 32))}]
    config = hfprune.PruningConfig(
        sparsity=0.2,
        scorer="l2",
        schedule="one_shot",
        reconstruct=False,
        sequence_length=32,
        calibration_samples=4,
        # what the most demanding engine takes: bitsandbytes in 4 bits
        round_to=64,
        **PLANS[plan],
    )
    emptied = {"*": 0.2, **EMPTIED} if plan == "emptied blocks" else None
    small = hfprune.prune(dense, rows, config, sparsity=emptied).eval()
    hfprune.save(small, folder, tokenizer=tokenizer)
    return hfprune.load(folder), tokenizer


def tried(engine: Engine, cell: Cell) -> Row:
    """What an engine makes of a checkpoint."""
    try:
        return engine(cell)
    except NotTriedError as reason:
        return {"outcome": "not tried", "reason": str(reason)}
    except HfpruneError as error:
        return {"outcome": "refused", "reason": one_line(error)}
    except Exception as error:  # noqa: BLE001 (whatever an engine fails with is the result)
        return {"outcome": "fails", "reason": f"{type(error).__name__}: {one_line(error)}"[:300]}


def show(rows: list[Row]) -> None:
    """Print the rows."""
    for row in rows:
        figures = {name: row[name] for name in ("largest", "agreement", "reason") if name in row}
        print(f"{row['model']:8} {row['plan']:18} {row['engine']:20} {row['outcome']:9} {figures}", flush=True)


def main() -> None:
    """Try every cell that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--plans", nargs="+", choices=PLANS, default=list(PLANS))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--vllm-python", help="the interpreter of an environment with vLLM")
    parser.add_argument("--again", action="store_true", help="try cells again that have a row")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--show", action="store_true", help="print what is there, and try nothing")
    args = parser.parse_args()
    rows: list[Row] = json.loads(args.output.read_text(encoding="utf-8")) if args.output.is_file() else []
    if args.show:
        show(rows)
        return
    for kind in args.models:
        for plan in args.plans:
            known = {row["engine"] for row in rows if (row["model"], row["plan"]) == (kind, plan)}
            wanted = [name for name in args.engines if args.again or name not in known]
            if not wanted:
                continue
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place) / "checkpoint"
                model, tokenizer = checkpoint(kind, plan, folder)
                cell = Cell(kind, folder, model, tokenizer, args.vllm_python)
                for name in wanted:
                    names = {"model": kind, "plan": plan, "engine": name}
                    row = names | tried(ENGINES[name], cell)
                    rows = [old for old in rows if names.items() - old.items()] + [row]
                    write(args.output, rows)
                    show([row])


if __name__ == "__main__":
    main()
