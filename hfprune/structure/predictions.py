"""What the outputs of a model predict: the one place that says what its logits mean.

Scoring draws labels from logits, recovery compares them with a teacher's, and metrics look for the largest. All of them
need to know which outputs hold predictions, what each number is for (a class, a choice, a token), and by which link it
becomes a probability.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

from hfprune.errors import CalibrationError
from hfprune.structure.batches import Batch, predicted_tokens
from hfprune.structure.embedder import SENTENCE_EMBEDDING

#: How a logit becomes a prediction: a probability among all outcomes, a probability of its own, or the number itself.
Link = Literal["softmax", "sigmoid", "identity"]
#: What has a prediction of its own.
Subject = Literal["sample", "token", "pixel"]
#: What the outcomes of one prediction are. None: there is a single number.
Axis = Literal["classes", "choices", "tokens"] | None
#: The words of transformers for what a classifier of samples predicts.
Problem = Literal["regression", "multi_label_classification", "single_label_classification"]

_LINKS: dict[Problem, Link] = {
    "regression": "identity",
    "multi_label_classification": "sigmoid",
    "single_label_classification": "softmax",
}


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One kind of prediction that a model makes.

    Attributes:
        field: The field of the model's output with the logits.
        link: How a logit becomes a prediction.
        subject: What has a prediction of its own: a sample, a token, or a pixel.
        axis: What the outcomes are: classes; the choices of a question; the tokens of a text, one of which is chosen,
            and never padding; or None for a single number.
        labels: The argument of the model with the labels.
    """

    field: str
    link: Link = "softmax"
    subject: Subject = "sample"
    axis: Axis = "classes"
    labels: str = "labels"


class _Family(NamedTuple):
    """What the field `logits` holds in models of some classes.

    Attributes:
        pattern: Matches a part of the name of the class.
        prediction: What they predict.
        by_problem: Whether the link follows from `config.problem_type` and the labels.
    """

    pattern: str
    prediction: Prediction
    by_problem: bool = False


_OF_SAMPLES = Prediction(field="logits")
_OF_TOKENS = Prediction(field="logits", subject="token")
_CLASSIFIERS = r"For(Sequence|Image|Video|Audio)Classification"
#: Models with a vector of logits for each token of a text, or for each frame of a sound.
_TAGGERS = r"For(TokenClassification|AudioFrameClassification|CTC|MaskedImageModeling)"
_WRITERS = r"For(MaskedLM|CausalLM|ConditionalGeneration|SpeechToText|TextToText)|LMHead|MTModel|EncoderDecoderModel"
#: By class name, what `logits` are. The first that matches counts.
_FAMILIES = (
    _Family(_CLASSIFIERS, _OF_SAMPLES, by_problem=True),
    _Family(r"ForNextSentencePrediction|ForXVector", _OF_SAMPLES),
    _Family(r"ForMultipleChoice", Prediction(field="logits", axis="choices")),
    _Family(_TAGGERS, _OF_TOKENS),
    _Family(_WRITERS, _OF_TOKENS),
    # the answers to a question about a picture are scored one by one
    _Family(r"ViltForQuestionAnswering", Prediction(field="logits", link="sigmoid")),
    # ELECTRA's detector says of every token whether it was replaced
    _Family(r"(Electra|Funnel)ForPreTraining", Prediction(field="logits", link="sigmoid", subject="token", axis=None)),
    _Family(r"ForSemanticSegmentation", Prediction(field="logits", subject="pixel")),
)
#: Fields that mean the same in every model that has them.
_FIELDS = {
    "start_logits": Prediction(field="start_logits", axis="tokens", labels="start_positions"),
    "end_logits": Prediction(field="end_logits", axis="tokens", labels="end_positions"),
    "prediction_logits": Prediction(field="prediction_logits", subject="token"),
    "seq_relationship_logits": Prediction(field="seq_relationship_logits", labels="next_sentence_label"),
    "sop_logits": Prediction(field="sop_logits", labels="sentence_order_label"),
    # each number of the vector of a text is a prediction of its own
    SENTENCE_EMBEDDING: Prediction(field=SENTENCE_EMBEDDING, link="identity"),
}
#: How fields with predictions are called.
_PREDICTS = re.compile(rf"logits|score|pred|^{SENTENCE_EMBEDDING}$")
#: Fields that are called so, but predict nothing: of the routers of experts, and the two halves of a mean.
_NO_PREDICTIONS = re.compile(r"router_logits|^cls_logits$|^distillation_logits$")
#: The dimensions of logits, by subject and axis.
_DIMENSIONS = {
    ("sample", "classes"): 2,
    ("sample", "choices"): 2,
    ("sample", "tokens"): 2,
    ("token", "classes"): 3,
    ("token", None): 2,
    ("pixel", "classes"): 4,
}


