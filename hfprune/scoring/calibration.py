"""Calibration batches: seeded, of a fixed number of samples, from whatever holds the user's data."""

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
from hfprune.structure.batches import LABELS, Batch, count_samples, refuse_head_mask, token_mask
from hfprune.structure.devices import check_tokens

#: What scoring accepts as data.
CalibrationData: TypeAlias = Dataset | DataLoader[Any] | Sequence[Batch]
Row: TypeAlias = dict[str, Any]
Collator: TypeAlias = Callable[[list[dict[str, Any]]], Batch]


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
    """Draw a fixed number of samples and batch them.

    Args:
        data: A tokenized `datasets.Dataset`, a DataLoader, or a list of batches (dicts of tensors).
        model: The model that will see the batches; columns that its `forward` does not take are left out.
        samples: How many samples to draw. A list of batches is used whole, whatever this says.
        batch_size: The most samples in a batch, for a Dataset.
        batch_tokens: The most tokens in a batch, padding included, for a Dataset; a longer sample is a batch alone. It
            bounds the memory of scoring, and of the scores changes only what is drawn at random; a GPU is busier with
            more.
        seed: Chooses the samples of a Dataset.
        collator: Makes a batch of a list of rows, for a Dataset; `transformers.default_data_collator` if not given,
            which does not pad.

    Returns:
        The batches, on the CPU; those of a Dataset from the shortest samples to the longest.

    Raises:
        CalibrationError: The data is empty, too small, not tokenized, or of a kind that is not understood.
    """
    if min(samples, batch_size, batch_tokens) < 1:
        raise CalibrationError(
            f"samples, batch_size and batch_tokens must be at least 1, got {samples}, {batch_size} and {batch_tokens}."
        )
    if isinstance(data, Dataset):
        rows = _drawn(data, model, samples, seed)
        batches = _collated(rows, batch_size, batch_tokens, collator or default_data_collator)
    elif isinstance(data, DataLoader):
        batches = _take(data, model, samples)
    elif isinstance(data, Sequence) and not isinstance(data, str):
        batches, samples = list(data), 1
    else:
        raise CalibrationError(
            f"calibration data is a datasets.Dataset, a DataLoader or a list of batches, not {type(data).__name__}."
        )
    batches = [check_batch(batch, model) for batch in batches]
    found = sum(count_samples(batch) for batch in batches)
    if found < samples:
        raise _too_small(found, samples)
    return batches


def _too_small(found: int, samples: int) -> CalibrationError:
    if found == 0:
        return CalibrationError("the calibration data is empty: scoring needs at least one sample.")
    return CalibrationError(
        f"calibration needs {samples} samples, the data has {found}. "
        f"Pass more data, or set calibration_samples={found} (fewer than about 100 make noisy scores)."
    )


def _drawn(data: Dataset, model: PreTrainedModel, samples: int, seed: int) -> list[Row]:
    """Samples chosen by the seed, from the shortest to the longest."""
    if len(data) < samples:
        raise _too_small(len(data), samples)
    wanted = {*_parameters(model), "label", "label_ids"}
    rows = data.remove_columns([name for name in data.column_names if name not in wanted])
    if not {*rows.column_names} - {*LABELS, "label", "label_ids"}:
        raise CalibrationError(
            f"no column of the data set but labels is an argument of {type(model).__name__}.forward: it has "
            f"{', '.join(data.column_names)}. Tokenize it first: dataset.map(lambda row: tokenizer(row['text'], "
            "truncation=True))."
        )
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:samples].tolist()
    # Samples do not mix, so batches of like lengths give the same scores with the least padding.
    return sorted(rows.select(order), key=_length)


def _length(row: Row) -> int:
    """Tokens of a sample, of all its choices together where it is a multiple choice."""
    ids = row.get("input_ids", ())
    nested = len(ids) > 0 and (isinstance(ids[0], list) or getattr(ids[0], "ndim", 0) > 0)
    return (sum(len(choice) for choice in ids) if nested else len(ids)) or 1


def _collated(rows: list[Row], batch_size: int, batch_tokens: int, collator: Collator) -> list[Batch]:
    groups: list[list[Row]] = [[]]
    for row in rows:
        if len(groups[-1]) == batch_size or (groups[-1] and (len(groups[-1]) + 1) * _length(row) > batch_tokens):
            groups.append([])
        groups[-1].append(row)
    return [collate(group, collator) for group in groups]


