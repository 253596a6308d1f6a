"""SmolLM2-135M in llama.cpp: size, tokens a second and perplexity of GGUF files, dense and pruned.

    python benchmarks/gguf_files.py [--kept 80 70] [--quantizations none q8_0 q4_0] [--threads 1]
    python benchmarks/gguf_files.py --show

The dense model is SmolLM2-135M-Instruct, dequantised from a 4-bit file. It is pruned by the default scorer in one shot
with reconstruction, with windows of 256 tokens from the addresses of 1950 to 2015; kept are per cent of the parameters
of key/value groups and neurons. `32` in the widths means that neurons are kept in multiples of 32, as
`PruningConfig(target="gguf-q8_0")` has it; without it rows that are no multiple stay in float16. Perplexity is that of
the file as llama.cpp computes it (cache and attention in float32), on windows of the addresses of 2016 to 2021; argmax
is the share of tokens for which PyTorch in float32 has the same likeliest one. Tokens a second are the medians of runs
that take turns, in llama.cpp's own settings: a prompt of 128 tokens, and 32 tokens written behind it. Pruned models are
kept in runs/gguf_models, and a run that finds them there only measures. Rows go to runs/gguf_files.json as they are
measured, the speeds first; load is the load of the machine behind them. CPU; the wheel of xllamacpp is built for any
x86 processor, so builds for one processor are faster.
"""

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

import torch
from common import Row
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import hfprune
from hfprune.data.corpus import load_documents, pack
from hfprune.data.packages import resolve_model
from hfprune.deployment import WriteOptions
from hfprune.deployment.gguf.running import LlamaCppRunner
from hfprune.deployment.gguf.writing import write_file
from hfprune.jobs.tasks.causal_text import labelled

WINDOW = 256
PROMPT = 128
NEW_TOKENS = 32
COLUMNS = ("kept", "widths", "type", "MB", "float16 MB", "prefill", "decode", "perplexity", "argmax", "threads", "load")


def files(
    args: argparse.Namespace, models: dict[tuple[int, str], PreTrainedModel], tokenizer: PreTrainedTokenizerBase
) -> dict[tuple[int, str, str], tuple[Path, Row]]:
    """Write all files."""
    written = {}
    for (kept, widths), model in models.items():
        for kind in args.quantizations:
            path = args.folder / f"{kept}-{widths}-{kind}.gguf"
            options = WriteOptions(quantization=None if kind == "none" else kind, tokenizer=tokenizer, batch={})
            done = write_file(model, path, options)
            row = {
                "kept": kept,
                "widths": widths,
                "type": kind,
                "MB": round(path.stat().st_size / 1e6, 1),
                "float16 MB": round(done.wide_bytes / 1e6, 1),
            }
            written[kept, widths, kind] = (path, row)
    return written


def models_of(args: argparse.Namespace, tokenizer: PreTrainedTokenizerBase) -> dict[tuple[int, str], PreTrainedModel]:
    """The dense model and the pruned ones, by per cent kept and by widths."""
    folder = resolve_model("smollm2-135m")
    models = {(100, "any"): AutoModelForCausalLM.from_pretrained(folder).eval()}
    recent = load_documents("state_of_the_union", config_name="1950")
    windows = pack(recent, tokenizer, max_length=WINDOW, whole=True)
    for kept in args.kept:
        for widths, target in (("any", None), ("32", "gguf-q8_0")):
            config = hfprune.PruningConfig(
                sparsity=1 - kept / 100,
                budget="params",
                sequence_length=WINDOW,
                schedule="one_shot",
                calibration_samples=args.windows,
                target=target,
                round_to=None if target else 1,
            )
            place = args.models / f"{kept}-{widths}"
            if not place.is_dir():
                small = hfprune.prune(models[100, "any"], windows["train"], config, collator=labelled)
                hfprune.save(small, place, tokenizer=tokenizer)
            models[kept, widths] = hfprune.load(place)
    return models


