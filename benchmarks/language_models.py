"""SmolLM2-135M on the State of the Union: perplexity by what chooses the units, what repairs, and after recovery.

    python benchmarks/language_models.py [--kept 80 70 50] [--methods random ...] [--repairs none bias repair rounds]
    python benchmarks/language_models.py --quick
    python benchmarks/language_models.py --recover residual_logit_fisher/rounds fluctuation/bias --steps 200
    python benchmarks/language_models.py --show

The dense model is SmolLM2-135M-Instruct, dequantised from a 4-bit file. It is pruned with 64 windows of 256 tokens
from the addresses of 1950 to 2015, and measured on 40 windows of those of 2016 to 2021 (window = stride = 256, its own
tokenizer), both drawn by the seed; nothing is trained, but for the rows with steps. Kept are per cent of the parameters
of key/value groups and neurons. Every method allocates as it was published: `random` and `activation_norm` the same
share everywhere, `fluctuation` by one threshold over its standardised scores, the others globally by score for cost.
`none` and `repair` are one shot without and with reconstruction, `rounds` as many rounds of score, plan, surgery and
reconstruction as keep about four fifths each, and `bias` the compensation of FLAP (An et al. 2024), the fair baseline
of `fluctuation`: what removed columns put out on average goes into a bias of the consumer. * marks the default.
Recovery is distillation of the logits from the dense model on windows of 1950 to 2015, full weights.
Rows go to runs/language_models.json as they are measured, and what is there by the same settings is not measured again
(delete the file to start over). seconds are score, plan, surgery, repair and training; peak_bytes the peak memory of
that over what the process had before (dense model and data); where an allocator is told to keep what was freed, that
counts, so measure a row a process then. CPU, float32 (training with --bf16 in mixed precision).
The rows of docs/results/language-models.md are kept in docs/results/language_models.json.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from common import Row, memory_over, write
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.utils import logging

from hfprune import PruningConfig, RecoveryArguments, RecoveryTrainer, apply_plan, perplexity, plan, prune, score
from hfprune import reconstruct as repair_model
from hfprune.data.corpus import load_documents, pack
from hfprune.data.packages import resolve_model
from hfprune.jobs.tasks.causal_text import labelled
from hfprune.pruning.prune import batches_for
from hfprune.scoring import Scores
from hfprune.scoring.activation_scorers import read_activations
from hfprune.structure.anatomy import find_blocks
from hfprune.structure.batches import Batch

WINDOW = 256
DEFAULT = PruningConfig().scorer
#: How each method allocates.
ALLOCATIONS = {
    "random": "uniform",
    "activation_norm": "uniform",
    "fluctuation": "threshold",
    "taylor": "global",
    "kl_fisher": "global",
    DEFAULT: PruningConfig().allocation,
}
REPAIRS = ("none", "bias", "repair", "rounds")
Result = TypeVar("Result")
#: What makes a row, beside its figures.
NAMES = ("method", "kept", "repair", "steps")
#: And what is the same for all rows that a run asks for; that of recovery counts where there are steps.
SETTINGS, RECOVERY = ("model", "windows", "test_windows", "seed"), ("batch", "learning_rate", "bf16")


@dataclass(frozen=True)
class Setting:
    """What all rows share.

    Attributes:
        model: The dense model.
        tokenizer: Its tokenizer.
        train: Windows of 1950 to 2015.
        test: Windows of 2016 to 2021.
        samples: Windows for calibration.
        seed: Of every draw.
        batch: Windows in a training batch.
        learning_rate: Of recovery.
        bf16: Train in mixed precision.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    train: Dataset
    test: list[list[int]]
    samples: int
    seed: int
    batch: int
    learning_rate: float
    bf16: bool

    def config(self, method: str, repair: str, kept: int) -> PruningConfig:
        """The pruning run of one row."""
        return PruningConfig(
            sparsity=1 - kept / 100,
            budget="params",
            sequence_length=WINDOW,
            scorer=method,
            allocation=ALLOCATIONS.get(method, "global"),
            schedule="geometric" if repair == "rounds" else "one_shot",
            reconstruct=repair in ("repair", "rounds"),
            calibration_samples=self.samples,
            # as all rows were measured: the default multiples change less than the draw of samples (gguf_files.py)
            round_to=1,
            seed=self.seed,
        )

    def perplexity(self, model: PreTrainedModel) -> float:
        """Of a model on the test windows."""
        found = perplexity(model, self.tokenizer, self.test, window=WINDOW)
        return round(found.perplexity, 3)