def predictions_of(
    model: PreTrainedModel,
    output: Mapping[str, Any],
    batch: Mapping[str, Any],
    *,
    taker: str,
    teacher: PreTrainedModel | None = None,
) -> list[Prediction]:
    """Which fields of an output hold predictions, and what each of them means.

    Args:
        model: The model.
        output: What it returned.
        batch: Its arguments. Where neither config nor class say what a classifier predicts, transformers goes by its
            labels, and so does this.
        taker: Who asks, for messages: such as `this scorer`.
        teacher: Whose config counts where the model's does not say what it predicts.

    Returns:
        At least one prediction.

    Raises:
        CalibrationError: The model predicts nothing, or something whose meaning is not known.

    Examples:
        >>> from hfprune.structure.predictions import predictions_of
        >>> output = dense(**batches[0])
        >>> prediction = predictions_of(dense, output, batches[0], taker="this example")[0]
        >>> prediction.field, prediction.link, prediction.subject, prediction.axis
        ('logits', 'softmax', 'sample', 'classes')
    """
    fields = prediction_fields(output)
    if not fields:
        raise CalibrationError(
            f"{taker} goes by the model's logits, and {type(model).__name__} has none. Load the model with "
            "a head: AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoModelForCausalLM ..."
        )
    predictions = []
    for field in fields:
        prediction = _FIELDS.get(field)
        if field == "logits":
            prediction = _of_logits(model, output[field], batch, teacher)
        if prediction is None or output[field].ndim != _DIMENSIONS[prediction.subject, prediction.axis]:
            raise _unknown(model, field, output[field], taker)
        predictions.append(prediction)
    return predictions


def prediction_fields(output: Mapping[str, Any]) -> list[str]:
    """The fields of an output that hold predictions, by their names.

    Args:
        output: What a model returned.

    Returns:
        Names, in the order of the output.

    Examples:
        >>> one = torch.ones(1)
        >>> prediction_fields({"loss": one, "start_logits": one, "end_logits": one, "router_logits": one})
        ['start_logits', 'end_logits']
    """
    fields = []
    for name, value in output.items():
        if value is not None and _PREDICTS.search(name) and not _NO_PREDICTIONS.search(name):
            fields.append(name)
    return fields


def _unknown(model: PreTrainedModel, field: str, value: Any, taker: str) -> CalibrationError:
    """The refusal of a field whose meaning is not known."""
    shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
    return CalibrationError(
        f"{taker} goes by what the model predicts, and what {field!r}{shape} of {type(model).__name__} means is not "
        "known: over which axis it is a probability, and of what. Load the model with a head for one task "
        "(AutoModelForSequenceClassification, AutoModelForMaskedLM, ...); or take a scorer that reads no predictions, "
        "such as obs or l2, and recover with logits_weight=0."
    )


def _of_logits(
    model: PreTrainedModel, logits: Any, batch: Mapping[str, Any], teacher: PreTrainedModel | None
) -> Prediction | None:
    """What the field `logits` of a model means; None if that is not known."""
    if not isinstance(logits, Tensor):
        return None
    family = _family_of(model) or _by_shape(model, logits)
    if family is None:
        return None
    if not family.by_problem:
        return family.prediction
    return replace(family.prediction, link=_LINKS[problem_of(model, logits, batch, teacher=teacher)])


def _family_of(model: PreTrainedModel) -> _Family | None:
    # a class of the user's is what the class is that it was made from
    for ancestor in type(model).__mro__:
        for family in _FAMILIES:
            if re.search(family.pattern, ancestor.__name__):
                return family
    return None


def _by_shape(model: PreTrainedModel, logits: Tensor) -> _Family | None:
    """The meaning of logits of a class without a known name: classes or words, of which the config says the number."""
    outcomes = logits.shape[-1]
    if logits.ndim == 2 and outcomes == getattr(model.config, "num_labels", None):
        return _Family("", _OF_SAMPLES, by_problem=True)
    if logits.ndim == 3 and outcomes == getattr(model.config.get_text_config(), "vocab_size", None):
        return _Family("", _OF_TOKENS)
    return None


def stated_problem(config: PretrainedConfig, outputs: int) -> Problem | None:
    """What a classifier of samples predicts, as far as its config and the number of its outputs tell.

    Args:
        config: The config.
        outputs: How many logits a sample has.

    Returns:
        The word of transformers for it; None where the labels decide, as `problem_of` says.

    Examples:
        >>> from transformers import BertConfig
        >>> from hfprune.structure.predictions import stated_problem
        >>> stated_problem(BertConfig(), 1), stated_problem(BertConfig(problem_type="regression"), 2)
        ('regression', 'regression')
        >>> stated_problem(BertConfig(), 2) is None
        True
    """
    problem: Problem | None = config.problem_type
    # transformers takes a single class for a number too
    if outputs == 1 and problem != "multi_label_classification":
        return "regression"
    return problem


def predicts_number(config: PretrainedConfig) -> bool:
    """Whether a classifier of samples is a regression: its outputs are numbers, not logits of classes.

    Args:
        config: Its config.

    Returns:
        Whether it is.

    Examples:
        >>> from transformers import BertConfig
        >>> from hfprune.structure.predictions import predicts_number
        >>> predicts_number(BertConfig(num_labels=1)), predicts_number(BertConfig(num_labels=3))
        (True, False)
    """
    return stated_problem(config, config.num_labels) == "regression"


