"""Right or wrong, sample by sample: what classifiers are compared on."""

from collections.abc import Callable, Sequence

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel

from hfprune.scoring import Collator, calibration_batches
from hfprune.structure.batches import Batch, on_device
from hfprune.structure.running import frozen


def correctness(
    data: Dataset | Sequence[Batch], *, collator: Collator | None = None, batch_size: int = 64
) -> Callable[[PreTrainedModel], list[bool]]:
    """An `evaluate` for classifiers: whether each sample is classified as its label says.

    Args:
        data: A tokenized `datasets.Dataset`, or a list of batches, with one class as the label of a sample.
        collator: Makes a batch of rows of a Dataset; `DataCollatorWithPadding(tokenizer)` pads.
        batch_size: The most samples in a batch of a Dataset.

    Returns:
        A function from a model to one bool a sample, in an order that is the same for every model. It raises a
        ValueError where the data has no such labels.
    """

    def evaluate(model: PreTrainedModel) -> list[bool]:
        batches = calibration_batches(
            data, model, samples=len(data), batch_size=batch_size, batch_tokens=batch_size * 512, collator=collator
        )
        with frozen(model), torch.inference_mode():
            return [right for batch in batches for right in _right(model, on_device(batch, model.device))]

    return evaluate


def _right(model: PreTrainedModel, batch: Batch) -> list[bool]:
    labels = batch.get("labels")
    if not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point():
        found = f"{labels.dtype} of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else "none"
        raise ValueError(
            f"correctness needs one class a sample as labels, got {found}. For other tasks write your own evaluate: a "
            "function from a model to a number, or to one number a sample; higher is better."
        )
    logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    right: list[bool] = (logits.argmax(-1) == labels).tolist()
    return right
