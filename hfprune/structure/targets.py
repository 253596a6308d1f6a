"""The texts that a decoder learns to write: labels with one id for every token."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from hfprune.errors import CalibrationError
from hfprune.structure.examples import has_decoder


def check_target_texts(model: PreTrainedModel, batch: Mapping[str, Any]) -> None:
    """Refuse one label a sample, as of classes, where the decoder of a model would read the labels as texts.

    Args:
        model: The model.
        batch: Its arguments.

    Raises:
        CalibrationError: The model writes texts, and the labels are no texts.
    """
    labels = batch.get("labels")
    has_inputs = "decoder_input_ids" in batch or "decoder_inputs_embeds" in batch
    if not isinstance(labels, Tensor) or labels.ndim != 1 or has_inputs:
        return
    # a classifier has a decoder too, and no word to give out
    if has_decoder(model) and model.get_output_embeddings() is not None:
        raise CalibrationError(
            f"{type(model).__name__} writes texts, and labels in a batch has shape {tuple(labels.shape)}: one class a "
            "sample. Give the target texts as token ids, `(samples, tokens)`, from tokenizer(text_target=...) and "
            "DataCollatorForSeq2Seq; or load a model with a classification head (AutoModelForSequenceClassification)."
        )
