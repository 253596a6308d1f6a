"""Run alone or by torchrun in a test: plans of all kinds of scorers, repair, training on equal batches, and who writes.

Every process writes what it found into the folder that is its argument, as `report-<rank>.json` and
`<task>-<rank>.safetensors`; the rank of a process alone is `alone`. Each of several processes saves the models that it
repaired into `repaired/<batches>/<rank>`.
"""

import gc
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from datasets import Dataset
from safetensors.torch import save_file
from transformers import PreTrainedModel, set_seed

import hfprune
from hfprune.errors import HfpruneError
from hfprune.publishing import checkpoint
from hfprune.reconstruction import reconstruct as reconstruction
from hfprune.scoring import scorers
from tests.support.tiny import tiny_batch, tiny_model

#: One of every kind of pass, and a hybrid.
SCORERS = ("fisher", "kl_fisher", "residual_fisher", "l2", "gradient", "movement", "fluctuation", "obs")
HYBRID = "hybrid(sparsity_measure, logit_fisher, rank)"
TASKS = ("SequenceClassification", "TokenClassification")
#: Numbers of batches that models are repaired with: of one batch, one of two processes gets none.
REPAIRED_WITH = (6, 1)


def plans() -> dict[str, str]:
    """The digests of the plans of every scorer, and of the whole default pipeline."""
    batches = [tiny_batch(samples=6, length=12, seed=seed) for seed in range(5)]
    for seed, batch in enumerate(batches):
        batch["labels"] = torch.randint(2, (6,), generator=torch.Generator().manual_seed(seed))
    config = hfprune.PruningConfig(sparsity=0.5, sequence_length=12)
    model = tiny_model("bert")
    found = {"default": hfprune.prune(model, batches, config).pruning_plan.digest}
    for name in (*SCORERS, HYBRID):
        found[name] = hfprune.plan(model, hfprune.score(model, batches, scorer=name), config).digest
    return found


def repaired(count: int) -> PreTrainedModel:
    """The same small model in every process, from so many batches."""
    batches = [tiny_batch("bert", samples=8, length=12, seed=seed) for seed in range(count)]
    config = hfprune.PruningConfig(sparsity=0.6, rounds=2, sequence_length=12)
    return hfprune.prune(tiny_model("bert"), batches, config)


def failures() -> dict[str, str]:
    """What kinds of scorers raise where only one batch, which is in one process, makes NaN."""
    model, batches = tiny_model("bert"), [tiny_batch(seed=seed) for seed in range(4)]
    for number, batch in enumerate(batches):
        batch["input_ids"].clamp_(max=58)
        batch["input_ids"][0, 1] = 59 if number == 1 else 58
    model.get_input_embeddings().weight.data[59] = float("nan")
    found = {}
    for name in ("kl_fisher", "fluctuation", "obs"):
        try:
            hfprune.score(model, batches, scorer=name)
        except HfpruneError as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def unlike_hardware() -> str:
    """The digest of all weights after pruning and repair where this process computes otherwise than the main one."""
    offset = 0.1 * int(os.environ.get("RANK", "0"))
    score, solve = scorers._scores_by, reconstruction.solve
    scorers._scores_by = lambda *args: {
        name: value + offset * torch.rand(len(value)) for name, value in score(*args).items()
    }
    reconstruction.solve = lambda *args: ((1 + offset) * solve(*args)[0], solve(*args)[1])
    try:
        small = hfprune.prune(
            tiny_model("bert"),
            [tiny_batch(seed=seed) for seed in range(3)],
            hfprune.PruningConfig(sparsity=0.5, rounds=2, sequence_length=8),
        )
    finally:
        scorers._scores_by, reconstruction.solve = score, solve
    total = sum(value.double().abs().sum() for value in small.state_dict().values())
    return f"{small.pruning_plan.digest} {total.item()!r}"


