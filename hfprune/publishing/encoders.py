"""Write what belongs to an encoder of sentence-transformers beside the checkpoint of its body, and its card."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from hfprune.encoders import Encoder, opened
from hfprune.publishing.card import draw_card
from hfprune.structure.modeling_pruned import PrunedModel, base_class

logger = logging.getLogger(__name__)


def write_modules(encoder: Encoder, folder: Path) -> None:
    """Write the modules, settings and tokenizer of an encoder, all but the model in it.

    Args:
        encoder: The encoder.
        folder: A folder, for the checkpoint of the model too.
    """
    # sentence-transformers builds such encoders by itself, by the name of the stock class
    is_half = base_class(type(encoder.body)).__name__.endswith("EncoderModel")
    if is_half and isinstance(encoder.body, PrunedModel):
        logger.warning(
            "%s(folder) will not load this %s, although hfprune.load does: it knows the stock class only. Prune with "
            "PruningConfig(portable=True) for widths that the stock class can say.",
            type(encoder.whole).__name__,
            type(encoder.body).__name__,
        )
    with _left_out(encoder.body):
        encoder.whole.save(str(folder), create_model_card=False)


@contextmanager
def _left_out(body: PreTrainedModel) -> Iterator[None]:
    """Let a model not be written when something that holds it is saved, inside the `with`."""
    vars(body)["save_pretrained"] = lambda *_, **__: None
    try:
        yield
    finally:
        del vars(body)["save_pretrained"]


def with_card(whole: Any) -> Any:
    """An encoder whose own `save_pretrained` writes the card of hfprune.

    Args:
        whole: A pruned encoder.

    Returns:
        The same object.
    """
    encoder = opened(whole)
    # sentence-transformers writes a text that a model came with, as long as it does not train it
    if encoder is not None and hasattr(whole, "_model_card_text"):
        body = encoder.body
        whole._model_card_text = draw_card(
            body.pruning_record,
            body.pruning_plan,
            portable=not isinstance(body, PrunedModel),
            location="PATH",
            encoder=type(whole).__name__,
        )
    return whole
