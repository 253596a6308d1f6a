"""Calibration batches: a fixed number of samples from the user's data, drawn by a seed."""

import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, default_data_collator

from hfprune.errors import CalibrationError
from hfprune.structure.arguments import FUNCTION, SEED, checked, optional, whole
from hfprune.structure.batches import LABELS, Batch, count_samples, refuse_head_mask, token_mask
from hfprune.structure.devices import check_tokens
from hfprune.structure.store import sha256_of

#: What scoring accepts as data.
CalibrationData: TypeAlias = Dataset | DataLoader[Any] | Sequence[Batch]
#: A row of a data set.
Row: TypeAlias = dict[str, Any]
#: Makes a batch from a list of rows.
Collator: TypeAlias = Callable[[list[dict[str, Any]]], Batch]
#: Columns of labels that collators of transformers rename to `labels`.
_LABEL_COLUMNS = ("label", "label_ids")


@checked(
    samples=whole(least=1),
    batch_size=whole(least=1),
    batch_tokens=whole(least=1),
    seed=SEED,
    collator=optional(FUNCTION),
)
def calibration_batches(
    data: CalibrationData,
    model: PreTrainedModel,
    *,
    samples: int = 512,
    batch_size: int = 32,
    batch_tokens: int = 512,
    seed: int = 0,
    collator: Collator | None = None,
) -> list[Batch]:
    """Draw a fixed number of samples and put them into batches.

    Args:
        data: A tokenized `datasets.Dataset`, a DataLoader, or a list of batches (dicts of tensors).
        model: The model that will get the batches; columns that its `forward` does not take are left out.
        samples: The number of samples to draw. A list of batches is used as a whole, whatever this number is.
        batch_size: The most samples in a batch, for a Dataset.
        batch_tokens: The most tokens in a batch, padding included, for a Dataset. A longer sample is alone in its
            batch. This bounds the memory of scoring, while a GPU is used better with more tokens. Scores depend on it
            only through what is drawn at random.
        seed: Chooses the samples of a Dataset.
        collator: Makes a batch from a list of rows, for a Dataset. None: `transformers.default_data_collator`, which
            does not pad.

    Returns:
        The batches, on the CPU. Those of a Dataset go from the shortest samples to the longest.

    Raises:
        CalibrationError: The data is empty, too small, not tokenized, or of an unknown kind.

    Examples:
        >>> from hfprune.scoring import calibration_batches
        >>> for batch in calibration_batches(dataset, dense, samples=6, batch_size=4, collator=collator):
        ...     print({name: tuple(value.shape) for name, value in batch.items()})
        {'input_ids': (4, 6), 'attention_mask': (4, 6), 'labels': (4,)}
        {'input_ids': (2, 6), 'attention_mask': (2, 6), 'labels': (2,)}
    """
    if min(samples, batch_size, batch_tokens) < 1:
        raise CalibrationError(
            f"samples, batch_size and batch_tokens must be at least 1, got {samples}, {batch_size} and {batch_tokens}."
        )
    needed_samples = samples
    if isinstance(data, Dataset):
        rows = _drawn_rows(data, model, samples, seed)
        batches = _collated(rows, batch_size, batch_tokens, collator or default_data_collator)
    elif isinstance(data, DataLoader):
        batches = _first_batches(data, model, samples)
    elif isinstance(data, Sequence) and not isinstance(data, str):
        batches = list(data)
        needed_samples = 1
    else:
        raise CalibrationError(
            f"calibration data is a datasets.Dataset, a DataLoader or a list of batches, not {type(data).__name__}."
        )
    batches = [check_batch(batch, model) for batch in batches]
    drawn_samples = total_samples(batches)
    if drawn_samples < needed_samples:
        raise _too_small(drawn_samples, needed_samples)
    return batches


def _too_small(available: int, needed: int) -> CalibrationError:
    if available == 0:
        return CalibrationError("the calibration data is empty: scoring needs at least one sample.")
    return CalibrationError(
        f"calibration needs {needed} samples, the data has {available}. "
        f"Pass more data, or set calibration_samples={available} (fewer than about 100 make noisy scores)."
    )


