"""What the teacher says: its logits beside the data, computed once; outputs of attention blocks while it runs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from datasets import Dataset
from datasets.fingerprint import Hasher
from torch import Tensor, nn
from transformers import PreTrainedModel, default_data_collator

from hfprune.scoring.calibration import Collator, check_batch
from hfprune.structure.gates import frozen, inputs_of
from hfprune.structure.kept import sha256_of

#: The column of cached logits.
TEACHER_LOGITS = "teacher_logits"


def add_teacher_logits(
    data: Dataset, teacher: PreTrainedModel, *, collator: Collator | None = None, batch_size: int = 64
) -> Dataset:
    """Run the teacher once over a data set and keep its logits there, so that recovery need not run it every epoch.

    `RecoveryTrainer` finds the column and does without the teacher, if only `logits_weight` asks for one. The result
    is cached like any `Dataset.map`: the same data and the same weights are not run again.

    Args:
        data: A tokenized data set.
        teacher: A model with one vector of logits a sample.
        collator: Makes a batch of rows; `DataCollatorWithPadding(tokenizer)` pads.
        batch_size: Samples in a batch.

    Returns:
        The data set with a column `teacher_logits`, `(classes,)` float32 each.

    Raises:
        ValueError: The teacher gives logits token by token, which are too large to keep, or none.
        CalibrationError: No column is an argument of the teacher.
    """
    collate = collator or default_data_collator

    taken = [name for name in data.column_names if name in ("input_ids", "attention_mask", "token_type_ids")]

    def run(columns: dict[str, list[Any]]) -> dict[str, list[list[float]]]:
        names = taken or list(columns)
        rows = [dict(zip(names, row, strict=True)) for row in zip(*(columns[n] for n in names), strict=True)]
        batch = check_batch(collate(rows), teacher)
        with torch.no_grad():
            logits = teacher(**inputs_of(teacher, batch)).get("logits")
        if logits is None or logits.ndim != 2:
            shape = "no logits" if logits is None else f"logits of shape {tuple(logits.shape)}"
            raise ValueError(
                f"{type(teacher).__name__} gives {shape}; only `(samples, classes)` is kept beside the data. Pass the "
                "teacher to RecoveryTrainer instead."
            )
        return {TEACHER_LOGITS: logits.float().cpu().tolist()}

    with frozen(teacher):
        return data.map(
            run,
            batched=True,
            batch_size=batch_size,
            desc="Teacher logits",
            new_fingerprint=Hasher.hash((data._fingerprint, sha256_of(teacher.state_dict()))),
        )


@contextmanager
def outputs_of(model: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect what modules put out, inside the `with`.

    Args:
        model: The model.
        paths: Of modules, relative to `model`.

    Yields:
        By path, what the module put out last.

    Raises:
        ValueError: A model has no such module.
    """
    found: dict[str, Tensor] = {}

    def keep(path: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(_: nn.Module, __: object, output: Tensor) -> None:
            found[path] = output

        return hook

    with ExitStack() as stack:
        for path in paths:
            try:
                model.get_submodule(path)
            except AttributeError:
                raise ValueError(
                    f"{type(model).__name__} has no {path!r}, whose output is to be compared. Set "
                    "attention_outputs_weight=0, or use the dense model that was pruned as teacher."
                ) from None
            stack.callback(model.get_submodule(path).register_forward_hook(keep(path)).remove)
        yield found
