"""How long `prune` takes on MiniLM-L6: one shot, 256 TREC questions, the default scorer with repair.

    python benchmarks/pruning_time.py
    git worktree add ../earlier COMMIT && python benchmarks/pruning_time.py --against ../earlier

With `--against` another checkout of hfprune does the same in processes of its own, in turn with this one, and the ratio
is printed. cpu, float32, 2 threads.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent.parent
SAMPLES = 256
MAX_LENGTH = 64


def seconds_of(runs: int) -> list[float]:
    """Seconds of each `prune` in this process, after one that is not counted."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

    import hfprune
    from hfprune.data import load_text_dataset, resolve_model, tokenize

    torch.set_num_threads(2)
    torch.manual_seed(0)
    source = resolve_model("minilm-l6")
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=6).eval()
    data = tokenize(load_text_dataset("trec"), tokenizer, max_length=MAX_LENGTH)["train"]
    config = hfprune.PruningConfig(schedule="one_shot", calibration_samples=SAMPLES, sequence_length=MAX_LENGTH)
    seconds = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        hfprune.prune(model, data, config, collator=DataCollatorWithPadding(tokenizer))
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def in_process_of(checkout: Path, runs: int) -> list[float]:
    """The same in a process that imports hfprune from a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), "--runs", str(runs), "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    seconds: list[float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def main() -> None:
    """Time it, alone or against another checkout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="prunings in each process, after one that is not counted")
    parser.add_argument("--against", type=Path, help="another checkout of hfprune")
    parser.add_argument("--turns", type=int, default=3, help="processes of each checkout, in turn")
    parser.add_argument("--json", action="store_true", help="print the seconds as JSON")
    arguments = parser.parse_args()
    if arguments.json:
        print(json.dumps(seconds_of(arguments.runs)))
        return
    if arguments.against is None:
        seconds = seconds_of(arguments.runs)
        print(f"prune: median {statistics.median(seconds):.2f} s, least {min(seconds):.2f} s of {len(seconds)}")
        return
    theirs: list[float] = []
    ours: list[float] = []
    for _ in range(arguments.turns):
        theirs += in_process_of(arguments.against.resolve(), arguments.runs)
        ours += in_process_of(HERE, arguments.runs)
    for name, seconds in (("the other checkout", theirs), ("this one", ours)):
        print(f"{name}: median {statistics.median(seconds):.2f} s, least {min(seconds):.2f} s of {len(seconds)}")
    print(f"ratio of medians {statistics.median(ours) / statistics.median(theirs):.3f}, ", end="")
    print(f"of the least {min(ours) / min(theirs):.3f}")


if __name__ == "__main__":
    main()
