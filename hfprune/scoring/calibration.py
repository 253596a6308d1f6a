"""Calibration batches: a fixed number of samples from the user's data, drawn by a seed."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import PreTrainedModel

from hfprune.errors import CalibrationError
from hfprune.scoring.checks import (
    BatchesWithTokens,
    all_empty,
    check_batch,
    check_decoder_inputs,
    left_out_of,
    rows_of,
    slice_samples,
    warn_of_empty,
    with_tokens,
    without_empty,
)
from hfprune.scoring.rows import Batching, Collator, batches_of_rows, is_from_datasets, is_row, too_small
from hfprune.structure.arguments import FUNCTION, SEED, checked, optional, whole
from hfprune.structure.batches import Batch, count_samples, token_mask
from hfprune.structure.devices import plain_tensors
from hfprune.structure.running import outside_inference_mode
from hfprune.structure.store import sha256_of
from hfprune.structure.wrapping import unwrapped

if TYPE_CHECKING:
    import datasets

#: What scoring accepts as data: what `Trainer` accepts, and batches.
CalibrationData: TypeAlias = (
    "datasets.Dataset | datasets.IterableDataset | Dataset[Any] | DataLoader[Any] | Sequence[Mapping[str, Any]]"
)


@checked(
    samples=whole(least=1),
    batch_size=whole(least=1),
    batch_tokens=whole(least=1),
    seed=SEED,
    collator=optional(FUNCTION),
)
@outside_inference_mode
def calibration_batches(
    data: CalibrationData,
    model: PreTrainedModel,
    *,
    samples: int = 512,
    batch_size: int = 32,
    batch_tokens: int = 512,
    seed: int = 0,
    collator: Collator | None = None,
    needs_labels: bool = False,
) -> list[Batch]:
    """Draw a fixed number of samples and put them into batches.

    Args:
        data: What `Trainer` takes: a tokenized `datasets.Dataset`, one with a transform, any data set of PyTorch, or a
            list of samples; or a DataLoader, or a list of batches (dicts of tensors). Of a data set that can only be
            gone through, the first samples are taken.
        model: The model that will get the batches; columns that its `forward` does not take are left out.
        samples: The number of samples to draw. A list of batches is used as a whole, whatever this number is. Samples
            without any token are left out, with a warning that says how many.
        batch_size: The most samples in a batch, for a data set.
        batch_tokens: The most tokens in a batch, padding included, for a data set. A longer sample is alone in its
            batch. This bounds the memory of scoring, while a GPU is used better with more tokens. Scores depend on it
            only through what is drawn at random.
        seed: Chooses the samples of a data set.
        collator: Makes a batch from a list of samples, for a data set. None: `transformers.default_data_collator`,
            which does not pad. One that calls a processor gets all columns, if the model takes none of them.
        needs_labels: Whether labels that no batch can be made of (texts, None, lists of different lengths) are an
            error. Without it they are left out, with a warning.

    Returns:
        The batches, on the CPU. Those of a data set go from the shortest samples to the longest. The list also knows
        how many samples were left out, for the record of `prune`.

    Raises:
        CalibrationError: The data is empty, too small, not tokenized, or of an unknown kind, or a batch cannot be used.

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
    model = unwrapped(model)
    how = Batching(
        samples=samples,
        batch_size=batch_size,
        batch_tokens=batch_tokens,
        seed=seed,
        collator=collator,
        needs_labels=needs_labels,
    )
    given: Sequence[Any]
    if isinstance(data, DataLoader):
        batches = _first_batches(data, model, how)
    else:
        if _has_rows(data, model):
            given, left_out = batches_of_rows(data, model, how)
        else:
            given = data  # type: ignore[assignment]
            left_out = left_out_of(given)
        batches = without_empty([check_batch(batch, model, needs_labels=needs_labels) for batch in given])
        batches.left_out += left_out
    if not batches:
        raise too_small(0, samples)
    check_decoder_inputs(batches, model)
    return batches


def _has_rows(data: Any, model: PreTrainedModel) -> bool:
    """Whether data is of rows, which need a collator, and not of batches."""
    if isinstance(data, Sequence) and not isinstance(data, str):
        return len(data) > 0 and is_row(data[0], model)
    if isinstance(data, Mapping):
        raise CalibrationError(
            f"calibration data is one data set, not a {type(data).__name__} of {', '.join(map(str, data))}. Choose a "
            "split (data['train']), or put a batch into a list: [batch]."
        )
    has_numbers = hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, str)
    if has_numbers or isinstance(data, IterableDataset) or is_from_datasets(data, "IterableDataset"):
        return True
    raise CalibrationError(
        "calibration data is a data set (datasets.Dataset, torch.utils.data.Dataset, a list of samples), a DataLoader "
        f"or a list of batches, not {type(data).__name__}."
    )


def _first_batches(loader: Iterable[Batch], model: PreTrainedModel, how: Batching) -> BatchesWithTokens:
    """The first batches of a loader, up to a number of samples; the last batch is shortened to fit."""
    batches: list[Batch] = []
    missing = how.samples
    empty = 0
    with plain_tensors():
        for batch in loader:
            batch, empty_here = with_tokens(check_batch(batch, model, needs_labels=how.needs_labels))
            empty += empty_here
            if not rows_of(batch):
                continue
            if count_samples(batch) > missing:
                batch = _shortened(batch, missing)
            batches.append(batch)
            missing -= count_samples(batch)
            if missing <= 0:
                break
    # data that is large enough but for what is empty is used, and a warning says what was empty
    if missing > empty:
        raise too_small(how.samples - missing, how.samples)
    if not batches:
        raise all_empty(empty)
    warn_of_empty(empty)
    return BatchesWithTokens(batches, empty)


def _shortened(batch: Batch, samples: int) -> Batch:
    """The first samples of a batch. The choices of a question stay together, so there may be a few more."""
    rows = rows_of(batch)
    # rounded up
    kept_rows = -(-samples * rows // count_samples(batch))
    return slice_samples(batch, range(kept_rows))


def total_samples(batches: Sequence[Batch]) -> int:
    """How many samples batches hold together.

    >>> import torch
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
        the ids as 64-bit integers, batch by batch); where samples without a token were left out, `left_out`, their
        number.

    Examples:
        >>> import torch
        >>> batch = {"input_ids": torch.ones(2, 3), "attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0]])}
        >>> description = describe([batch])
        >>> description["samples"], description["tokens"], description["digest"][:12]
        (2, 4, '334658f17798')
    """
    about: dict[str, Any] = {"samples": total_samples(batches)}
    left_out = left_out_of(batches)
    if left_out:
        about["left_out"] = left_out
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
