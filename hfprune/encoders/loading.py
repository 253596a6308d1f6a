"""Load a folder of sentence-transformers as a model of transformers."""

from typing import Any

from hfprune.encoders.opening import Encoder, opened
from hfprune.errors import MissingDependencyError
from hfprune.structure.embedder import SentenceEmbedder

#: What a message says of the package.
_INSTALL = "pip install 'hfprune[sentence-transformers]'"


def load_encoder(source: str, *, class_name: str = "SentenceTransformer", **options: Any) -> Encoder:
    """Load an object of sentence-transformers, and open it.

    Args:
        source: Folder or repository.
        class_name: Its class, `SentenceTransformer` or `CrossEncoder`.
        **options: As for that class, such as `trust_remote_code` and `revision`.

    Returns:
        The encoder.

    Raises:
        MissingDependencyError: sentence-transformers is not installed.
        UnsupportedArchitectureError: There is no single model of texts in it that hfprune could take.

    Examples:
        >>> from hfprune.encoders import load_encoder
        >>> dense.base_model.save_pretrained("body")
        >>> _ = tokenizer.save_pretrained("body")
        >>> load_encoder("body", device="cpu").embed(texts[:3]).shape[0]
        3
    """
    try:
        import sentence_transformers
    except ImportError as error:
        raise MissingDependencyError(f"sentence embeddings need sentence-transformers: {_INSTALL}") from error
    encoder = opened(getattr(sentence_transformers, class_name)(source, **options))
    # it is of a class that can be opened
    assert encoder is not None
    return encoder


class AutoSentenceEmbedder:
    """Loads a `SentenceTransformer` as the Auto classes load a model: by `from_pretrained`.

    Examples:
        >>> from hfprune.encoders import AutoSentenceEmbedder
        >>> dense.base_model.save_pretrained("body")
        >>> _ = tokenizer.save_pretrained("body")
        >>> model = AutoSentenceEmbedder.from_pretrained("body")
        >>> inputs = tokenizer(texts[:3], padding=True, return_tensors="pt")
        >>> model(**inputs).sentence_embedding.shape[0]
        3
    """

    @classmethod
    def from_pretrained(cls, source: Any, *, output_loading_info: bool = False, **options: Any) -> Any:
        """Load the model in a `SentenceTransformer`, with its pooling and normalisation.

        Args:
            source: Folder or repository.
            output_loading_info: Whether to return a report of missing weights too, as transformers does.
            **options: `trust_remote_code`, `revision`.

        Returns:
            The model, on the CPU; with a report, a tuple of both.
        """
        encoder = load_encoder(str(source), device="cpu", **options)
        assert isinstance(encoder.model, SentenceEmbedder)
        # sentence-transformers stops where weights are missing that it does not make anew
        report: dict[str, list[str]] = {"missing_keys": []}
        return (encoder.model, report) if output_loading_info else encoder.model
