"""What a plain `Trainer` needs to keep our files in every commit that it pushes."""

from pathlib import Path
from typing import Any

from accelerate.utils import extract_model_from_parallel
from transformers import PreTrainedModel, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hfprune.structure.modeling_pruned import PrunedModel, write_attachments, write_loader


class KeepPruningFiles(TrainerCallback):
    """Puts plan, record and loader beside the weights before `Trainer` pushes; `RecoveryTrainer` does so by itself.

    `Trainer(..., callbacks=[KeepPruningFiles()])`, with `push_to_hub=True` and any `hub_strategy`.
    """

    def on_push_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Write them into what is uploaded: the output folder, and by some strategies that of the last checkpoint."""
        output = Path(args.output_dir)
        if state.is_world_process_zero:
            for folder in (output, output / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"):
                if folder == output or folder.is_dir():
                    keep_files(extract_model_from_parallel(kwargs["model"]), folder)


def keep_files(model: PreTrainedModel, folder: Path) -> None:
    """Write what belongs to a pruned model's weights into their folder.

    Args:
        model: The model.
        folder: The folder.
    """
    write_attachments(model, folder)
    if isinstance(model, PrunedModel):
        write_loader(folder)
