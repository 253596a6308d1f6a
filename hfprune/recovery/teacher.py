"""What the teacher predicts for the training data, computed once and kept in columns beside the data."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from datasets.fingerprint import Hasher
from torch import Tensor
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase, default_data_collator

from hfprune.recovery.arguments import RecoveryArguments
from hfprune.recovery.columns import TEACHER_LOGITS, TEMPERATURE, TOP_IDS, TOP_LOG_PROBABILITIES
from hfprune.recovery.finite import check_finite_teacher
from hfprune.recovery.forward import with_decoder_inputs
from hfprune.scoring.checks import all_empty, check_batch, warn_of_empty
from hfprune.scoring.rows import Collator, collate, is_empty
from hfprune.structure.arguments import FUNCTION, checked, finite, optional, whole
from hfprune.structure.batches import LABELS, Batch
from hfprune.structure.examples import has_decoder
from hfprune.structure.predictions import predictions_of
from hfprune.structure.running import frozen, inputs_of, refuse_tuples
from hfprune.structure.store import digest_of
from hfprune.structure.wrapping import argument_names, unwrapped

logger = logging.getLogger(__name__)


@checked(collator=optional(FUNCTION), batch_size=whole(least=1), top_k=optional(whole()), temperature=finite(above=0))
def add_teacher_logits(
    data: Dataset,
    teacher: PreTrainedModel,
    *,
    collator: Collator | None = None,
    batch_size: int = 64,
    top_k: int | None = None,
    temperature: float = 1.0,
) -> Dataset:
    """Run the teacher once over a data set and keep its logits there, so that recovery need not run it every epoch.

    `RecoveryTrainer` finds the columns and does without the teacher, if only `logits_weight` asks for one. The result
    is cached like any `Dataset.map`: the same data and the same model are not run again.

    Of a model that predicts tokens all logits are too large to keep. With `top_k` the k likeliest tokens at every place
    are kept with their log-probabilities log p_i at the temperature, and `log p_* = log(1 − Σ p_i)` of all others
    together; recovery then minimises the KL divergence over these k + 1 outcomes, which is at most the KL divergence
    over all tokens (see `hfprune.recovery.losses.logits.top_k_logits_loss`).

    Args:
        data: A tokenized data set; with `top_k`, of texts of one length, such as packed windows.
        teacher: A model with one vector of logits a sample, or with `top_k` a token.
        collator: Makes a batch of rows, of those columns that are arguments of the teacher; texts of different lengths
            need one that pads, such as `DataCollatorWithPadding(tokenizer)`. Labels are among them only where a decoder
            reads them.
        batch_size: Samples in a batch. Logits take samples × tokens × vocabulary numbers.
        top_k: How many tokens to keep for every place.
        temperature: What the log-probabilities are softened with: that of `RecoveryArguments`.

    Returns:
        The data set with a column `teacher_logits`, `(classes,)` float32 each; or with `teacher_top_ids`,
        `(tokens, k)`, `teacher_top_log_probabilities`, `(tokens, k + 1)` float32 each, and `teacher_temperature`.

    Raises:
        ValueError: The teacher gives logits token by token and there is no `top_k`, or the other way round, or none;
            `top_k` is not below the number of words, the temperature is not a positive number, the teacher's logits are
            NaN or infinite, the collator changes texts at random, or weights of the teacher are not in memory.
        CalibrationError: No column is an argument of the teacher, or the collator could not make a batch.

    Examples:
        >>> import hfprune
        >>> data = hfprune.add_teacher_logits(dataset, dense, collator=collator)
        >>> data.column_names
        ['input_ids', 'attention_mask', 'labels', 'teacher_logits']
        >>> len(data[0]["teacher_logits"])
        3
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}; 2.0 is usual.")
    collator = collator or default_data_collator
    teacher = unwrapped(teacher)
    refuse_tuples(teacher)
    parameters = argument_names(teacher)
    names = [name for name in data.column_names if name in parameters and name not in LABELS]
    # the decoder reads the labels, as it does in training
    reads_labels = has_decoder(teacher) and "labels" in data.column_names
    if reads_labels:
        names.append("labels")
    data = _with_tokens(data)
    # without any such column the rows stay as they are, and `check_batch` says what is missing
    collated = _collated_samples(data.select_columns(names) if names else data, collator)

    def predict(columns: dict[str, list[Any]]) -> dict[str, Any]:
        rows = _rows_of(columns, names or list(columns))
        batch = with_decoder_inputs(teacher, check_batch(collate(rows, collator), teacher))
        with torch.no_grad():
            output = teacher(**inputs_of(teacher, batch))
        logits = _logits_to_keep(teacher, output, batch, top_k)
        check_finite_teacher(logits, "logits", type(teacher).__name__)
        return _columns_of(logits, top_k, temperature)

    with frozen(teacher):
        return data.map(
            predict,
            batched=True,
            batch_size=batch_size,
            desc="Teacher logits",
            new_fingerprint=Hasher.hash((data._fingerprint, digest_of(teacher), top_k, temperature, collated)),
        )


