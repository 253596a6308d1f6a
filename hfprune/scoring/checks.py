"""Checks of batches before any of them runs: each mistake by its name, and not as an error from inside a model."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfprune.errors import CalibrationError, StructureError
from hfprune.structure.batches import LABELS, Batch, on_device, refuse_head_mask
from hfprune.structure.devices import check_tokens, input_device
from hfprune.structure.examples import learned_positions
from hfprune.structure.running import frozen, inputs_of, without_cache
from hfprune.structure.targets import check_target_texts
from hfprune.structure.wrapping import argument_names, unwrapped

logger = logging.getLogger(__name__)
#: The dimensions of an argument of a model for a batch; a row of a data set has one less.
DIMENSIONS = {"input_ids": 2, "input_values": 2, "input_features": 3, "inputs_embeds": 3, "pixel_values": 3}
#: Arguments with a row for each sample, next to those of `DIMENSIONS`.
_ROW_BY_ROW = ("attention_mask", "token_type_ids", "decoder_input_ids", "decoder_attention_mask", *LABELS)
#: What to do about labels that are no numbers.
NEEDED_LABELS = (
    "This scorer goes by the loss against the labels of the data. Number the classes as model.config.label2id does, "
    "leave out samples without a label, or use a scorer that needs none, such as residual_logit_fisher or kl_fisher."
)
#: Arguments that hold token ids.
_IDS = ("input_ids", "decoder_input_ids")


class BatchesWithTokens(list[Batch]):
    """Batches of samples with a token, which know how many samples had none.

    Attributes:
        left_out: How many samples without any token were left out.

    Args:
        batches: The batches.
        left_out: How many samples were left out.
    """

    def __init__(self, batches: Iterable[Batch], left_out: int) -> None:
        super().__init__(batches)
        self.left_out = left_out


def left_out_of(batches: Sequence[Batch]) -> int:
    """How many samples without any token were left out of batches, as far as these know it."""
    return batches.left_out if isinstance(batches, BatchesWithTokens) else 0


def check_batches(
    batches: Sequence[Batch], model: PreTrainedModel, *, taker: str, needs_labels: bool = False
) -> list[Batch]:
    """`check_batch` for every batch of a list; samples without any token are left out.

    Args:
        batches: At least one batch.
        model: The model.
        taker: The name of the function that was called with the batches, for the message.
        needs_labels: Whether labels that cannot be used are refused; else they are left out.

    Returns:
        For each batch with a token, the arguments of the model.

    Raises:
        CalibrationError: It is no list or is empty, or a batch cannot be used.
    """
    if not isinstance(batches, Sequence) or not batches:
        raise CalibrationError(
            f"{taker} takes a list of at least one batch; calibration_batches makes one of a data set or DataLoader."
        )
    model = unwrapped(model)
    checked = without_empty([check_batch(batch, model, needs_labels=needs_labels) for batch in batches])
    check_decoder_inputs(checked, model)
    return checked


def check_batch(batch: Batch, model: PreTrainedModel, *, needs_labels: bool = False) -> Batch:
    """The arguments of the model in a batch, without all entries that its `forward` does not take.

    Args:
        batch: A dict of tensors, or of arrays of NumPy.
        model: The model.
        needs_labels: Whether labels that are no tensor are refused; else they are left out.

    Returns:
        The arguments, as tensors.

    Raises:
        CalibrationError: It is not a dict, or holds no tensor that the model takes, or tensors of shapes, dtypes or ids
            that the model cannot take, or classes for labels where the model writes texts.
        ValueError: `head_mask` is in it, or token ids that the model has no embedding for.
    """
    if not isinstance(batch, Mapping):
        raise CalibrationError(f"a batch must be a dict of tensors, got {type(batch).__name__}.")
    refuse_head_mask(batch)
    names = argument_names(model)
    arguments = {name: _as_tensor(value) for name, value in batch.items() if name in names and value is not None}
    if not needs_labels and not model.config.is_encoder_decoder:
        _leave_out_labels(arguments)
    if needs_labels:
        _check_labels({name: value for name, value in batch.items() if name in names})
    _check_tensors(arguments, batch, model)
    _check_shapes(arguments, model)
    _check_tokens(arguments)
    for name in _IDS:
        ids = arguments.get(name)
        if isinstance(ids, Tensor):
            arguments[name] = _checked_ids(name, ids, model)
    check_target_texts(model, arguments)
    _check_dimensions(arguments, model)
    return arguments


def _as_tensor(value: Any) -> Any:
    """A tensor of an array of NumPy, or of a tensor from `torch.inference_mode`, which no gradient can pass."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, Tensor) and value.is_inference():
        with torch.inference_mode(mode=False):
            return value.clone()
    return value


def _leave_out_labels(arguments: Batch) -> None:
    """Take labels that are no tensor, such as names of classes, out of a batch that is used without labels."""
    for name in LABELS:
        if name in arguments and not isinstance(arguments[name], Tensor):
            kind = type(arguments.pop(name)).__name__
            logger.warning("%s in a batch is a %s, not a tensor: left out, as no label is needed", name, kind)