def problem_of(
    model: PreTrainedModel, logits: Tensor, batch: Mapping[str, Any], *, teacher: PreTrainedModel | None = None
) -> Problem:
    """What a classifier of samples predicts, as transformers decides it.

    A single logit is a number, unless the config calls it a label of its own. Otherwise the config says it; where it
    does not, labels that are floats, or a truth value for each class, are several labels of a sample, and all else is
    one class.

    Args:
        model: The model.
        logits: `(samples, classes)`.
        batch: The arguments of the model.
        teacher: Whose config counts where the model's does not say it.

    Returns:
        The word of transformers for it.

    Examples:
        >>> from hfprune.structure.predictions import problem_of
        >>> dense.config.problem_type is None
        True
        >>> problem_of(dense, torch.zeros(2, 3), {"labels": torch.zeros(2, 3)})
        'multi_label_classification'
        >>> problem_of(dense, torch.zeros(2, 3), {"labels": torch.tensor([0, 2])})
        'single_label_classification'
    """
    config = model.config
    if config.problem_type is None and teacher is not None:
        config = teacher.config
    problem = stated_problem(config, logits.shape[-1])
    if problem is not None:
        return problem
    labels = batch.get("labels")
    if isinstance(labels, Tensor):
        is_true_or_false = labels.dtype == torch.bool and labels.shape == logits.shape
        if labels.is_floating_point() or is_true_or_false:
            return "multi_label_classification"
    return "single_label_classification"


def predicted_logits(prediction: Prediction, output: Mapping[str, Any], model: PreTrainedModel, *, who: str) -> Tensor:
    """The logits of a prediction in an output, with the outcomes last.

    Args:
        prediction: The prediction.
        output: What the model returned.
        model: The model.
        who: What the model is called in the message: such as `the teacher`.

    Returns:
        `(samples, outcomes)`; of tokens `(samples, tokens, outcomes)`; of pixels `(samples, height, width, outcomes)`.

    Raises:
        CalibrationError: The output has no such field.
    """
    logits = output.get(prediction.field)
    if not isinstance(logits, Tensor):
        raise CalibrationError(
            f"{who} has no {prediction.field!r}: {type(model).__name__} returned {', '.join(output)}. It must have the "
            "same head as the model that is compared with it: load it with the same class, such as "
            "AutoModelForSequenceClassification."
        )
    if prediction.subject == "pixel":
        return logits.movedim(1, -1)
    if prediction.axis is None:
        return logits.unsqueeze(-1)
    return logits


def counting_mask(prediction: Prediction, model: PreTrainedModel, batch: Batch, logits: Tensor) -> Tensor | None:
    """Which tokens count: those that are not padding.

    Args:
        prediction: The prediction.
        model: The model.
        batch: Its arguments.
        logits: As `predicted_logits` returns them.

    Returns:
        `(samples, tokens)` bool: tokens that have a prediction, or that can be chosen. None: all count.
    """
    if prediction.subject != "token" and prediction.axis != "tokens":
        return None
    return predicted_tokens(model, batch, logits)


def without_padding(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Set logits over the tokens of a text so low at padding that padding is never chosen.

    Args:
        logits: `(samples, tokens)`.
        mask: Which tokens can be chosen, `(samples, tokens)` bool. None: all.

    Returns:
        `(samples, tokens)`.

    Examples:
        >>> without_padding(torch.tensor([[1.0, 2.0]]), torch.tensor([[True, False]])).softmax(-1)
        tensor([[1., 0.]])
    """
    if mask is None:
        return logits
    return logits.masked_fill(~mask, torch.finfo(logits.dtype).min)


def classifies_samples(model: PreTrainedModel) -> bool:
    """Whether the model has a head that says something of whole samples, which `config.problem_type` names.

    Args:
        model: The model.

    Returns:
        Whether it is known to have one.
    """
    family = _family_of(model)
    return family is not None and family.by_problem


def judges_every_token(model: PreTrainedModel) -> bool:
    """Whether the model says one number of every token, so that the labels of all tokens but padding count.

    Args:
        model: The model, such as ELECTRA's detector of replaced tokens.

    Returns:
        Whether it does.
    """
    family = _family_of(model)
    return family is not None and family.prediction.axis is None


def predicts_next_token(model: PreTrainedModel) -> bool:
    """Whether logits at position i are for token i + 1 (a causal language model, not an encoder-decoder)."""
    has_causal_loss = LOSS_MAPPING.get(getattr(model, "loss_type", None)) is ForCausalLMLoss
    # GPT-2's class and some others have no loss_type
    is_lm_head_model = type(model).__name__.endswith("LMHeadModel")
    return (has_causal_loss or is_lm_head_model) and not model.config.is_encoder_decoder
