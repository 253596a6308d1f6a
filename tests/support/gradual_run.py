"""A gradual pruning in a process of its own, or in several (torchrun): a global batch of 8 without dropout."""

import argparse
import copy
import os
import time
from pathlib import Path

import torch
from transformers import TrainerCallback, set_seed

import hfprune
from hfprune import GradualPruning, PruningConfig
from tests.support.tiny import tiny_model
from tests.support.training import arguments, trainer_of


class Slow(TrainerCallback):
    """Leaves time to be killed."""

    def on_step_end(self, args, state, control, **kwargs):
        time.sleep(0.2)


def run(folder: Path, *, slow: bool = False, resume: str | None = None) -> None:
    """Train and prune, from the start or a checkpoint, and save the result as `folder/small`."""
    set_seed(0)
    dense = tiny_model("bert", num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    args = arguments(
        folder,
        num_train_epochs=8,
        per_device_train_batch_size=8 // int(os.environ.get("WORLD_SIZE", "1")),
        train_sampling_strategy="sequential",
        save_strategy="steps",
        save_steps=4,
        seed=1,
    )
    pruning = GradualPruning(PruningConfig(sparsity=0.6, sequence_length=8), every=3)
    callbacks = [pruning, *([Slow()] if slow else [])]
    trainer = trainer_of(copy.deepcopy(dense), dense, args, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    if trainer.is_world_process_zero():
        hfprune.save(trainer.model, folder / "small")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--slow", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    run(options.folder, slow=options.slow)


if __name__ == "__main__":
    main()
