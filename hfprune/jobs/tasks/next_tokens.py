"""What causal language models are measured by: how likely every next token is to them."""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor
from transformers import EvalPrediction

from hfprune.jobs.tasks.task import logits_of

METRICS = ("perplexity", "loss")


def token_losses(outputs: Any, labels: Tensor) -> Tensor:
    """The loss of every token but the first in nats; 0 where a token is not to be predicted.

    Args:
        outputs: What Trainer hands to `preprocess_logits`: `(N, tokens, words)` logits, or a tuple that begins so.
        labels: `(N, tokens)` ids; −100 of a token that is not to be predicted.

    Returns:
        `(N, tokens − 1)` losses.

    Examples:
        >>> token_losses(torch.zeros(1, 3, 4), torch.tensor([[1, -100, 2]]))
        tensor([[0.0000, 1.3863]])
    """
    losses = []
    # one text at a time, as a float32 copy of all logits would be large
    for logits, targets in zip(logits_of(outputs), labels, strict=True):
        losses.append(F.cross_entropy(logits[:-1].float(), targets[1:], reduction="none"))
    return torch.stack(losses)


def log_likelihoods(prediction: EvalPrediction, rows: Dataset) -> list[float]:  # noqa: ARG001 (all metrics get both)
    """For every text the mean logarithm of the probability of a token that is to be predicted, in nats.

    Args:
        prediction: The `token_losses`, and the labels.
        rows: The rows; not used.

    Returns:
        A number a text.
    """
    is_predicted = prediction.label_ids[:, 1:] != -100
    losses = np.where(is_predicted, prediction.predictions, 0.0).sum(-1)
    likelihoods: list[float] = (-losses / np.maximum(is_predicted.sum(-1), 1)).tolist()
    return likelihoods


def metrics_of_tokens(prediction: EvalPrediction, rows: Dataset) -> dict[str, float]:  # noqa: ARG001
    """The mean loss in nats of the tokens that are to be predicted, and its exponential, the perplexity.

    Trainer reports this `loss` in place of its own, which is a mean over batches and so depends on their size.

    Args:
        prediction: The `token_losses`, and the labels.
        rows: The rows; not used.

    Returns:
        Both by name.
    """
    # where batches differ in length, Trainer pads labels and losses with −100
    is_predicted = prediction.label_ids[:, 1:] != -100
    loss = float(np.mean(prediction.predictions[is_predicted], dtype=np.float64))
    # the exponential of more than 709 would raise OverflowError
    return {"perplexity": math.exp(min(loss, 700.0)), "loss": loss}
