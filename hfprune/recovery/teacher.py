"""What the teacher says: its logits beside the data, computed once; outputs of attention blocks while it runs."""

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from datasets import Dataset
from datasets.fingerprint import Hasher
from torch import Tensor, nn
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase, default_data_collator

from hfprune.recovery.arguments import RecoveryArguments
from hfprune.scoring.calibration import Collator, check_batch, collate
from hfprune.structure.batches import LABELS
from hfprune.structure.running import frozen, inputs_of
from hfprune.structure.store import digest_of

logger = logging.getLogger(__name__)

#: The column of cached logits.
TEACHER_LOGITS = "teacher_logits"
#: The columns of the likeliest tokens: which, their log-probabilities and the rest's, and the temperature of these.
TOP_IDS, TOP_LOG_PROBABILITIES, TEMPERATURE = "teacher_top_ids", "teacher_top_log_probabilities", "teacher_temperature"
TEACHER_COLUMNS = (TEACHER_LOGITS, TOP_IDS, TOP_LOG_PROBABILITIES, TEMPERATURE)


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
    are kept with their log-probabilities log p_i at the temperature, and log p_* = log(1 − Σ p_i) of all others
    together; recovery then minimises the KL divergence over these k + 1 outcomes, which is at most the KL divergence
    over all tokens (see `hfprune.recovery.losses.logits.top_k_logits_loss`).

    Args:
        data: A tokenized data set; with `top_k`, of texts of one length, such as packed windows.
        teacher: A model with one vector of logits a sample, or with `top_k` a token.
        collator: Makes a batch of rows, of those columns that are arguments of the teacher; texts of different lengths
            need one that pads, such as `DataCollatorWithPadding(tokenizer)`.
        batch_size: Samples in a batch. Logits take samples × tokens × vocabulary numbers.
        top_k: How many tokens to keep for every place.
        temperature: What the log-probabilities are softened with: that of `RecoveryArguments`.

    Returns:
        The data set with a column `teacher_logits`, `(classes,)` float32 each; or with `teacher_top_ids`,
        `(tokens, k)`, `teacher_top_log_probabilities`, `(tokens, k + 1)` float32 each, and `teacher_temperature`.

    Raises:
        ValueError: The teacher gives logits token by token and there is no `top_k`, or the other way round, or none;
            `top_k` is not below the number of words, the collator changes texts at random, or weights of the teacher
            are not in memory.
        CalibrationError: No column is an argument of the teacher, or the collator could not make a batch.
    """
    collator = collator or default_data_collator
    parameters = inspect.signature(teacher.forward).parameters
    taken = [name for name in data.column_names if name in parameters and name not in LABELS]
    made = _made_of_some(data.select_columns(taken) if taken else data, collator)

    def run(columns: dict[str, list[Any]]) -> dict[str, Any]:
        names = taken or list(columns)
        rows = [dict(zip(names, row, strict=True)) for row in zip(*(columns[n] for n in names), strict=True)]
        batch = check_batch(collate(rows, collator), teacher)
        with torch.no_grad():
            logits = teacher(**inputs_of(teacher, batch)).get("logits")
        if logits is None or logits.ndim != (2 if top_k is None else 3):
            shape = "no logits" if logits is None else f"logits of shape {tuple(logits.shape)}"
            raise ValueError(
                f"{type(teacher).__name__} gives {shape}; "
                + (
                    "only `(samples, classes)` is kept beside the data. Pass the teacher to RecoveryTrainer instead, "
                    "or keep the likeliest tokens with top_k."
                    if top_k is None
                    else "top_k keeps a part of `(samples, tokens, words)`. Leave it out."
                )
            )
        if top_k is None:
            return {TEACHER_LOGITS: logits.float().cpu().tolist()}
        ids, log_probabilities = _likeliest(logits, top_k, temperature)
        return {
            TOP_IDS: list(ids.int().cpu().numpy()),
            TOP_LOG_PROBABILITIES: list(log_probabilities.cpu().numpy()),
            TEMPERATURE: [temperature] * len(ids),
        }

    with frozen(teacher):
        return data.map(
            run,
            batched=True,
            batch_size=batch_size,
            desc="Teacher logits",
            new_fingerprint=Hasher.hash((data._fingerprint, digest_of(teacher), top_k, temperature, made)),
        )


def _made_of_some(data: Dataset, collator: Collator) -> list[tuple[str, Sequence[int], bytes]]:
    """What a collator makes of some rows, one by one: for the fingerprint, as not every collator can be hashed itself.

    One (of masked language modelling) that makes other texts of the same rows every time is refused.
    """
    rows = [data[i] for i in range(0, len(data), max(1, len(data) // 8))]
    firsts, seconds = ([collate([dict(row)], collator) for row in rows] for _ in range(2))
    pairs = [(first.get("input_ids"), second.get("input_ids")) for first, second in zip(firsts, seconds, strict=True)]
    if any(isinstance(a, Tensor) and isinstance(b, Tensor) and not torch.equal(a, b) for a, b in pairs):
        raise ValueError(
            "the collator changes the texts at random, so what the teacher says of them once is not what it would say "
            "of those that are trained on. Let the teacher run live: pass teacher= without teacher_top_k."
        )
    return [
        (name, value.shape, value.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        for made in firsts
        for name, value in sorted(made.items())
        if isinstance(value, Tensor)
    ]


def _likeliest(logits: Tensor, top_k: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Token ids `(N, tokens, k)` and log-probabilities `(N, tokens, k + 1)`, a text at a time in float32."""
    words = logits.shape[-1]
    if not 1 <= top_k < words:
        raise ValueError(f"top_k must be at least 1 and below the {words} words of the vocabulary, got {top_k}.")
    found = []
    for row in logits:
        soft = row.float() / temperature
        total = soft.logsumexp(-1, keepdim=True)
        top, ids = soft.topk(top_k, -1)
        rest = soft.scatter_(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
        found.append((ids, torch.cat([top, rest], -1) - total))
    return torch.stack([ids for ids, _ in found]), torch.stack([values for _, values in found])


def teacher_once(
    args: RecoveryArguments, teacher: PreTrainedModel | None, kwargs: dict[str, Any]
) -> tuple[PreTrainedModel | None, dict[str, Any]]:
    """With `teacher_top_k`, run the teacher over the training data here, in place of in every step.

    Args:
        args: The arguments of the recovery.
        teacher: The teacher.
        kwargs: What else the trainer was given.

    Returns:
        The teacher that is still needed, and the arguments with what it said beside the training data.

    Raises:
        ValueError: The training data is no `datasets.Dataset`, or as for `add_teacher_logits`.
    """
    data = kwargs.get("train_dataset")
    if teacher is None or data is None or not args.teacher_top_k:
        return teacher, kwargs
    logger.info(
        "The teacher runs once. Recovery follows its %d likeliest tokens and the rest as one, a lower bound of the KL "
        "divergence over all tokens.",
        args.teacher_top_k,
    )
    if not isinstance(data, Dataset):
        raise ValueError(
            f"teacher_top_k={args.teacher_top_k} keeps what the teacher says beside the training data, which must be a "
            f"datasets.Dataset, got {type(data).__name__}. Make one (Dataset.from_list), or set teacher_top_k=0."
        )
    spread, place = hasattr(teacher, "hf_device_map"), teacher.device
    with args.main_process_first(local=False, desc="teacher logits"):
        data = add_teacher_logits(
            data,
            teacher if spread else teacher.to(args.device),
            collator=kwargs.get("data_collator") or _padding(kwargs.get("processing_class")),
            batch_size=args.per_device_train_batch_size,
            top_k=args.teacher_top_k,
            temperature=args.temperature,
        )
    if not spread:
        teacher.to(place)
    return None, {**kwargs, "train_dataset": data}


def _padding(tokenizer: Any) -> Collator | None:
    """What Trainer takes for a collator where it is given none."""
    return DataCollatorWithPadding(tokenizer) if isinstance(tokenizer, PreTrainedTokenizerBase) else None


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
