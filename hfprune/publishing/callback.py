"""A callback that adds plan, record and loader to every commit that a plain `Trainer` pushes."""

from pathlib import Path
from typing import Any

from accelerate.utils import extract_model_from_parallel
from transformers import PreTrainedModel, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hfprune.structure.modeling_pruned import PrunedModel, write_attachments, write_loader


class KeepPruningFiles(TrainerCallback):
    """Writes plan, record and loader beside the weights before `Trainer` pushes them.

    Use `Trainer(..., callbacks=[KeepPruningFiles()])` with `push_to_hub=True` and any `hub_strategy`.
    `RecoveryTrainer` does the same without it.

    Examples:
        `Trainer` calls it before every push:

        >>> from pathlib import Path
        >>> import hfprune
        >>> from transformers import TrainerState, TrainingArguments
        >>> from hfprune.publishing.callback import KeepPruningFiles
        >>> small = hfprune.prune(dense, dataset, config, collator=collator)
        >>> args = TrainingArguments("trained", use_cpu=True)
        >>> Path("trained").mkdir()
        >>> KeepPruningFiles().on_push_begin(args, TrainerState(), model=small)
        >>> sorted(file.name for file in Path("trained").iterdir())
        ['modeling_pruned.py', 'pruning_plan.json', 'pruning_record.json']
    """

    def on_push_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Write them into the folders that are uploaded."""
        if not state.is_world_process_zero:
            return
        model = extract_model_from_parallel(kwargs["model"])
        output = Path(args.output_dir)
        keep_files(model, output)
        # some strategies upload the last checkpoint too
        checkpoint = output / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if checkpoint.is_dir():
            keep_files(model, checkpoint)


def keep_files(model: PreTrainedModel, folder: Path) -> None:
    """Write plan, record and, where it is needed, the loader of a pruned model into the folder of its weights.

    Args:
        model: The model.
        folder: The folder.
    """
    write_attachments(model, folder)
    # plain transformers loads any other class without it
    if isinstance(model, PrunedModel):
        write_loader(folder)
