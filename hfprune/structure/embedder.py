"""A model of texts and the modules behind it as one model, whose output is one vector for each text."""

import copy
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

#: The field of the output with the vector of every text, and what modules call it among themselves.
SENTENCE_EMBEDDING = "sentence_embedding"
#: What the modules behind a body call its last hidden states.
_TOKEN_EMBEDDINGS = "token_embeddings"


@dataclass
class EmbeddingOutput(ModelOutput):
    """What an embedding model returns.

    Attributes:
        loss: With labels, the mean over texts of the squared distance from them.
        sentence_embedding: The vector of every text, `(samples, features)`.
        hidden_states: Those of the body, where they were asked for.
    """

    loss: Tensor | None = None
    sentence_embedding: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class SentenceEmbedder(PreTrainedModel):
    """A body of transformers, and the modules behind it that make one vector of its hidden states.

    Scorers, repair and recovery take it as a model with a head: its output has `sentence_embedding` in the place of
    logits. It holds the body and the modules themselves, not copies, so what changes their weights changes them where
    they came from. Plan and record are those of the body. `embedder` makes one.

    Args:
        body: The body, dense or pruned.
        behind: Modules that take a dictionary and add to it, as those of sentence-transformers do. The last leaves
            `sentence_embedding`.
        prompt_length: How many tokens of every text are a prompt, for a pooling that leaves prompts out.
        whole: The object that body and modules are of, which knows how to save them; None if there is none.
    """

    base_model_prefix = "body"
    config: Any
    # the body has checked by now which kernels it can run with
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    whole: Any

    def __init__(
        self,
        body: PreTrainedModel,
        behind: Iterable[nn.Module],
        *,
        prompt_length: int | None = None,
        whole: Any = None,
    ) -> None:
        super().__init__(body.config)
        # it holds the same modules, which must not be listed twice
        object.__setattr__(self, "whole", whole)
        self.body = body
        self.behind = nn.ModuleList(behind)
        self.prompt_length = prompt_length
        self.main_input_name = body.main_input_name
        self.supports_gradient_checkpointing = body.supports_gradient_checkpointing
        self.all_tied_weights_keys: dict[str, str] = {}
        for name, original in getattr(body, "all_tied_weights_keys", {}).items():
            self.all_tied_weights_keys[f"body.{name}"] = f"body.{original}"
        self.training = body.training

    @property
    def pruning_plan(self) -> Any:
        """The plan of the body; None if it was not pruned."""
        return getattr(self.body, "pruning_plan", None)

    @pruning_plan.setter
    def pruning_plan(self, plan: Any) -> None:
        self.body.pruning_plan = plan

    @property
    def pruning_record(self) -> Any:
        """The record of the body; None if it was not pruned."""
        return getattr(self.body, "pruning_record", None)

    @pruning_record.setter
    def pruning_record(self, record: Any) -> None:
        self.body.pruning_record = record

    def forward(self, *, labels: Tensor | None = None, **inputs: Any) -> EmbeddingOutput:
        """Run the body, and then the modules behind it.

        Args:
            labels: The vectors that the texts should have, such as those of another model, `(samples, features)`.
            **inputs: Arguments of the body.

        Returns:
            The vectors.
        """
        inputs.pop("return_dict", None)
        output = self.body(**inputs, return_dict=True)
        features: dict[str, Any] = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
        features[_TOKEN_EMBEDDINGS] = output.last_hidden_state
        if self.prompt_length is not None:
            features["prompt_length"] = self.prompt_length
        for module in self.behind:
            features = module(features)
        vectors: Tensor = features[SENTENCE_EMBEDDING]
        loss: Tensor | None = None
        if labels is not None:
            loss = (vectors.float() - labels.float()).square().sum(-1).mean()
        return EmbeddingOutput(loss=loss, sentence_embedding=vectors, hidden_states=output.get("hidden_states"))

    def around(self, body: PreTrainedModel) -> "SentenceEmbedder":
        """The same around another body, with copies of the modules behind it.

        Args:
            body: The other body.

        Returns:
            A new model.
        """
        behind = copy.deepcopy(self.behind)
        # what a copy meets first is given to it, so that it puts the new modules in every place of the old ones
        others: dict[int, Any] = {id(self.body): body}
        for before, after in zip(self.behind, behind, strict=True):
            others[id(before)] = after
        whole = copy.deepcopy(self.whole, others)
        other = embedder(body, behind, prompt_length=self.prompt_length, whole=whole)
        other.training = self.training
        return other


def embedder(
    body: PreTrainedModel, behind: Iterable[nn.Module], *, prompt_length: int | None = None, whole: Any = None
) -> SentenceEmbedder:
    """A body and the modules behind it as one model, whose `forward` names the arguments of the body.

    Args:
        body: As for `SentenceEmbedder`.
        behind: As for `SentenceEmbedder`.
        prompt_length: As for `SentenceEmbedder`.
        whole: As for `SentenceEmbedder`.

    Returns:
        The model.

    Examples:
        >>> import torch
        >>> from hfprune.structure.embedder import embedder
        >>> class FirstToken(torch.nn.Module):
        ...     def forward(self, features):
        ...         return {"sentence_embedding": features["token_embeddings"][:, 0]}
        >>> model = embedder(dense.bert, [FirstToken()])
        >>> tuple(model(input_ids=torch.tensor([[2, 5, 3]])).sentence_embedding.shape)
        (1, 16)
    """
    body_class: Any = type(body)
    return _class_for(body_class)(body, behind, prompt_length=prompt_length, whole=whole)


@cache
def _class_for(body_class: type[PreTrainedModel]) -> type[SentenceEmbedder]:
    """A class whose `forward` has the signature of that of a class of bodies: trainers drop columns by it."""

    def forward(self: SentenceEmbedder, **inputs: Any) -> EmbeddingOutput:
        return SentenceEmbedder.forward(self, **inputs)

    of_body = inspect.signature(body_class.forward)
    labels = inspect.Parameter("labels", inspect.Parameter.KEYWORD_ONLY, default=None)
    parameters = list(of_body.parameters.values())
    # keywords of any name stand last
    place = len(parameters) - (parameters[-1].kind is inspect.Parameter.VAR_KEYWORD)
    parameters.insert(place, labels)
    forward.__signature__ = of_body.replace(parameters=parameters)  # type: ignore[attr-defined]
    # the name stays, as messages quote it
    return type("SentenceEmbedder", (SentenceEmbedder,), {"forward": forward, "__module__": __name__})


def body_of(model: PreTrainedModel) -> PreTrainedModel:
    """The model of transformers in a model that may be an embedder: that whose class and weights are saved.

    Args:
        model: The model.

    Returns:
        The body of an embedder; any other model as it is.
    """
    return model.body if isinstance(model, SentenceEmbedder) else model