def _check_labels(given: Mapping[str, Any]) -> None:
    """Refuse labels that a loss cannot be computed of: None, a text, or a single number."""
    labels = {name: _as_tensor(given[name]) for name in LABELS if name in given}
    has_labels = any(isinstance(value, Tensor) for value in labels.values())
    for name, value in labels.items():
        # a model with several labels can do without one of them
        if isinstance(value, Tensor) or (value is None and has_labels):
            continue
        what = unusable_label(value)
        # a list of numbers is a matter of the collator, as it is of any other argument
        if what is None and isinstance(value, list):
            continue
        raise CalibrationError(f"{name} in a batch: {what or f'{value!r:.60}, which is no tensor'}. {NEEDED_LABELS}")


def unusable_label(value: Any) -> str | None:
    """What is wrong with a label, or with labels in nested lists, in words.

    Args:
        value: The label or labels.

    Returns:
        The words; None for numbers.

    Examples:
        >>> unusable_label([[1, 2], ["B-PER"]])
        "the text 'B-PER', where a number is needed"
        >>> unusable_label(None)
        'None, where a number is needed'
    """
    if value is None:
        return "None, where a number is needed"
    if isinstance(value, (str, bytes)):
        return f"the text {value!r:.60}, where a number is needed"
    if isinstance(value, np.ndarray) and value.dtype.kind not in "biuf":
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        return None
    for entry in value:
        what = unusable_label(entry)
        if what is not None:
            return what
    return None


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


def _check_shapes(arguments: Batch, model: PreTrainedModel) -> None:
    """Refuse inputs without a dimension of samples, and arguments that are not of as many samples."""
    rows: dict[str, int] = {}
    for name, value in arguments.items():
        if not isinstance(value, Tensor) or name not in (*DIMENSIONS, *_ROW_BY_ROW):
            continue
        least = DIMENSIONS.get(name, 0)
        if value.ndim < least:
            raise CalibrationError(
                f"{name} has the shape {tuple(value.shape)}: one sample without a dimension of samples, where "
                f"{type(model).__name__} takes {least} dimensions. Write {name}[None] for a batch of one, give the "
                "DataLoader a batch_size, or pass the samples as a data set or a list."
            )
        if value.ndim:
            rows[name] = len(value)
    if len(set(rows.values())) > 1:
        counts = ", ".join(f"{name} of {count}" for name, count in rows.items())
        raise CalibrationError(
            f"the arguments of a batch are of different numbers of samples: {counts}. The first dimension of each must "
            "be the samples; look at the collator."
        )


def _check_tokens(arguments: Batch) -> None:
    """Refuse masks and types that are not of as many tokens as the ids: a model would fill up what is missing."""
    ids = arguments.get("input_ids")
    if not isinstance(ids, Tensor):
        return
    for name in ("attention_mask", "token_type_ids"):
        value = arguments.get(name)
        # a mask of pairs of tokens has a dimension more
        if isinstance(value, Tensor) and value.ndim == ids.ndim and value.shape != ids.shape:
            raise CalibrationError(
                f"{name} has the shape {tuple(value.shape)} and input_ids {tuple(ids.shape)}: a token needs one entry "
                "in each. Look at the collator, or leave the mask out where no token is padding."
            )


def _check_dimensions(arguments: Batch, model: PreTrainedModel) -> None:
    """Refuse ids with dimensions beside samples and tokens, for a model that cannot read them."""
    ids = arguments.get("input_ids")
    if not isinstance(ids, Tensor) or ids.ndim <= 2 or not ids.numel():
        return
    if ids.ndim == 3 and "MultipleChoice" in type(model).__name__:
        return
    first_sample = slice_samples(arguments, [0])
    # who wrote the model may know of choices too, so it is asked
    try:
        with frozen(model), torch.no_grad():
            model(**without_cache(model, on_device(first_sample, input_device(model))))
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        if isinstance(error, StructureError):
            raise
        raise CalibrationError(
            f"input_ids have the shape {tuple(ids.shape)}, and {type(model).__name__} takes ids of shape (samples, "
            "tokens). Take the dimension out: input_ids.flatten(0, 1), with mask and labels alike, makes one dimension "
            "of the first two. Several choices a question need a model for them: AutoModelForMultipleChoice. The model "
            f"says: {error}"
        ) from error