def _drawn_rows(data: Dataset, model: PreTrainedModel, samples: int, seed: int) -> list[Row]:
    """Rows chosen by the seed, from the shortest to the longest, with only the columns that the model takes."""
    if len(data) < samples:
        raise _too_small(len(data), samples)
    usable = {*_argument_names(model), *_LABEL_COLUMNS}
    rows = data.remove_columns([name for name in data.column_names if name not in usable])
    if not {*rows.column_names} - {*LABELS, *_LABEL_COLUMNS}:
        raise CalibrationError(
            f"no column of the data set but labels is an argument of {type(model).__name__}.forward: it has "
            f"{', '.join(data.column_names)}. Tokenize it first: dataset.map(lambda row: tokenizer(row['text'], "
            "truncation=True))."
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(rows), generator=generator)[:samples].tolist()
    # samples do not affect each other, so sorting by length changes no score and needs the least padding
    return sorted(rows.select(order), key=_length)


def _length(row: Row) -> int:
    """The tokens of a sample; of a multiple choice, the tokens of all its choices together. At least 1."""
    ids = row.get("input_ids", ())
    # a sample without text, such as a picture, counts as one token
    if len(ids) == 0:
        return 1
    has_choices = isinstance(ids[0], list) or getattr(ids[0], "ndim", 0) > 0
    if has_choices:
        return sum(len(choice) for choice in ids) or 1
    return len(ids)


def _collated(rows: list[Row], batch_size: int, batch_tokens: int, collator: Collator) -> list[Batch]:
    """Batches of consecutive rows, which must be sorted by length."""
    groups: list[list[Row]] = [[]]
    for row in rows:
        is_full = len(groups[-1]) == batch_size
        # the new row is the longest so far, and the others are padded to its length
        padded_tokens = (len(groups[-1]) + 1) * _length(row)
        if is_full or (groups[-1] and padded_tokens > batch_tokens):
            groups.append([])
        groups[-1].append(row)
    return [collate(group, collator) for group in groups]


def collate(rows: list[Row], collator: Collator) -> Batch:
    """Make a batch from rows.

    Args:
        rows: The rows.
        collator: Makes the batch.

    Returns:
        The batch.

    Raises:
        CalibrationError: The collator failed.
    """
    try:
        return collator(rows)
    except ValueError as error:
        advice = ""
        if collator is default_data_collator:
            advice = " Rows of different lengths need padding: pass collator=DataCollatorWithPadding(tokenizer)."
        raise CalibrationError(f"the collator could not make a batch: {error}{advice}") from error


def _first_batches(loader: Iterable[Batch], model: PreTrainedModel, samples: int) -> list[Batch]:
    """The first batches of a loader, up to a number of samples; the last batch is shortened to fit."""
    batches: list[Batch] = []
    missing = samples
    for batch in loader:
        batch = check_batch(batch, model)
        if count_samples(batch) > missing:
            batch = _shortened(batch, missing)
        batches.append(dict(batch))
        missing -= count_samples(batch)
        if missing <= 0:
            break
    return batches


