"""The recovery loss of a micro-batch: what `RecoveryArguments` weigh, from one pass of student and teacher each."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfprune.recovery.arguments import PENALTIES, TEACHER_WEIGHTS, RecoveryArguments
from hfprune.recovery.losses.attention_outputs import attention_outputs_loss
from hfprune.recovery.losses.hidden_states import hidden_states_loss
from hfprune.recovery.losses.logits import logits_loss, top_k_logits_loss
from hfprune.recovery.losses.penalties import unit_penalties
from hfprune.recovery.teacher import (
    TEACHER_COLUMNS,
    TEACHER_LOGITS,
    TEMPERATURE,
    TOP_IDS,
    TOP_LOG_PROBABILITIES,
    outputs_of,
)
from hfprune.scoring.objectives import predicts_next_token, without_padding
from hfprune.structure.anatomy import find_blocks
from hfprune.structure.batches import fitting_mask, predicted_tokens, token_mask
from hfprune.structure.running import without_cache

_LOGITS = ("logits", "start_logits", "end_logits")
_HIDDEN_STATES = ("hidden_states", "encoder_hidden_states", "decoder_hidden_states")
#: Names of masks: what a loss may be a mean over, beside labels.
TOKENS, DECODER_TOKENS = "attention_mask", "decoder_attention_mask"
LABEL = "labels"
#: A part of the loss: means, and by name of what each is one over; the part is their mean.
Part = list[tuple[Tensor, str]]


def token_counts(inputs: dict[str, Any]) -> dict[str, Tensor | int | None]:
    """How many tokens of a batch are no padding, by name of their mask; None if it does not say."""
    counts: dict[str, Tensor | int | None] = {}
    for name, ids in ((TOKENS, inputs.get("input_ids")), (DECODER_TOKENS, inputs.get("decoder_input_ids"))):
        mask = token_mask(inputs, name)
        counts[name] = mask.sum() if mask is not None else ids.numel() if isinstance(ids, Tensor) else None
    return counts


def weighted_sum(
    parts: Mapping[str, Part], weights: Mapping[str, float], shares: Mapping[str, Tensor | float]
) -> Tensor:
    """The loss of a micro-batch.

    Args:
        parts: Its parts.
        weights: Of each part.
        shares: By name of what means are over, what makes them count for their share of the whole step; else they are
            means of it.

    Returns:
        A scalar.
    """
    terms = [
        weights[name] / len(part) * shares.get(over, 1.0) * value
        for name, part in parts.items()
        for value, over in part
    ]
    return torch.stack(terms).sum()


def as_taken(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    """A batch without a key/value cache, and with sounds, pictures and embeddings in the model's present dtype.

    Args:
        model: The model.
        inputs: The batch.

    Returns:
        What the model is called with.
    """
    taken = without_cache(model, inputs)
    floats = {n: v for n, v in taken.items() if isinstance(v, Tensor) and v.is_floating_point() and n != LABEL}
    return taken | {name: value.to(model.dtype) for name, value in floats.items()}


def _with_decoder_inputs(model: PreTrainedModel, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """A batch with what the decoder reads, where the model would make that of the labels: the teacher gets none."""
    inputs, labels = dict(inputs), inputs.get("labels")
    if (
        model.config.is_encoder_decoder
        and isinstance(labels, Tensor)
        and not {"decoder_input_ids", "decoder_inputs_embeds"} & inputs.keys()
        and hasattr(model, "prepare_decoder_input_ids_from_labels")
    ):
        inputs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels=labels)
    return inputs


def _mask_of(states: str) -> str:
    return DECODER_TOKENS if states == "decoder_hidden_states" else TOKENS


class RecoveryLoss:
    """Gives the parts of the loss, unweighted, and their weights.

    Args:
        args: The weights.
        student: The model that learns, before anything is wrapped around it.
        teacher: The model that it learns from, or None.
    """

    def __init__(self, args: RecoveryArguments, student: PreTrainedModel, teacher: PreTrainedModel | None) -> None:
        self.args, self.teacher = args, teacher
        self.shifts_labels = predicts_next_token(student)  # Trainer misses the LMHeadModels
        self.penalised = [name for name in PENALTIES if getattr(args, name) > 0]
        matched = args.attention_outputs_weight > 0
        self.blocks = [b for b in find_blocks(student) if b.units] if self.penalised or matched else []
        self._attention = {b.consumer: b.mask for b in self.blocks if matched and b.kind == "attention"}

    def parts(
        self,
        model: nn.Module,
        student: PreTrainedModel,
        inputs: dict[str, Any],
        autocast: AbstractContextManager[Any],
    ) -> tuple[dict[str, Part], dict[str, float], Any]:
        """Run both models over a micro-batch.

        Args:
            model: The student as prepared by accelerate.
            student: The same model, out of its wrappers.
            inputs: The micro-batch, with the teacher's logits where they were computed before.
            autocast: The precision that the teacher runs in.

        Returns:
            The parts by name, with what each of their means is over; their weights; and the student's outputs.

        Raises:
            ValueError: There is nothing to learn from.
        """
        inputs = _with_decoder_inputs(student, inputs)
        known = {name: inputs.pop(name) for name in TEACHER_COLUMNS if name in inputs}
        runs_teacher = self.teacher is not None and (not known or self._needs_more_than_logits())
        if known and not runs_teacher and self.args.token_dropout > 0:
            raise ValueError(
                f"{next(iter(known))} are of whole texts, and token_dropout={self.args.token_dropout} changes the "
                "texts: pass teacher=, or drop one of the two."
            )
        weights = {name.removesuffix("_weight"): getattr(self.args, name) for name in TEACHER_WEIGHTS}
        weights["task"] = self.args.task_weight if runs_teacher or known else 1.0
        unlabelled = {name: value for name, value in inputs.items() if name != "labels"}
        outputs, attention = self._run(model, student, inputs if weights["task"] > 0 else unlabelled)
        parts: dict[str, Part] = {}
        if outputs.get("loss") is not None:
            parts["task"] = [(outputs["loss"], LABEL)]
        if runs_teacher and self.teacher is not None:
            with torch.no_grad(), autocast:
                target, target_attention = self._run(self.teacher, self.teacher, unlabelled)
            parts |= self._distillation(student, inputs, outputs, target)
            if self._attention:
                parts["attention_outputs"] = self._attention_part(inputs, attention, target_attention)
        elif known and self.args.logits_weight > 0:
            parts["logits"] = self._known_logits(student, inputs, outputs, known)
        if self.labels(inputs) == 0:  # means of nothing, 0 / 0, whose share is 0
            for name in {"task", "logits"} & parts.keys():
                parts[name] = [(torch.nan_to_num(value), over) for value, over in parts[name]]
        parts = {name: value for name, value in parts.items() if weights[name] > 0}
        if not parts:
            raise ValueError(
                f"there is nothing to learn from: the batch has {', '.join(inputs)} but no labels that give a loss, "
                "and there is no teacher with a positive weight. Pass labels, or teacher=."
            )
        return parts, weights, outputs

    def penalties(self, student: PreTrainedModel) -> dict[str, Tensor]:
        """The penalties on units that have a weight, unweighted."""
        if not self.penalised:
            return {}
        found = unit_penalties(student, self.blocks)
        return {name: found[name] for name in self.penalised}

    def _needs_more_than_logits(self) -> bool:
        weights = (getattr(self.args, name) for name in TEACHER_WEIGHTS if name != "logits_weight")
        return any(weight > 0 for weight in weights) or self.args.token_dropout > 0

    def _run(self, model: nn.Module, plain: PreTrainedModel, inputs: dict[str, Any]) -> tuple[Any, dict[str, Tensor]]:
        """A forward pass with all that the loss wants of it."""
        taught = self.teacher is not None
        extra = {"output_hidden_states": True} if taught and self.args.hidden_states_weight > 0 else {}
        with outputs_of(plain.base_model, list(self._attention) if taught else ()) as attention:
            return model(**as_taken(plain, inputs), **extra), attention

    def _distillation(
        self, student: PreTrainedModel, inputs: dict[str, Any], outputs: Any, target: Any
    ) -> dict[str, Part]:
        parts = {}
        if self.args.logits_weight > 0 and any(outputs.get(name) is not None for name in _LOGITS):
            parts["logits"] = self._logits(student, inputs, outputs, target)
        if self.args.hidden_states_weight > 0:
            parts["hidden_states"] = []
            for name in (name for name in _HIDDEN_STATES if outputs.get(name) is not None):
                mask = fitting_mask(inputs, _mask_of(name), outputs[name][-1])
                # the first entry is the embeddings', which pruning does not touch
                value = hidden_states_loss(outputs[name][1:], target[name][1:], mask=mask)
                parts["hidden_states"].append((value, _mask_of(name)))
        return parts

    def _logits(self, student: PreTrainedModel, inputs: dict[str, Any], outputs: Any, target: Any) -> Part:
        logits = outputs.get("logits")
        problem = self._problem(student, inputs, logits)
        mask, part = self._token_mask(student, inputs, logits), []
        over = self._mean_over(student, inputs, logits)
        for name in (name for name in _LOGITS if outputs.get(name) is not None):
            mine, theirs = outputs[name], target[name]
            if name != "logits":
                mine, theirs = without_padding(mine, inputs), without_padding(theirs, inputs)
            value = logits_loss(mine, theirs, temperature=self.args.temperature, problem=problem, mask=mask)
            part.append((value, over))
        return part

    def _problem(self, student: PreTrainedModel, inputs: dict[str, Any], logits: Tensor | None) -> str:
        """What kind of task it is: as transformers goes by the labels where no config says it."""
        if logits is not None and logits.shape[-1] == 1:
            return "regression"
        said = [model.config.problem_type for model in (student, self.teacher) if model is not None]
        labels = inputs.get(LABEL)
        several = logits is not None and logits.ndim == 2 and isinstance(labels, Tensor) and labels.is_floating_point()
        default = "multi_label_classification" if several else "single_label_classification"
        return next((problem for problem in said if problem), default)

    def _mean_over(self, student: PreTrainedModel, inputs: dict[str, Any], logits: Tensor | None) -> str:
        """What the loss of logits is a mean over: of tokens, where there are no labels."""
        if self.labels(inputs) is not None or logits is None or logits.ndim < 3:
            return LABEL
        return DECODER_TOKENS if student.config.is_encoder_decoder else TOKENS

    def _known_logits(
        self, student: PreTrainedModel, inputs: dict[str, Any], outputs: Any, known: Mapping[str, Tensor]
    ) -> Part:
        """The same against what the teacher said before: all of its logits, or its likeliest tokens."""
        if TEACHER_LOGITS in known:
            return self._logits(student, inputs, outputs, {"logits": known[TEACHER_LOGITS]})
        kept, temperature = known[TEMPERATURE].float(), self.args.temperature
        if not torch.allclose(kept, torch.full_like(kept, temperature)):
            raise ValueError(
                f"the teacher's log-probabilities in the data are softened with a temperature of {float(kept[0]):g}, "
                f"and temperature={temperature:g}. Set that, or keep them anew: add_teacher_logits(temperature=...)."
            )
        top, log_probabilities = known[TOP_IDS], known[TOP_LOG_PROBABILITIES]
        logits = outputs["logits"]
        mask = self._token_mask(student, inputs, logits)
        value = top_k_logits_loss(logits, top, log_probabilities, temperature=temperature, mask=mask)
        return [(value, self._mean_over(student, inputs, logits))]

    def _attention_part(self, inputs: dict[str, Any], mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> Part:
        part = []
        for path, name in self._attention.items():
            a, b, mask = mine[path], theirs[path], token_mask(inputs, name)
            if mask is not None and a.ndim == 2 and len(a) == mask.numel():  # samples and tokens are flattened there
                a, b = (value.reshape(*mask.shape, -1) for value in (a, b))
            part.append((attention_outputs_loss([a], [b], mask=fitting_mask(inputs, name, a)), name))
        return part

    def _token_mask(self, student: PreTrainedModel, inputs: dict[str, Any], logits: Tensor | None) -> Tensor | None:
        """Which tokens' predictions count: the labelled ones, else those that are not padding."""
        labels: Tensor | None = inputs.get("labels")
        if logits is None or logits.ndim < 3:
            return inputs.get("attention_mask")
        if labels is None or labels.is_floating_point() or labels.shape != logits.shape[:2]:
            return predicted_tokens(student, inputs, logits)
        if not self.shifts_labels:
            return labels != -100
        mask = torch.zeros_like(labels, dtype=torch.bool)
        mask[:, :-1] = labels[:, 1:] != -100
        return mask

    def labels(self, inputs: dict[str, Any]) -> Tensor | None:
        """How many labels a micro-batch has; None where it has no `labels`."""
        labels: Tensor | None = inputs.get("labels")
        if labels is None:
            return None
        return ((labels[..., 1:] if self.shifts_labels else labels) != -100).sum()