def collate(rows: list[Row], collator: Collator) -> Batch:
    """A batch of rows.

    Args:
        rows: The rows.
        collator: Makes the batch.

    Returns:
        The batch.

    Raises:
        CalibrationError: The collator could not make one.
    """
    try:
        return collator(rows)
    except ValueError as error:
        advice = ""
        if collator is default_data_collator:
            advice = " Rows of different lengths need padding: pass collator=DataCollatorWithPadding(tokenizer)."
        raise CalibrationError(f"the collator could not make a batch: {error}{advice}") from error


def _take(loader: Iterable[Batch], model: PreTrainedModel, samples: int) -> list[Batch]:
    batches: list[Batch] = []
    found = 0
    for batch in loader:
        batch = check_batch(batch, model)
        if found + count_samples(batch) > samples:
            rows = next(len(value) for value in batch.values() if isinstance(value, Tensor) and value.ndim)
            keep = -(-(samples - found) * rows // count_samples(batch))  # the choices of a question stay together
            batch = {k: v[:keep] if isinstance(v, Tensor) and v.ndim else v for k, v in batch.items()}
        batches.append(dict(batch))
        found += count_samples(batch)
        if found >= samples:
            break
    return batches


def check_batches(batches: Sequence[Batch], model: PreTrainedModel, *, taker: str) -> list[Batch]:
    """`check_batch` for every batch of a list.

    Args:
        batches: At least one batch.
        model: The model.
        taker: The name of the function that takes them, for the message.

    Returns:
        The arguments of the model in each.

    Raises:
        CalibrationError: It is no list or is empty, or a batch cannot be used.
    """
    if not isinstance(batches, Sequence) or not batches:
        raise CalibrationError(
            f"{taker} takes a list of at least one batch; calibration_batches makes one of a data set or DataLoader."
        )
    return [check_batch(batch, model) for batch in batches]


def check_batch(batch: Batch, model: PreTrainedModel) -> Batch:
    """The arguments of the model in a batch; whatever its `forward` does not take is left out.

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
    parameters = _parameters(model)
    kept = {name: value for name, value in batch.items() if name in parameters}
    lists = [name for name, value in kept.items() if isinstance(value, list)]
    if lists:
        raise CalibrationError(
            f"{', '.join(lists)} in a batch is a list, not a tensor. Give the DataLoader a collate_fn that makes "
            "tensors, such as DataCollatorWithPadding(tokenizer), or call dataset.set_format('torch')."
        )
    if not any(isinstance(value, Tensor) for name, value in kept.items() if name not in LABELS):
        raise CalibrationError(
            f"a batch has no tensor beside labels that {type(model).__name__}.forward takes; its keys are "
            f"{', '.join(batch)}."
        )
    ids = kept.get("input_ids")
    if isinstance(ids, Tensor) and ids.numel():
        check_tokens(model, int(ids.max()))
    return kept


def _parameters(model: PreTrainedModel) -> set[str]:
    return {name for name, p in inspect.signature(model.forward).parameters.items() if p.kind is not p.VAR_KEYWORD}


def describe(batches: Sequence[Batch]) -> dict[str, Any]:
    """What a record says of calibration batches: samples, tokens, and a digest of the token ids.

    Args:
        batches: Dicts of tensors.

    Returns:
        `samples`, and where there are token ids `tokens` (padding apart, if there is a mask) and `digest` (SHA-256 of
        the ids as 64-bit integers, batch by batch).
    """
    found: dict[str, Any] = {"samples": sum(count_samples(batch) for batch in batches)}
    if all(isinstance(batch.get("input_ids"), Tensor) for batch in batches):
        masks = [token_mask(batch) for batch in batches]
        pairs = zip(batches, masks, strict=True)
        found["tokens"] = sum(b["input_ids"].numel() if mask is None else int(mask.sum()) for b, mask in pairs)
        digest = hashlib.sha256()
        for batch in batches:
            digest.update(batch["input_ids"].long().cpu().numpy().tobytes())
        found["digest"] = digest.hexdigest()
    return found
