"""Whether a classifier is right, sample by sample: the values that a paired comparison of two models needs."""

from collections.abc import Callable, Sequence

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel

from hfprune.scoring import Collator, calibration_batches
from hfprune.structure.arguments import FUNCTION, checked, optional, whole
from hfprune.structure.batches import LABELS, Batch, on_device
from hfprune.structure.predictions import predictions_of
from hfprune.structure.running import frozen
from hfprune.structure.wrapping import unwrapped


@checked(collator=optional(FUNCTION), batch_size=whole(least=1))
def correctness(
    data: Dataset | Sequence[Batch], *, collator: Collator | None = None, batch_size: int = 64
) -> Callable[[PreTrainedModel], list[bool]]:
    """An `evaluate` for classifiers: it tells of each sample whether the model predicts its label.

    Args:
        data: A tokenized `datasets.Dataset`, or a list of batches, with one class as the label of a sample.
        collator: Makes a batch of rows of a Dataset; `DataCollatorWithPadding(tokenizer)` pads.
        batch_size: The most samples in a batch of a Dataset.

    Returns:
        A function from a model to one bool a sample, in an order that is the same for every model. It raises a
        ValueError where the data has no such labels.

    Examples:
        >>> from hfprune.sweeping import correctness
        >>> evaluate = correctness(dataset, collator=collator)
        >>> _ = dense.classifier.bias.data[0].fill_(100.0)  # so it predicts class 0 for every text
        >>> right = evaluate(dense)
        >>> len(right), sum(right)
        (18, 6)
    """

    def evaluate(model: PreTrainedModel) -> list[bool]:
        model = unwrapped(model)
        batches = calibration_batches(
            data,
            model,
            samples=len(data),
            batch_size=batch_size,
            # room for samples of 512 tokens, the most that BERT takes, so that `batch_size` alone decides
            batch_tokens=batch_size * 512,
            collator=collator,
            needs_labels=True,
        )
        all_right: list[bool] = []
        with frozen(model), torch.inference_mode():
            for batch in batches:
                all_right += _right(model, on_device(batch, model.device))
        return all_right

    return evaluate


def _right(model: PreTrainedModel, batch: Batch) -> list[bool]:
    """For every sample of a batch, whether the class with the highest logit is its label."""
    labels = batch.get("labels")
    if not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point():
        raise ValueError(
            f"correctness needs one class a sample as labels, got {_description(labels)}. For other tasks write your "
            "own evaluate: a function from a model to a number, or to one number a sample; higher is better."
        )
    # without labels, for which the model would compute a loss
    inputs = {name: value for name, value in batch.items() if name not in LABELS}
    output = model(**inputs)
    predictions = predictions_of(model, output, batch, taker="correctness")
    prediction = predictions[0]
    has_one_class = prediction.subject == "sample" and prediction.link == "softmax" and prediction.labels == "labels"
    if len(predictions) > 1 or not has_one_class:
        fields = " and ".join(each.field for each in predictions)
        raise ValueError(
            f"correctness looks for the likeliest class of a sample, and {type(model).__name__} with problem_type="
            f"{model.config.problem_type!r} predicts {fields} with a {prediction.link} for every {prediction.subject}. "
            "Write your own evaluate: a function from a model to a number, or to one number a sample; higher is better."
        )
    right: list[bool] = (output["logits"].argmax(-1) == labels).tolist()
    return right


def _description(labels: object) -> str:
    if not isinstance(labels, Tensor):
        return "none"
    return f"{labels.dtype} of shape {tuple(labels.shape)}"