def setting(args: argparse.Namespace) -> Setting:
    """Read the model and the text."""
    folder = resolve_model(args.model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    recent = load_documents("state_of_the_union", config_name="1950")
    windows = pack(recent, tokenizer, max_length=WINDOW, whole=True)
    test = windows["test"].shuffle(seed=args.seed).select(range(args.test_windows))
    return Setting(
        model=AutoModelForCausalLM.from_pretrained(folder).eval(),
        tokenizer=tokenizer,
        train=windows["train"],
        test=test["input_ids"][:],
        samples=args.windows,
        seed=args.seed,
        batch=args.batch,
        learning_rate=args.learning_rate,
        bf16=args.bf16,
    )


def compensated(small: PreTrainedModel, dense: PreTrainedModel, batches: Sequence[Batch]) -> None:
    """Give every consumer a bias: what its removed columns put out on average over the calibration tokens (FLAP).

    For measurements only: a Llama with biases at some projections is no model that can be saved.
    """
    blocks = find_blocks(dense)
    statistics = read_activations(dense, blocks, batches)
    for block in blocks:
        kept = small.pruning_plan.blocks[block.name].kept
        gone = torch.ones(block.units, dtype=torch.bool)
        gone[list(kept)] = False
        columns = gone.repeat_interleave(block.width)
        found, consumer = statistics[block.name], small.base_model.get_submodule(block.consumer)
        missing = found.weight[:, columns] @ found.mean[columns]
        consumer.bias = torch.nn.Parameter(missing if consumer.bias is None else consumer.bias.detach() + missing)


class Pruner:
    """Prunes with one method; in one shot all rows share one scoring pass, whose seconds and memory count for each."""

    def __init__(self, run: Setting, method: str) -> None:
        self.run, self.method = run, method
        self.batches = batches_for(run.model, run.train, run.config(method, "none", 50), collator=labelled)
        self._scores: tuple[Scores, float, int] | None = None

    def pruned(self, repair: str, kept: int) -> tuple[PreTrainedModel, float, int]:
        """The small model, seconds, and bytes."""
        config, dense = self.run.config(self.method, repair, kept), self.run.model
        if repair == "rounds":
            return measured(lambda: prune(dense, self.batches, config))
        if self._scores is None:
            self._scores = measured(lambda: score(dense, self.batches, scorer=self.method, seed=config.seed))
        scores, scoring, scoring_bytes = self._scores

        def cut() -> PreTrainedModel:
            small = apply_plan(dense, plan(dense, scores, config))
            if repair == "repair":
                repair_model(small, dense, self.batches)
            elif repair == "bias":
                compensated(small, dense, self.batches)
            return small

        small, seconds, used = measured(cut)
        return small, scoring + seconds, max(scoring_bytes, used)


def measured(work: Callable[[], Result]) -> tuple[Result, float, int]:
    """What some work gives, its seconds, and its peak memory in bytes."""
    results: list[Result] = []
    began = time.perf_counter()
    used = memory_over(lambda: results.append(work()))
    return results[0], time.perf_counter() - began, used


def recover(run: Setting, small: PreTrainedModel, steps: int) -> None:
    """Distil the dense model's logits into the small one, in place."""
    set_seed(run.seed)
    with tempfile.TemporaryDirectory() as folder:
        args = RecoveryArguments(
            output_dir=folder,
            max_steps=steps,
            learning_rate=run.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            weight_decay=0.0,
            per_device_train_batch_size=run.batch,
            task_weight=0.0,
            logits_weight=1.0,
            hidden_states_weight=0.0,
            temperature=1.0,
            bf16=run.bf16,
            seed=run.seed,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=False,
            logging_steps=20,
        )
        trainer = RecoveryTrainer(small, args, teacher=run.model, train_dataset=run.train, data_collator=labelled)
        trainer.train()
        trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)


def measure(run: Setting, method: str, wanted: Sequence[tuple[str, int, int]]) -> Iterator[Row]:
    """The rows of one method: `(repair, kept, steps)` each. Those that differ in steps only share one pruned model."""
    pruner = Pruner(run, method)
    for repair, kept in dict.fromkeys((repair, kept) for repair, kept, _ in wanted):
        small, seconds, used = pruner.pruned(repair, kept)
        for steps in sorted(steps for r, k, steps in wanted if (r, k) == (repair, kept)):
            if steps:
                _, training, training_bytes = measured(lambda m=small, n=steps: recover(run, m, n))
                seconds, used = seconds + training, max(used, training_bytes)
            row = {"method": method, "kept": kept, "repair": repair, "steps": steps}
            yield {**row, "perplexity": run.perplexity(small), "seconds": round(seconds, 1), "peak_bytes": used}


