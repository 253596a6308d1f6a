"""Rows: the samples of a data set, before a collator makes batches of them."""

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import PreTrainedModel, default_data_collator

from hfprune.errors import CalibrationError
from hfprune.scoring.checks import (
    DIMENSIONS,
    NEEDED_LABELS,
    all_empty,
    rows_of,
    slice_samples,
    unusable_label,
    warn_of_empty,
)
from hfprune.structure.batches import LABELS, Batch
from hfprune.structure.devices import plain_tensors
from hfprune.structure.wrapping import argument_names

logger = logging.getLogger(__name__)
#: A row of a data set.
Row: TypeAlias = dict[str, Any]
#: Makes a batch from a list of rows.
Collator: TypeAlias = Callable[[list[dict[str, Any]]], Batch]
#: Columns of labels that collators of transformers rename to `labels`.
LABEL_COLUMNS = ("label", "label_ids")
_ALL_LABELS = frozenset((*LABELS, *LABEL_COLUMNS))
#: What collators raise over rows that they cannot use.
_COLLATOR_ERRORS = (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError)


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How batches are made of rows.

    Attributes:
        samples: How many rows to draw.
        batch_size: The most samples in a batch.
        batch_tokens: The most tokens in a batch, padding included.
        seed: Chooses the rows.
        collator: Makes a batch of rows; None: `default_data_collator`.
        needs_labels: Whether labels that no batch can be made of are an error; else they are left out.
    """

    samples: int
    batch_size: int
    batch_tokens: int
    seed: int
    collator: Collator | None
    needs_labels: bool


def batches_of_rows(data: Any, model: PreTrainedModel, how: Batching) -> tuple[list[Batch], int]:
    """Draw rows of a data set, and collate them from the shortest to the longest.

    Args:
        data: A data set with a length and rows by number, or one to go through, of which the first rows are taken.
        model: The model. Columns that it does not take are left out before collating, unless it takes none, or the
            collator asks for one of them.
        how: How many rows, and how batches are made of them.

    Returns:
        The batches, and how many rows without a token were left out.

    Raises:
        CalibrationError: There are too few rows, no column that the model takes, or the collator failed.
    """
    try:
        rows, empty = _drawn(_without_columns(data, model, how), how)
        return _collated(_taken(rows, model, how), model, how), empty
    except CalibrationError as error:
        cause = error.__cause__
        asks_for = cause.args[0] if isinstance(cause, KeyError) and cause.args else None
        columns = getattr(data, "column_names", None) or _columns_of_rows(data)
        # a collator that calls a processor needs columns that the model knows nothing of
        if how.collator is None or asks_for not in columns:
            raise
    rows, empty = _drawn(data, how)
    return _collated(rows, model, how), empty


def is_from_datasets(data: object, name: str) -> bool:
    """Whether data is of a class of the package `datasets`, which `import hfprune` does not import.

    Args:
        data: Anything.
        name: The name of the class.

    Returns:
        Whether it is.
    """
    # whoever has such an object has imported the package
    package = sys.modules.get("datasets")
    return package is not None and isinstance(data, getattr(package, name))


def _columns_of_rows(data: Any) -> list[str]:
    """The columns of a data set that does not list them, by its first row."""
    first = next(iter(data), None) if isinstance(data, Iterable) else None
    return list(first) if isinstance(first, Mapping) else []


def _without_columns(data: Any, model: PreTrainedModel, how: Batching) -> Any:
    """A stored data set without the columns that the model does not take: pictures need not be read for nothing."""
    if not is_from_datasets(data, "Dataset") or data.format["type"] == "custom":
        # the columns of a data set with a transform are known only once it has run
        return data
    taken = _taken_names(data.column_names, model, how)
    return data.remove_columns([name for name in data.column_names if name not in taken])


def _taken_names(columns: Sequence[str], model: PreTrainedModel, how: Batching) -> set[str]:
    """The columns to hand to the collator: arguments of the model, and labels; all if no input is among them."""
    usable = {*argument_names(model), *LABEL_COLUMNS}.intersection(columns)
    if usable - _ALL_LABELS:
        return usable
    if how.collator is None:
        raise CalibrationError(
            f"no column of the data set but labels is an argument of {type(model).__name__}.forward: it has "
            f"{', '.join(columns)}. Tokenize it first: dataset.map(lambda row: tokenizer(row['text'], "
            "truncation=True)); or pass a collator that makes batches of these columns."
        )
    return set(columns)


def _taken(rows: list[Row], model: PreTrainedModel, how: Batching) -> list[Row]:
    """Rows with only those columns."""
    if not rows:
        return rows
    names = _taken_names(list(rows[0]), model, how)
    return [{name: value for name, value in row.items() if name in names} for row in rows]


def too_small(available: int, needed: int) -> CalibrationError:
    """The error for data with too few samples."""
    if available == 0:
        return CalibrationError("the calibration data is empty: scoring needs at least one sample.")
    return CalibrationError(
        f"calibration needs {needed} samples, the data has {available}. "
        f"Pass more data, or set calibration_samples={available} (fewer than about 100 make noisy scores)."
    )


def _drawn(data: Any, how: Batching) -> tuple[list[Row], int]:
    """Rows with a token, chosen by the seed or the first of a data set without numbers; and how many had none."""
    rows: list[Row] = []
    empty = 0
    seen = 0
    with plain_tensors():
        for row in _in_drawn_order(data, how):
            seen += 1
            if is_empty(row):
                empty += 1
            else:
                rows.append(row)
            if len(rows) == how.samples:
                break
    # the data is large enough but for what is empty, which is said
    if seen < how.samples:
        raise too_small(seen, how.samples)
    if not rows:
        raise all_empty(empty)
    warn_of_empty(empty)
    return rows, empty


def _in_drawn_order(data: Any, how: Batching) -> Iterator[Row]:
    # data sets of PyTorch that are gone through have a `__getitem__` that only raises
    if isinstance(data, IterableDataset) or not hasattr(data, "__getitem__"):
        yield from map(_as_row, data)
        return
    if len(data) < how.samples:
        raise too_small(len(data), how.samples)
    generator = torch.Generator().manual_seed(how.seed)
    for index in torch.randperm(len(data), dtype=torch.long, device="cpu", generator=generator).tolist():
        yield _as_row(data[index])


def _as_row(row: Any) -> Row:
    if isinstance(row, Mapping):
        return dict(row)
    # such as the InputFeatures of transformers, which its collators take too
    if hasattr(row, "__dict__") and not isinstance(row, Tensor):
        return dict(vars(row))
    raise CalibrationError(
        f"a row of the data set must be a dict of the model's arguments, got {type(row).__name__}. Let the data set "
        "give {'input_ids': ..., 'attention_mask': ...} for every sample."
    )


def is_empty(row: Row) -> bool:
    """Whether a row has token ids, but no token that counts.

    Args:
        row: The row.

    Returns:
        Whether it has none, or its mask is of zeros only.

    Examples:
        >>> is_empty({"input_ids": []}), is_empty({"input_ids": [1, 1], "attention_mask": [0, 0]})
        (True, True)
    """
    ids = row.get("input_ids")
    if ids is None:
        return False
    if tokens_of(row, least=0) == 0:
        return True
    mask = row.get("attention_mask")
    if mask is None or dimensions_of(mask) != 1:
        return False
    return not any(bool(value) for value in mask)


def dimensions_of(value: Any) -> int:
    """How many dimensions a tensor, an array or a nested list has; 0 for anything else.

    >>> dimensions_of([[1, 2], [3]]), dimensions_of(torch.zeros(3)), dimensions_of("text")
    (2, 1, 0)
    """
    if isinstance(value, (Tensor, np.ndarray)):
        return value.ndim
    if isinstance(value, (list, tuple)):
        return 1 + (dimensions_of(value[0]) if value else 0)
    return 0


def tokens_of(row: Row, *, least: int = 1) -> int:
    """The tokens of a sample; of a multiple choice, the tokens of all its choices together.

    Args:
        row: The sample.
        least: What a sample counts at least: one without text, such as a picture, counts as one token.

    Returns:
        The number.
    """
    ids = row.get("input_ids", ())
    if len(ids) == 0:
        return least
    if dimensions_of(ids) > 1:
        return max(sum(len(choice) for choice in ids), least)
    return len(ids)


def is_row(element: object, model: PreTrainedModel) -> bool:
    """Whether an element of a list is a row of a data set, and not a batch.

    Args:
        element: The element.
        model: The model.

    Returns:
        Whether its inputs lack the dimension of samples, or are no tensors.
    """
    if not isinstance(element, Mapping):
        return False
    for name in (model.main_input_name, *DIMENSIONS):
        if name in element and name in DIMENSIONS:
            dimensions = DIMENSIONS[name]
            # a batch is of tensors, so lists of lists are the choices of one question
            if isinstance(element[name], (list, tuple)) and "MultipleChoice" in type(model).__name__:
                return True
            return dimensions_of(element[name]) < dimensions
    return not any(isinstance(value, (Tensor, np.ndarray)) for value in element.values())


def _collated(rows: list[Row], model: PreTrainedModel, how: Batching) -> list[Batch]:
    """Batches of rows. Labels that cannot be collated are left out where nobody needs them."""
    # samples do not affect each other, so sorting by length changes no score and needs the least padding
    groups = _grouped(sorted(rows, key=tokens_of), how)
    collator = how.collator or default_data_collator
    try:
        batches = [collate(group, collator) for group in groups]
        if how.needs_labels and not all(map(_has_labels, batches)):
            _check_labels_of(rows)
    except CalibrationError as error:
        labels = _ALL_LABELS.intersection(rows[0])
        if how.needs_labels:
            _check_labels_of(rows, error)
        if how.needs_labels or not labels or model.config.is_encoder_decoder:
            raise
        try:
            batches = [collate(_without_labels(group), collator) for group in groups]
        except CalibrationError:
            # labels are not what the collator stumbles over
            raise error from error.__cause__
        names = ", ".join(sorted(labels))
        logger.warning("%s left out, as no label is needed: with them, %s", names, error)
    if "input_ids" in rows[0]:
        return batches
    limited: list[Batch] = []
    for batch in batches:
        limited += _limited(batch, how)
    return limited


def _has_labels(batch: Batch) -> bool:
    """Whether a collator gave a batch labels; the default one leaves out those that are no numbers."""
    return isinstance(batch, Mapping) and any(name in batch for name in LABELS)


def _check_labels_of(rows: Sequence[Row], error: CalibrationError | None = None) -> None:
    """Say what is wrong with the labels of rows, of which no collator can make a batch of labels.

    Args:
        rows: The rows.
        error: What the collator failed with, if it did. Without labels that explain it, nothing is raised.

    Raises:
        CalibrationError: A label is None or a text; or labels are of different lengths, and the collator failed.
    """
    for name in sorted(_ALL_LABELS.intersection(rows[0])):
        lengths = set()
        for row in rows:
            label: Any = row.get(name)
            what = unusable_label(label)
            if what is not None:
                raise CalibrationError(
                    f"the collator could not make a batch with {name}: of a sample, it is {what}. {NEEDED_LABELS}"
                ) from error
            if dimensions_of(label):
                lengths.add(len(label))
        if error is not None and len(lengths) > 1:
            raise CalibrationError(
                f"the collator could not make a batch: {name} are of {min(lengths)} to {max(lengths)} entries a "
                "sample. Labels of tokens need padding: pass collator=DataCollatorForTokenClassification(tokenizer); "
                "several labels of a sample need 0 or 1 for each class."
            ) from error


def _without_labels(rows: list[Row]) -> list[Row]:
    return [{name: value for name, value in row.items() if name not in _ALL_LABELS} for row in rows]


def _grouped(rows: list[Row], how: Batching) -> list[list[Row]]:
    """Groups of consecutive rows, which must be sorted by length."""
    groups: list[list[Row]] = [[]]
    for row in rows:
        is_full = len(groups[-1]) == how.batch_size
        # the new row is the longest so far, and the others are padded to its length
        padded_tokens = (len(groups[-1]) + 1) * tokens_of(row)
        if is_full or (groups[-1] and padded_tokens > how.batch_tokens):
            groups.append([])
        groups[-1].append(row)
    return groups


def _limited(batch: Batch, how: Batching) -> list[Batch]:
    """A batch in parts of no more than `batch_tokens`: of raw rows, only the collator finds out how long they are."""
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
    if not isinstance(ids, Tensor) or ids.numel() <= how.batch_tokens or len(ids) < 2:
        return [batch]
    at_once = max(1, how.batch_tokens * len(ids) // ids.numel())
    places = range(rows_of(batch))
    return [slice_samples(batch, places[start : start + at_once]) for start in range(0, len(places), at_once)]


def collate(rows: list[Row], collator: Collator) -> Batch:
    """Make a batch from rows.

    Args:
        rows: The rows; they stay as they are.
        collator: Makes the batch.

    Returns:
        The batch.

    Raises:
        CalibrationError: The collator failed.
    """
    try:
        with plain_tensors():
            # collators may change the rows that they get
            return collator([dict(row) for row in rows])
    except _COLLATOR_ERRORS as error:
        advice = ""
        if collator is default_data_collator:
            advice = " Rows of different lengths need padding: pass collator=DataCollatorWithPadding(tokenizer)."
        what = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise CalibrationError(f"the collator could not make a batch: {what}{advice}") from error