def rows(task: str) -> Dataset:
    """24 samples; token labels are of unequal counts from row to row and from one half of a batch to the other."""
    batch = tiny_batch(samples=24, length=9)
    batch["attention_mask"][:] = 1
    labels = torch.arange(24) % 2
    if task == "TokenClassification":
        labels = batch["input_ids"] % 2
        for row in range(24):
            labels[row, 1 + row % 8 :] = -100
    return Dataset.from_dict({**{name: value.tolist() for name, value in batch.items()}, "labels": labels.tolist()})


def train(task: str, folder: Path, processes: int) -> tuple[dict[str, object], hfprune.RecoveryTrainer]:
    """Three steps over 8 samples each, by all processes together; a whole attention block is gone."""
    set_seed(0)
    dense = tiny_model("bert", f"AutoModelFor{task}", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    config = hfprune.PruningConfig(min_units=0, sequence_length=9, rounds=1)
    small = hfprune.prune(dense, [tiny_batch()], config, sparsity={"*.0.attention": 1.0, "*.ffn": 0.4})
    args = hfprune.RecoveryArguments(
        output_dir=str(folder / task),
        per_device_train_batch_size=8 // processes,
        num_train_epochs=1,
        learning_rate=0.5,
        hidden_states_weight=0.5,
        optim="sgd",
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="steps",
        save_steps=3,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = hfprune.RecoveryTrainer(small, args, teacher=dense, train_dataset=rows(task))
    before = {name: value.clone() for name, value in small.state_dict().items()}
    trainer.train()
    moved = max(
        (value - before[name]).abs().max().item() for name, value in small.state_dict().items() if value.numel()
    )
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    # fewer than fill a batch of two processes
    predicted = trainer.predict(rows(task).select(range(7))).predictions
    return {"losses": losses, "moved": moved, "predicted": predicted.tolist()}, trainer


def train_twice(folder: Path, processes: int) -> list[str]:
    """Digests of a model in bfloat16 after each of two trainings with one trainer; processes see unlike samples."""
    set_seed(0)
    small = tiny_model("bert", "AutoModelForSequenceClassification", hidden_dropout_prob=0.0).bfloat16()
    args = hfprune.RecoveryArguments(
        output_dir=str(folder / "twice"),
        per_device_train_batch_size=8 // processes,
        max_steps=2,
        learning_rate=1e-2,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )
    trainer = hfprune.RecoveryTrainer(small, args, train_dataset=rows("SequenceClassification"))
    found = []
    for _ in range(2):
        trainer.train()
        found.append(repr(sum(value.double().abs().sum().item() for value in small.state_dict().values())))
    return found


def main() -> None:
    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    dist.init_process_group("gloo")
    work(folder, rank, int(os.environ["WORLD_SIZE"]))
    models = {count: repaired(count) for count in REPAIRED_WITH}
    gc.collect()  # what holds the group goes before it, in all processes
    dist.barrier()
    dist.destroy_process_group()
    for count, model in models.items():  # without a group, so that each process writes its own
        model.save_pretrained(folder / "repaired" / str(count) / rank)


def work(folder: Path, rank: str, processes: int) -> None:
    """What all do, whether alone or together."""
    writes: list[str] = []
    write = checkpoint.write_files
    checkpoint.write_files = lambda model, path, *rest, **named: (
        writes.append(str(path)),
        write(model, path, *rest, **named),
    )[1]
    try:
        report, trained = _report(folder, rank, processes)
        hfprune.save(trained, folder / f"of-{processes}" / "saved")
    finally:
        checkpoint.write_files = write
    report["writes"] = len(writes)
    (folder / f"report-{rank}.json").write_text(json.dumps(report))


def _report(folder: Path, rank: str, processes: int) -> tuple[dict[str, object], PreTrainedModel]:
    """What was found but who writes, and the model that was trained last."""
    report = {"plans": plans(), "unlike": unlike_hardware(), "failures": failures(), "trained": {}}
    report["twice"] = train_twice(folder / f"of-{processes}", processes)
    for task in TASKS:
        report["trained"][task], trainer = train(task, folder / f"of-{processes}", processes)
        weights = trainer.accelerator.unwrap_model(trainer.model)
        save_file(weights.state_dict(), folder / f"{task}-{rank}.safetensors")
    return report, weights


if __name__ == "__main__":
    main()
