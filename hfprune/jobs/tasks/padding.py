"""Padding of rows whose labels are of different lengths, with what the teacher said of them once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hfprune.recovery.columns import TEACHER_COLUMNS, TEMPERATURE
from hfprune.scoring import Collator
from hfprune.structure.batches import Batch


@dataclass(frozen=True, kw_only=True)
class WithTeacherColumns:
    """A collator that also takes the columns that `teacher_top_k` writes, one vector for every label.

    Attributes:
        collator: Makes a batch of the other columns, with `labels` padded at the right.
    """

    collator: Collator

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        """Make a batch.

        Args:
            rows: The rows.

        Returns:
            The batch.
        """
        others = []
        for row in rows:
            others.append({name: value for name, value in row.items() if name not in TEACHER_COLUMNS})
        batch = dict(self.collator(others))
        for name in TEACHER_COLUMNS:
            if name in rows[0]:
                batch[name] = _collated(rows, name)
        return batch


def _collated(rows: Sequence[Mapping[str, Any]], name: str) -> Tensor:
    """What the teacher said, as one tensor."""
    values = []
    for row in rows:
        value = torch.as_tensor(row[name], dtype=None, device="cpu")
        # the teacher ran on padded rows, so there is more than the row has labels
        values.append(value if name == TEMPERATURE else value[: len(row["labels"])])
    return torch.stack(values) if name == TEMPERATURE else filled(values, 0)


def filled(values: Sequence[Sequence[Any] | Tensor], filling: int) -> Tensor:
    """Rows of different lengths as one tensor.

    Args:
        values: `(tokens, ...)` for every row.
        filling: What stands behind the shorter rows.

    Returns:
        `(rows, tokens of the longest row, ...)`.

    Examples:
        >>> filled([[5, 6], [7]], -100).tolist()
        [[5, 6], [7, -100]]
    """
    tensors = [torch.as_tensor(value, dtype=None, device="cpu") for value in values]
    longest = max(map(len, tensors))
    shape = (len(tensors), longest, *tensors[0].shape[1:])
    result = torch.full(shape, filling, dtype=tensors[0].dtype, device="cpu")
    for row, tensor in zip(result, tensors, strict=True):
        row[: len(tensor)] = tensor
    return result