def _with_tokens(data: Dataset) -> Dataset:
    """The rows that have a token: of the others, a teacher has nothing to say."""
    if "input_ids" not in data.column_names:
        return data
    columns = data.select_columns([name for name in ("input_ids", "attention_mask") if name in data.column_names])
    kept = [index for index, row in enumerate(columns) if not is_empty(row)]
    if not kept:
        raise all_empty(len(data))
    warn_of_empty(len(data) - len(kept))
    return data if len(kept) == len(data) else data.select(kept)


def _rows_of(columns: Mapping[str, Sequence[Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Rows with some of the columns."""
    chosen = [columns[name] for name in names]
    rows = []
    for values in zip(*chosen, strict=True):
        rows.append(dict(zip(names, values, strict=True)))
    return rows


def _logits_to_keep(teacher: PreTrainedModel, output: Any, batch: Batch, top_k: int | None) -> Tensor:
    """The logits of samples, or with `top_k` of tokens; other logits are refused."""
    predictions = predictions_of(teacher, output, batch, taker="add_teacher_logits")
    if len(predictions) > 1 or predictions[0].field != "logits":
        names = " and ".join(prediction.field for prediction in predictions)
        raise ValueError(
            f"{type(teacher).__name__} gives {names}; one vector of logits a sample (or with top_k a token) is kept "
            "beside the data. Pass the teacher to RecoveryTrainer instead."
        )
    prediction = predictions[0]
    if top_k is None:
        fits = prediction.subject == "sample"
        advice = (
            "only `(samples, classes)` is kept beside the data. Pass the teacher to RecoveryTrainer instead, or keep "
            "the likeliest tokens with top_k."
        )
    else:
        fits = prediction.subject == "token" and prediction.link == "softmax"
        advice = "top_k keeps a part of `(samples, tokens, words)`. Leave it out."
    logits: Tensor = output["logits"]
    if not fits:
        raise ValueError(f"{type(teacher).__name__} gives logits of shape {tuple(logits.shape)}; {advice}")
    return logits


def _columns_of(logits: Tensor, top_k: int | None, temperature: float) -> dict[str, Any]:
    """The new columns for the rows of one batch."""
    if top_k is None:
        return {TEACHER_LOGITS: logits.float().cpu().tolist()}
    ids, log_probabilities = _likeliest(logits, top_k, temperature)
    return {
        TOP_IDS: list(ids.int().cpu().numpy()),
        TOP_LOG_PROBABILITIES: list(log_probabilities.cpu().numpy()),
        TEMPERATURE: [temperature] * len(ids),
    }


def _collated_samples(data: Dataset, collator: Collator) -> list[tuple[str, torch.Size, bytes]]:
    """What a collator makes of some rows, one by one, for the fingerprint: not every collator can be hashed itself.

    A collator that makes other texts of the same rows every time, as one of masked language modelling does, is refused.
    """
    step = max(1, len(data) // 8)
    rows = [data[index] for index in range(0, len(data), step)]
    batches = _collated_one_by_one(rows, collator)
    again = _collated_one_by_one(rows, collator)
    for first, second in zip(batches, again, strict=True):
        ids = first.get("input_ids")
        other_ids = second.get("input_ids")
        if isinstance(ids, Tensor) and isinstance(other_ids, Tensor) and not torch.equal(ids, other_ids):
            raise ValueError(
                "the collator changes the texts at random, so what the teacher says of them once is not what it would "
                "say of those that are trained on. Let the teacher run live: pass teacher= without teacher_top_k."
            )
    contents = []
    for batch in batches:
        for name, value in sorted(batch.items()):
            if isinstance(value, Tensor):
                content = value.cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
                contents.append((name, value.shape, content))
    return contents


def _collated_one_by_one(rows: Sequence[Mapping[str, Any]], collator: Collator) -> list[Batch]:
    # collators may change the rows that they get
    return [collate([dict(row)], collator) for row in rows]


def _likeliest(logits: Tensor, top_k: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Token ids `(N, tokens, k)` and log-probabilities `(N, tokens, k + 1)`, the last of them of all other tokens."""
    words = logits.shape[-1]
    if not 1 <= top_k < words:
        raise ValueError(f"top_k must be at least 1 and below the {words} words of the vocabulary, got {top_k}.")
    all_ids = []
    all_log_probabilities = []
    # one text at a time: float32 copies of the logits of a whole batch would be large
    for text in logits:
        softened = text.float() / temperature
        total = softened.logsumexp(-1, keepdim=True)
        top, ids = softened.topk(top_k, -1)
        others = softened.scatter_(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
        all_ids.append(ids)
        all_log_probabilities.append(torch.cat([top, others], -1) - total)
    return torch.stack(all_ids), torch.stack(all_log_probabilities)


def teacher_once(
    args: RecoveryArguments, teacher: PreTrainedModel | None, kwargs: dict[str, Any]
) -> tuple[PreTrainedModel | None, dict[str, Any]]:
    """With `teacher_top_k`, run the teacher over the training data here, in place of in every step.

    Args:
        args: The arguments of the recovery.
        teacher: The teacher.
        kwargs: What else the trainer was given.

    Returns:
        The teacher, or None where it is no longer needed; and the arguments of the trainer, with the teacher's
        predictions beside the training data.

    Raises:
        ValueError: The training data is no `datasets.Dataset`, or as for `add_teacher_logits`.
    """
    data = kwargs.get("train_dataset")
    if teacher is None or data is None or not args.teacher_top_k:
        return teacher, kwargs
    logger.info(
        "The teacher runs once. Recovery follows its %d likeliest tokens, and all others as one: a lower bound of the "
        "KL divergence over all tokens.",
        args.teacher_top_k,
    )
    if not isinstance(data, Dataset):
        raise ValueError(
            f"teacher_top_k={args.teacher_top_k} keeps what the teacher says beside the training data, which must be a "
            f"datasets.Dataset, got {type(data).__name__}. Make one (Dataset.from_list), or set teacher_top_k=0."
        )
    # accelerate has placed the parts of a model that is spread over devices
    spread = hasattr(teacher, "hf_device_map")
    device_before = teacher.device
    # the other processes find what the first one has cached
    with args.main_process_first(local=False, desc="teacher logits"):
        if not spread:
            teacher.to(args.device)
        data = add_teacher_logits(
            data,
            teacher,
            collator=kwargs.get("data_collator") or _padding(kwargs.get("processing_class")),
            batch_size=args.per_device_train_batch_size,
            top_k=args.teacher_top_k,
            temperature=args.temperature,
        )
    if not spread:
        teacher.to(device_before)
    return None, {**kwargs, "train_dataset": data}


def _padding(tokenizer: Any) -> Collator | None:
    """The collator that Trainer uses where it is given none."""
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return None
    collator: Collator = DataCollatorWithPadding(tokenizer)
    return collator