def test_windows(args: argparse.Namespace, tokenizer: PreTrainedTokenizerBase) -> list[torch.Tensor]:
    """Texts of 2016 to 2021, `(1, WINDOW)` each."""
    recent = load_documents("state_of_the_union", config_name="1950")
    rows = pack(recent, tokenizer, max_length=WINDOW, whole=True)["test"].shuffle(seed=0).select(range(args.tests))
    return [torch.tensor([ids]) for ids in rows["input_ids"]]


def accuracy(path: Path, model: PreTrainedModel, texts: list[torch.Tensor], threads: int) -> Row:
    """Perplexity of a file, and how often its likeliest token is PyTorch's."""
    runner = LlamaCppRunner(path, threads=threads)
    losses, same = [], []
    for ids in texts:
        logits = runner({"input_ids": ids})[0]
        losses.append(torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:]))
        with torch.no_grad():
            expected = model(ids).logits[0]
        same.append((logits.argmax(-1) == expected.argmax(-1)).float().mean())
    return {
        "perplexity": round(torch.stack(losses).mean().exp().item(), 2),
        "argmax": round(torch.stack(same).mean().item(), 3),
    }


def speeds(paths: dict[tuple[int, str, str], Path], ids: list[int], args: argparse.Namespace) -> dict:
    """Tokens a second of all files, read and written: medians over rounds in which the files take turns."""
    runners = {key: LlamaCppRunner(path, threads=args.threads, fast=True) for key, path in paths.items()}
    found: dict = {key: ([], []) for key in runners}
    for turn in range(args.rounds + 1):
        for key, runner in runners.items():
            timings = runner.complete(ids, NEW_TOKENS)["timings"]
            # the first round warms up
            if turn:
                found[key][0].append(timings["prompt_per_second"])
                found[key][1].append(timings["predicted_per_second"])
    return {key: [round(statistics.median(values), 1) for values in pair] for key, pair in found.items()}


def keep(rows: list[Row], output: Path) -> None:
    """Write the rows as far as they are measured."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(rows, indent=1) + "\n")


def show(rows: list[Row]) -> None:
    """Print rows as a table."""
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + "---:|" * len(COLUMNS))
    for row in rows:
        print("| " + " | ".join(str(row[name]) for name in COLUMNS) + " |", flush=True)


def main() -> None:
    """Write, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kept", type=int, nargs="+", default=[80, 70])
    parser.add_argument("--quantizations", nargs="+", default=["none", "q8_0", "q4_0"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--windows", type=int, default=64, help="windows for calibration")
    parser.add_argument("--tests", type=int, default=8, help="windows to measure on")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the measurement of speed")
    parser.add_argument("--models", type=Path, default=Path("runs/gguf_models"), help="where pruned models are kept")
    parser.add_argument("--output", type=Path, default=Path("runs/gguf_files.json"))
    parser.add_argument("--show", action="store_true", help="print what is there, and measure nothing")
    args = parser.parse_args()
    if args.show:
        show(json.loads(args.output.read_text()))
        return
    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("smollm2-135m"))
    texts = test_windows(args, tokenizer)
    models = models_of(args, tokenizer)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        args.folder = Path(folder)
        written = files(args, models, tokenizer)
        fast = speeds({key: path for key, (path, _) in written.items()}, texts[0][0, :PROMPT].tolist(), args)
        load = round(os.getloadavg()[0], 1)
        for key, (_, row) in written.items():
            row["prefill"], row["decode"] = fast[key]
            row |= {"threads": args.threads, "load": load, "perplexity": None, "argmax": None}
            rows.append(row)
        keep(rows, args.output)
        for key, (path, row) in written.items():
            row |= accuracy(path, models[key[:2]], texts, args.threads)
            keep(rows, args.output)
    show(rows)


if __name__ == "__main__":
    main()
