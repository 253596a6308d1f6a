"""Open an object of sentence-transformers: the model of transformers inside, and the same object around another.

Nothing here imports sentence-transformers, which takes seconds: whoever has such an object has imported it.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from transformers import DataCollatorWithPadding, PreTrainedModel

from hfprune.encoders.texts import EncoderTexts
from hfprune.errors import UnsupportedArchitectureError
from hfprune.structure.embedder import SentenceEmbedder, body_of, embedder
from hfprune.structure.modeling_pruned import base_class
from hfprune.structure.wrapping import inner

#: What an encoder makes: a vector of every text, or a score of every pair of texts.
Kind = Literal["embeddings", "scores"]
#: The classes of sentence-transformers that can be opened.
_KINDS: dict[str, Kind] = {"SentenceTransformer": "embeddings", "CrossEncoder": "scores"}
#: Its other classes, some of which were made from those.
_OTHERS = frozenset({"SparseEncoder", "MultiVectorEncoder"})
#: Where the body of an embedding model is called, and what is taken of its output.
_PLAIN_FORWARD = ("forward", "last_hidden_state")


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoder:
    """An open `SentenceTransformer` or `CrossEncoder`.

    Attributes:
        whole: The object itself.
        kind: What it makes.
        model: The model in it, as everything else in hfprune takes it: of a `SentenceTransformer` its body with the
            modules behind it, whose output has `sentence_embedding`; of a `CrossEncoder` its classifier. It shares all
            weights with the object.
    """

    whole: Any
    kind: Kind
    model: PreTrainedModel

    @property
    def body(self) -> PreTrainedModel:
        """The model of transformers, whose checkpoint is in the folder of a saved encoder."""
        return body_of(self.model)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        return self.whole.tokenizer

    @property
    def collator(self) -> DataCollatorWithPadding:
        """Pads rows of `rows` to a batch."""
        return DataCollatorWithPadding(self.tokenizer)

    def rows(self, data: Any) -> Any:
        """Rows for scoring, repair and recovery, of texts as the encoder takes them.

        Args:
            data: Texts: a list, or a data set with a column of them. For a `CrossEncoder` pairs of texts: a list of
                tuples, or a data set with two columns of texts. Anything that is tokenized is given back as it is.

        Returns:
            A data set with a row for each text or pair, tokenized when it is asked for.

        Raises:
            CalibrationError: It has no texts, or no pairs of them.
        """
        return EncoderTexts.of(data, self.whole, pairs=self.kind == "scores")

    def embed(self, texts: Sequence[str], *, batch_size: int = 32) -> Tensor:
        """The vectors of texts, `(texts, features)` float32 on the CPU, as its own `encode` makes them.

        Args:
            texts: The texts.
            batch_size: How many run at a time.

        Returns:
            The vectors.
        """
        options: dict[str, Any] = {"convert_to_tensor": True, "show_progress_bar": False, "batch_size": batch_size}
        vectors: Tensor = self.whole.encode(list(texts), **options)
        return vectors.float().cpu()

    def around(self, model: PreTrainedModel, *, tokenizer: Any = None) -> Any:
        """A copy of the object with another model in it.

        Args:
            model: A model that was made from `model` or from `body`, such as a smaller one.
            tokenizer: Its tokenizer, if that is another one too.

        Returns:
            A new object of the same class. Its pooling, normalisation, prompts, tokenizer and all else are copies.
        """
        if isinstance(model, SentenceEmbedder):
            # surgery has made a copy by now, around the body and the modules of this very model
            whole = model.whole
        else:
            others: dict[int, Any] = {id(self.body): model}
            if tokenizer is not None:
                others[id(self.tokenizer)] = tokenizer
            # what a copy meets first is given to it, so that it puts the other model in every place of this one
            whole = copy.deepcopy(self.whole, others)
        # texts of the card of the dense model; a new one is made when it is saved
        if hasattr(whole, "_model_card_text"):
            whole._model_card_text = None
        return whole


def is_encoder(model: Any) -> bool:
    """Whether something is an object of sentence-transformers.

    Args:
        model: Anything.

    Returns:
        Whether it is.

    Examples:
        >>> from hfprune.encoders import is_encoder
        >>> is_encoder(dense), is_encoder("sentence-transformers/all-MiniLM-L6-v2")
        (False, False)
    """
    return _class_name(inner(model)) is not None


def _class_name(model: Any) -> str | None:
    """The name of the class of sentence-transformers that something is of, the most special one first."""
    for ancestor in type(model).__mro__:
        is_theirs = ancestor.__module__.partition(".")[0] == "sentence_transformers"
        if is_theirs and ancestor.__name__ in _OTHERS | set(_KINDS):
            return ancestor.__name__
    return None


def opened(model: Any) -> Encoder | None:
    """Open an object of sentence-transformers.

    Args:
        model: The object, or a model that was made of one, or anything else.

    Returns:
        The encoder; None if it is no object of sentence-transformers.

    Raises:
        UnsupportedArchitectureError: It is one in which there is no single model of texts that hfprune could take.

    Examples:
        >>> from sentence_transformers import SentenceTransformer
        >>> from hfprune.encoders import opened
        >>> dense.base_model.save_pretrained("body")
        >>> _ = tokenizer.save_pretrained("body")
        >>> encoder = opened(SentenceTransformer("body", device="cpu"))
        >>> encoder.kind, type(encoder.body).__name__, opened(dense)
        ('embeddings', 'BertModel', None)
    """
    whole = inner(model)
    if isinstance(whole, SentenceEmbedder) and whole.whole is not None:
        return Encoder(whole=whole.whole, kind="embeddings", model=whole)
    name = _class_name(whole)
    if name is None:
        return None
    if name not in _KINDS:
        raise UnsupportedArchitectureError(
            f"a {name} is not supported: hfprune takes a SentenceTransformer or a CrossEncoder. Its model of "
            "transformers can be pruned alone: take model[0].model, and assign the smaller one to it."
        )
    body = _body_in(whole, name)
    kind = _KINDS[name]
    if kind == "scores":
        _check_scores(whole, body)
        return Encoder(whole=whole, kind=kind, model=body)
    _check_embeddings(whole, body)
    return Encoder(whole=whole, kind=kind, model=_with_modules_behind(whole, body))


def embedding_model(model: Any) -> SentenceEmbedder:
    """A `SentenceTransformer` as a model of transformers, whose output has `sentence_embedding`.

    `RecoveryTrainer`, `score`, `sweep` and all else that takes a model take it. It shares all weights with the object,
    so training it trains the object.

    Args:
        model: The `SentenceTransformer`.

    Returns:
        The model.

    Raises:
        TypeError: It is no `SentenceTransformer`.
        UnsupportedArchitectureError: There is no single model of texts in it that hfprune could take.

    Examples:
        >>> from sentence_transformers import SentenceTransformer
        >>> from hfprune.encoders import embedding_model
        >>> dense.base_model.save_pretrained("body")
        >>> _ = tokenizer.save_pretrained("body")
        >>> model = embedding_model(SentenceTransformer("body", device="cpu"))
        >>> inputs = tokenizer(texts[:3], padding=True, return_tensors="pt")
        >>> model(**inputs).sentence_embedding.shape[0]
        3
    """
    encoder = opened(model)
    if encoder is None or not isinstance(encoder.model, SentenceEmbedder):
        raise TypeError(
            f"a SentenceTransformer is expected, got {type(model).__name__}. Load one with "
            "sentence_transformers.SentenceTransformer(...), and pass the object."
        )
    return encoder.model


def _body_in(whole: Any, name: str) -> PreTrainedModel:
    """The one model of transformers in an object, in its first module."""
    first = next(whole.children(), None)
    found = [module for module in whole.modules() if isinstance(module, PreTrainedModel)]
    outermost = [module for module in found if not any(module in list(other.modules())[1:] for other in found)]
    body = getattr(first, "model", None)
    if len(outermost) != 1 or body is not outermost[0]:
        raise UnsupportedArchitectureError(
            f"this {name} has {len(outermost)} models of transformers in it ({type(first).__name__} comes first), and "
            "hfprune takes one with a single Transformer module in front. Prune the models in it one by one."
        )
    return outermost[0]


def _check_scores(whole: Any, body: PreTrainedModel) -> None:
    """Refuse a reranker whose scores are not the logits of a classifier."""
    modules = list(whole.children())
    if len(modules) == 1 and "ForSequenceClassification" in base_class(type(body)).__name__:
        return
    behind = ", ".join(type(module).__name__ for module in modules[1:]) or "nothing"
    raise UnsupportedArchitectureError(
        f"this CrossEncoder is a {type(body).__name__} with {behind} behind it, and hfprune takes those that are a "
        "model for sequence classification alone. Prune the model in it, encoder[0].model, with data of its own task."
    )


def _check_embeddings(whole: Any, body: PreTrainedModel) -> None:
    """Refuse an embedding model whose body is not called in the plain way."""
    first = next(whole.children())
    called = getattr(first, "modality_config", {}).get("text", {})
    found = (called.get("method"), called.get("method_output_name"))
    if found != _PLAIN_FORWARD or body.base_model is not body:
        raise UnsupportedArchitectureError(
            f"this SentenceTransformer takes {found[1]!r} of {found[0]!r} of a {type(body).__name__}, and hfprune "
            f"takes those that pool {_PLAIN_FORWARD[1]!r} of a model without a head. Prune the model in it alone: "
            "model[0].model."
        )


def _with_modules_behind(whole: Any, body: PreTrainedModel) -> SentenceEmbedder:
    """The body with the modules behind it, as one model."""
    behind: list[nn.Module] = list(whole.children())[1:]
    prompt_length: int | None = None
    prompt = default_prompt(whole)
    if prompt:
        length = whole.preprocess(["text"], prompt=prompt).get("prompt_length")
        prompt_length = None if length is None else int(length)
    return embedder(body, behind, prompt_length=prompt_length, whole=whole)


def default_prompt(whole: Any) -> str | None:
    """The prompt that an encoder puts before every text if it is told nothing else."""
    name = getattr(whole, "default_prompt_name", None)
    prompts = getattr(whole, "prompts", None) or {}
    prompt: str | None = prompts.get(name)
    return prompt