def _shortened(batch: Batch, samples: int) -> Batch:
    """The first samples of a batch. The choices of a question stay together, so there may be a few more."""
    rows = next(len(value) for value in batch.values() if isinstance(value, Tensor) and value.ndim)
    # rounded up
    kept_rows = -(-samples * rows // count_samples(batch))
    shortened = {}
    for name, value in batch.items():
        has_rows = isinstance(value, Tensor) and value.ndim
        shortened[name] = value[:kept_rows] if has_rows else value
    return shortened


def check_batches(batches: Sequence[Batch], model: PreTrainedModel, *, taker: str) -> list[Batch]:
    """`check_batch` for every batch of a list.

    Args:
        batches: At least one batch.
        model: The model.
        taker: The name of the function that was called with the batches, for the message.

    Returns:
        For each batch, the arguments of the model.

    Raises:
        CalibrationError: It is no list or is empty, or a batch cannot be used.
    """
    if not isinstance(batches, Sequence) or not batches:
        raise CalibrationError(
            f"{taker} takes a list of at least one batch; calibration_batches makes one of a data set or DataLoader."
        )
    return [check_batch(batch, model) for batch in batches]


def check_batch(batch: Batch, model: PreTrainedModel) -> Batch:
    """The arguments of the model in a batch, without all entries that its `forward` does not take.

    Args:
        batch: A dict of tensors.
        model: The model.

    Returns:
        The arguments.

    Raises:
        CalibrationError: It is not a dict, or holds no tensor that the model takes.
        ValueError: `head_mask` is in it, or token ids that the model has no embedding for.
    """
    if not isinstance(batch, Mapping):
        raise CalibrationError(f"a batch must be a dict of tensors, got {type(batch).__name__}.")
    refuse_head_mask(batch)
    names = _argument_names(model)
    arguments = {name: value for name, value in batch.items() if name in names}
    _check_tensors(arguments, batch, model)
    ids = arguments.get("input_ids")
    if isinstance(ids, Tensor) and ids.numel():
        check_tokens(model, int(ids.max()))
    return arguments


def _check_tensors(arguments: Batch, batch: Batch, model: PreTrainedModel) -> None:
    """Refuse arguments that are lists, and a batch with nothing but labels."""
    lists = [name for name, value in arguments.items() if isinstance(value, list)]
    if lists:
        raise CalibrationError(
            f"{', '.join(lists)} in a batch is a list, not a tensor. Give the DataLoader a collate_fn that makes "
            "tensors, such as DataCollatorWithPadding(tokenizer), or call dataset.set_format('torch')."
        )
    if not any(isinstance(value, Tensor) for name, value in arguments.items() if name not in LABELS):
        raise CalibrationError(
            f"a batch has no tensor beside labels that {type(model).__name__}.forward takes; its keys are "
            f"{', '.join(batch)}."
        )


def _argument_names(model: PreTrainedModel) -> set[str]:
    """The names of the arguments of a model's `forward`, without `**kwargs`."""
    parameters = inspect.signature(model.forward).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}


def total_samples(batches: Sequence[Batch]) -> int:
    """How many samples batches hold together.

    >>> total_samples([{"input_ids": torch.zeros(4, 7)}, {"input_ids": torch.zeros(2, 9)}])
    6
    """
    return sum(count_samples(batch) for batch in batches)


def describe(batches: Sequence[Batch]) -> dict[str, Any]:
    """The entry of a record about calibration batches: samples, tokens, and a digest of the token ids.

    Args:
        batches: Dicts of tensors.

    Returns:
        `samples`, and where there are token ids `tokens` (without padding, if there is a mask) and `digest` (SHA-256 of
        the ids as 64-bit integers, batch by batch).

    Examples:
        >>> batch = {"input_ids": torch.ones(2, 3), "attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0]])}
        >>> description = describe([batch])
        >>> description["samples"], description["tokens"], description["digest"][:12]
        (2, 4, '334658f17798')
    """
    about: dict[str, Any] = {"samples": total_samples(batches)}
    if not all(isinstance(batch.get("input_ids"), Tensor) for batch in batches):
        return about
    tokens = 0
    digest = hashlib.sha256()
    for batch in batches:
        ids = batch["input_ids"]
        mask = token_mask(batch)
        tokens += ids.numel() if mask is None else int(mask.sum())
        digest.update(ids.long().cpu().numpy().tobytes())
    about["tokens"] = tokens
    about["digest"] = digest.hexdigest()
    return about


def digest_of_batches(batches: Sequence[Batch]) -> str:
    """SHA-256 of all tensors of batches, with their names and the number of their batch.

    Args:
        batches: Dicts of tensors.

    Returns:
        Hexadecimal.
    """
    values = {}
    for index, batch in enumerate(batches):
        for name, value in batch.items():
            values[f"{index}.{name}"] = value
    return sha256_of(values)