def report(rows: Sequence[Row]) -> None:
    """Print perplexity, seconds and peak memory of every method at every cost."""
    costs = sorted({row["kept"] for row in rows}, reverse=True)
    for value in sorted({row["dense_perplexity"] for row in rows}):
        print(f"\ndense (SmolLM2-135M-Instruct, dequantised from 4 bits): {value:.2f}")
    print("\n| perplexity | repair | steps | " + " | ".join(f"{cost} %" for cost in costs) + " | seconds | peak |")
    print("|---|---|---:|" + "---:|" * (len(costs) + 2))
    for method, repair, steps in sorted({(row["method"], row["repair"], row["steps"]) for row in rows}):
        found = {r["kept"]: r for r in rows if (r["method"], r["repair"], r["steps"]) == (method, repair, steps)}
        cells = [f"{found[cost]['perplexity']:.1f}" if cost in found else "" for cost in costs]
        seconds = [row["seconds"] for row in found.values() if row["seconds"] is not None]
        timed = f"{min(seconds):.0f} to {max(seconds):.0f}" if seconds else ""
        peaks = [row["peak_bytes"] for row in found.values() if row["peak_bytes"] is not None]
        peak = f"{max(peaks) / 1e9:.1f} GB" if peaks else ""
        mark = " *" if (method, repair) == (DEFAULT, "rounds") else ""
        print("| " + " | ".join((method, repair + mark, str(steps), *cells, timed, peak)) + " |")


def asked(args: argparse.Namespace) -> list[tuple[str, int, str, int]]:
    """The rows that are asked for, in the order of `NAMES`."""
    if args.quick:
        pairs = [(DEFAULT, "rounds"), ("fluctuation", "none"), ("fluctuation", "bias")]
        return [(method, 80, repair, 0) for method, repair in pairs]
    pairs = [
        (method, repair)
        for method in args.methods
        for repair in args.repairs
        if (repair != "bias" or method == "fluctuation") and (repair != "rounds" or method in (DEFAULT, args.rounds_of))
    ]
    rows = [(method, kept, repair, 0) for method, repair in pairs for kept in args.kept]
    for pair in args.recover:
        method, _, repair = pair.partition("/")
        rows += [(method, kept, repair, steps) for kept in args.kept for steps in (0, args.steps)]
    return list(dict.fromkeys(rows))


def settings_of(args: argparse.Namespace, steps: int) -> dict[str, object]:
    """What a row of so many steps depends on beside its names."""
    return {name: getattr(args, name) for name in (*SETTINGS, *(RECOVERY if steps else ()))}


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """From the command line, or from what is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="*", default=list(ALLOCATIONS))
    parser.add_argument("--repairs", nargs="+", default=list(REPAIRS), choices=REPAIRS)
    parser.add_argument("--rounds-of", help="another method that is run in rounds, beside the default")
    parser.add_argument("--kept", nargs="+", type=int, default=[80, 70, 50], help="per cent of prunable parameters")
    parser.add_argument("--recover", nargs="*", default=[], help="method/repair pairs to train after pruning")
    parser.add_argument("--steps", type=int, default=200, help="training steps of --recover")
    parser.add_argument("--batch", type=int, default=4, help="windows in a training batch")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument(
        "--bf16", action="store_true", help="train in mixed precision: faster where there is hardware for it"
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--windows", type=int, default=64, help="of calibration")
    parser.add_argument("--test-windows", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/language_models.json"))
    parser.add_argument("--quick", action="store_true", help="80 %%: the default, fluctuation without and with bias")
    parser.add_argument("--threads", type=int, default=2, help="1 where another process computes: they would spin")
    parser.add_argument("--untimed", action="store_true", help="the machine does other work: rows get no seconds")
    parser.add_argument("--show", action="store_true", help="report the rows there are of what is asked")
    return parser.parse_args(argv)


def main() -> None:
    """Measure what is missing, report, keep the rows."""
    args = arguments()
    logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    rows: list[Row] = json.loads(args.output.read_text(encoding="utf-8")) if args.output.is_file() else []
    wanted = asked(args)
    mine = [row for row in rows if row["settings"] == settings_of(args, row["steps"])]
    there = {tuple(row[name] for name in NAMES) for row in mine}
    missing = [] if args.show else [names for names in wanted if names not in there]
    if missing:
        run = setting(args)
        dense_perplexity = run.perplexity(run.model)
        print(f"dense perplexity {dense_perplexity}; {len(run.train)} windows to learn from", flush=True)
    for method in dict.fromkeys(names[0] for names in missing):
        cells = [(repair, kept, steps) for name, kept, repair, steps in missing if name == method]
        for row in measure(run, method, cells):
            if args.untimed:
                row["seconds"] = None
            rows.append({**row, "dense_perplexity": dense_perplexity, "settings": settings_of(args, row["steps"])})
            mine.append(rows[-1])
            write(args.output, rows)
            print(*(f"{name}={value}" for name, value in rows[-1].items()), flush=True)
    report([row for row in mine if tuple(row[name] for name in NAMES) in set(wanted)])


if __name__ == "__main__":
    main()
