"""Objects of sentence-transformers: the model inside, the texts that it takes, and the same object around another."""

from hfprune.encoders.loading import AutoSentenceEmbedder, load_encoder
from hfprune.encoders.opening import Encoder, embedding_model, is_encoder, opened
from hfprune.encoders.texts import EncoderTexts, Texts

__all__ = [
    "AutoSentenceEmbedder",
    "Encoder",
    "EncoderTexts",
    "Texts",
    "embedding_model",
    "is_encoder",
    "load_encoder",
    "opened",
]