def _checked_ids(name: str, ids: Tensor, model: PreTrainedModel) -> Tensor:
    """Token ids as whole numbers, in the vocabulary, and of texts that the model has positions for."""
    whole = ids.long()
    if not torch.equal(whole.to(ids.dtype), ids):
        raise CalibrationError(f"{name} are {ids.dtype} with fractions; token ids are whole numbers.")
    ids = whole
    if not ids.numel():
        return ids
    check_tokens(model, int(ids.max()))
    if int(ids.min()) < 0:
        raise CalibrationError(
            f"{name} hold {int(ids.min())}, which is no token id. Only labels mark tokens by -100; pad {name} with "
            "the tokenizer's pad_token_id."
        )
    longest = learned_positions(model, decoder=name != "input_ids")
    if longest is not None and ids.shape[-1] > longest:
        raise CalibrationError(
            f"{name} are of {ids.shape[-1]} tokens, and the model has positions for {longest}. Truncate the texts: "
            f"tokenizer(..., truncation=True, max_length={longest})."
        )
    return ids


def check_decoder_inputs(batches: Sequence[Batch], model: PreTrainedModel) -> None:
    """Refuse batches that say nothing of the decoder's tokens, for an encoder-decoder that does not make them itself.

    Args:
        batches: Batches, checked one by one.
        model: The model.

    Raises:
        CalibrationError: The decoder has no inputs.
    """
    given = ("labels", "decoder_input_ids", "decoder_inputs_embeds")
    if not model.config.is_encoder_decoder or any(name in batches[0] for name in given):
        return
    first_sample = slice_samples(batches[0], [0])
    try:
        with frozen(model), torch.no_grad():
            model(**inputs_of(model, first_sample, labels=True))
    except (TypeError, ValueError, AttributeError) as error:
        raise CalibrationError(
            f"{type(model).__name__} has a decoder, and the batch has only {', '.join(batches[0])}. Pass labels (the "
            "token ids of the texts that the model shall write, with -100 for padding), from which it makes the "
            f"decoder's inputs, or decoder_input_ids. The model says: {error}"
        ) from error


def without_empty(batches: Sequence[Batch]) -> BatchesWithTokens:
    """Batches without samples that have no token: texts without a word, or with a mask of zeros only.

    They show nothing of any unit, and a batch of nothing else stops most models. A warning says how many there were.

    Args:
        batches: Batches, checked one by one.

    Returns:
        The batches that have a sample left.

    Raises:
        CalibrationError: None has.
    """
    kept = []
    empty = 0
    for batch in batches:
        batch, empty_here = with_tokens(batch)
        empty += empty_here
        if rows_of(batch):
            kept.append(batch)
    if batches and not kept:
        raise all_empty(empty)
    warn_of_empty(empty)
    return BatchesWithTokens(kept, empty)


def with_tokens(batch: Batch) -> tuple[Batch, int]:
    """A batch without samples that have no token, and how many those were."""
    places = _places_with_tokens(batch)
    rows = rows_of(batch)
    if len(places) < rows:
        batch = slice_samples(batch, places)
    return batch, rows - len(places)


def all_empty(samples: int) -> CalibrationError:
    """The error for data in which no sample has a token."""
    return CalibrationError(
        f"all {samples} samples of the calibration data are empty: they have no token, or an attention_mask of zeros "
        "only. Pass texts with words in them; look at the tokenizer and the collator."
    )


def warn_of_empty(empty: int) -> None:
    """Say how many samples were left out, if there were any."""
    if empty:
        logger.warning("%d samples without any token were left out", empty)


def rows_of(batch: Batch) -> int:
    """The leading size of the inputs of a batch: its samples, or the questions of a multiple choice."""
    sizes = [len(value) for name, value in batch.items() if isinstance(value, Tensor) and _is_by_row(name, value)]
    return sizes[0] if sizes else 0


def _is_by_row(name: str, value: Tensor) -> bool:
    return value.ndim > 0 and name not in ("position_ids", "cache_position")


def _places_with_tokens(batch: Batch) -> list[int]:
    """The places of the samples that have a token."""
    rows = rows_of(batch)
    for name in DIMENSIONS:
        value = batch.get(name)
        if isinstance(value, Tensor) and not value.numel():
            return []
    mask = batch.get("attention_mask")
    # a mask of pairs of tokens says nothing of single ones
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 3) or len(mask) != rows:
        return list(range(rows))
    has_tokens = mask.flatten(1).ne(0).any(1)
    places: list[int] = has_tokens.nonzero().flatten().tolist()
    return places


def slice_samples(batch: Batch, places: Sequence[int]) -> Batch:
    """Some samples of a batch.

    Args:
        batch: The batch.
        places: Which, in order. The choices of a question stay together.

    Returns:
        A batch of them; what has no row for each sample stays as it is.

    Examples:
        >>> slice_samples({"input_ids": torch.tensor([[1], [2], [3]])}, [0, 2])["input_ids"].tolist()
        [[1], [3]]
    """
    rows = rows_of(batch)
    sliced = dict(batch)
    for name, value in batch.items():
        if isinstance(value, Tensor) and value.ndim and len(value) == rows and _is_by_row(name, value):
            index = torch.tensor(places, dtype=torch.long, device=value.device)
            sliced[name] = value.index_select(0, index)
    return sliced
