"""The recovery loss of a micro-batch: all losses that have a weight, from one pass of student and teacher each."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfprune.recovery.arguments import RecoveryArguments
from hfprune.recovery.columns import TEACHER_COLUMNS
from hfprune.recovery.finite import check_finite_terms
from hfprune.recovery.forward import call_arguments, outputs_of, with_decoder_inputs
from hfprune.recovery.losses.penalties import unit_penalties
from hfprune.recovery.losses.registry import (
    IGNORED_LABEL,
    OVER_DECODER_TOKENS,
    OVER_LABELS,
    OVER_TOKENS,
    LossInputs,
    Need,
    Term,
    known_losses,
    known_penalties,
)
from hfprune.structure.anatomy import anatomy_of
from hfprune.structure.batches import Batch, token_mask
from hfprune.structure.blocks import Block
from hfprune.structure.class_labels import fitting_labels
from hfprune.structure.predictions import judges_every_token, predicts_next_token


class BatchLoss(NamedTuple):
    """What the losses make of a micro-batch.

    Attributes:
        terms: By name of every loss that has any in the batch, its terms, unweighted.
        weights: By name, the weights of the losses that were asked.
        outputs: What the student returned.
    """

    terms: dict[str, Sequence[Term]]
    weights: dict[str, float]
    outputs: Any


def token_counts(batch: Batch) -> dict[str, Tensor | int | None]:
    """How many tokens of a batch are not padding, for encoder and decoder.

    Args:
        batch: Arguments of a model.

    Returns:
        By name of the mask that tells padding, the number of tokens; None if the batch does not say.
    """
    return {
        OVER_TOKENS: _tokens(batch, OVER_TOKENS, batch.get("input_ids")),
        OVER_DECODER_TOKENS: _tokens(batch, OVER_DECODER_TOKENS, batch.get("decoder_input_ids")),
    }


def _tokens(batch: Batch, mask_name: str, ids: Any) -> Tensor | int | None:
    mask = token_mask(batch, mask_name)
    if mask is not None:
        return mask.sum()
    if not isinstance(ids, Tensor):
        return None
    # no mask means no padding
    return ids.numel()


def mean_of(terms: Sequence[Term]) -> Tensor:
    """The value of a loss: the mean of its terms."""
    return torch.stack([term.value for term in terms]).mean()


def weighted_sum(batch_loss: BatchLoss, shares: Mapping[str, Tensor | float]) -> Tensor:
    """The loss of a micro-batch.

    Args:
        batch_loss: Its terms and their weights.
        shares: Factors by `Term.mean_over`. Each scales a mean over the micro-batch to its share of the whole step. A
            name without a factor counts with 1.

    Returns:
        A scalar.

    Examples:
        >>> terms = {"task": [Term(torch.tensor(2.0), "labels")], "logits": [Term(torch.tensor(3.0), "labels")]}
        >>> weighted_sum(BatchLoss(terms, {"task": 0.1, "logits": 1.0}, outputs=None), {"labels": 0.5})
        tensor(1.6000)
    """
    weighted = []
    for name, terms in batch_loss.terms.items():
        weight = batch_loss.weights[name] / len(terms)
        for term in terms:
            weighted.append(weight * shares.get(term.mean_over, 1.0) * term.value)
    return torch.stack(weighted).sum()


class RecoveryLoss:
    """Runs student and teacher over micro-batches, and asks every loss that has a weight for its terms.

    Args:
        args: The weights.
        student: The model that learns, before anything is wrapped around it.
        teacher: The model that it learns from, or None.
    """

    def __init__(self, args: RecoveryArguments, student: PreTrainedModel, teacher: PreTrainedModel | None) -> None:
        self.args = args
        self.teacher = teacher
        # Trainer does not know that the LMHeadModels shift their labels
        self.shifts_labels = predicts_next_token(student)
        self._judges_every_token = judges_every_token(student)
        self._losses = known_losses()
        self._penalties = [penalty for penalty in known_penalties().values() if args.weight_of(penalty) > 0]
        keeps_attention_outputs = self._needs("attention_outputs")
        self._blocks: list[Block] = []
        # models of unknown structure can be trained too, as long as nothing asks for their blocks
        if self._penalties or keeps_attention_outputs:
            self._blocks = [block for block in anatomy_of(student).blocks if block.units]
        #: By path of the projection that ends an attention block, the mask of the tokens that the block works on.
        self._attention_masks: dict[str, str] = {}
        if keeps_attention_outputs:
            self._attention_masks = {block.consumer: block.mask for block in self._blocks if block.unit != "neuron"}

    def _needs(self, need: Need) -> bool:
        """Whether any loss with a positive weight has this need; a loss of a teacher counts only if there is one."""
        for loss in self._losses.values():
            has_teacher = self.teacher is not None or "teacher" not in loss.needs
            if need in loss.needs and has_teacher and self.args.weight_of(loss) > 0:
                return True
        return False

    def terms(
        self,
        model: nn.Module,
        student: PreTrainedModel,
        inputs: dict[str, Any],
        autocast: AbstractContextManager[Any],
    ) -> BatchLoss:
        """Run both models over a micro-batch, and ask the losses.

        Args:
            model: The student as prepared by accelerate.
            student: The same model, out of its wrappers.
            inputs: The micro-batch, with the teacher's logits where they were computed before.
            autocast: The precision that the teacher runs in.

        Returns:
            The terms of every loss, their weights, and the student's outputs.

        Raises:
            ValueError: There is nothing to learn from, or a loss is NaN or infinite.
        """
        batch = with_decoder_inputs(student, fitting_labels(student, inputs))
        columns = {name: batch.pop(name) for name in TEACHER_COLUMNS if name in batch}
        runs_teacher = self._runs_teacher(columns)
        weights = self._weights(runs_teacher=runs_teacher, has_columns=bool(columns))
        unlabelled = {name: value for name, value in batch.items() if name != "labels"}
        if self._wants_labels(weights):
            outputs, attention_outputs = self._run(model, student, batch)
        else:
            # with labels the student would compute a loss that nothing weighs
            outputs, attention_outputs = self._run(model, student, unlabelled)
        teacher_outputs: Any = None
        teacher_attention_outputs: dict[str, Tensor] = {}
        if runs_teacher and self.teacher is not None:
            with torch.no_grad(), autocast:
                teacher_outputs, teacher_attention_outputs = self._run(self.teacher, self.teacher, unlabelled)
        loss_inputs = LossInputs(
            args=self.args,
            batch=batch,
            student=student,
            teacher=self.teacher,
            outputs=outputs,
            teacher_outputs=teacher_outputs,
            teacher_columns=columns,
            attention_outputs=attention_outputs,
            teacher_attention_outputs=teacher_attention_outputs,
            attention_masks=self._attention_masks,
            shifts_labels=self.shifts_labels,
        )
        terms = self._ask(weights, loss_inputs)
        check_finite_terms(terms, self._teacher_says(loss_inputs), allow_overflow=self.args.fp16)
        return BatchLoss(terms, weights, outputs)

    def _teacher_says(self, inputs: LossInputs) -> Iterator[tuple[str, str, Any]]:
        """All that the losses may take from the teacher: its name, where it is from, and its value."""
        for name, value in inputs.teacher_columns.items():
            yield name, "the data", value
        if inputs.teacher_outputs is None:
            return
        source = type(self.teacher).__name__
        for name, value in inputs.teacher_outputs.items():
            parts = value if isinstance(value, tuple) else (value,)
            for part in parts:
                yield name, source, part
        for name, value in inputs.teacher_attention_outputs.items():
            yield name, source, value

    def _runs_teacher(self, columns: Mapping[str, Tensor]) -> bool:
        """Whether the teacher runs over a batch; columns of the data with its logits can spare that."""
        changes_texts = self.args.token_dropout > 0
        if self.teacher is not None and (not columns or changes_texts or self._needs("teacher")):
            return True
        if columns and changes_texts:
            raise ValueError(
                f"{next(iter(columns))} are of whole texts, and token_dropout={self.args.token_dropout} changes the "
                "texts: pass teacher=, or drop one of the two."
            )
        return False

    def _weights(self, *, runs_teacher: bool, has_columns: bool) -> dict[str, float]:
        """By name, the weights of the losses to ask about a batch: those with a weight, and with what they need."""
        has_logits = runs_teacher or has_columns
        weights = {}
        for name, loss in self._losses.items():
            if "teacher" in loss.needs and not runs_teacher:
                continue
            if "teacher_logits" in loss.needs and not has_logits:
                continue
            weight = self.args.weight_of(loss)
            if loss.weight_without_teacher is not None and not has_logits:
                weight = loss.weight_without_teacher
            if weight > 0:
                weights[name] = weight
        return weights

    def _wants_labels(self, names: Iterable[str]) -> bool:
        return any("labels" in self._losses[name].needs for name in names)

    def _run(self, model: nn.Module, plain: PreTrainedModel, batch: Batch) -> tuple[Any, dict[str, Tensor]]:
        """A forward pass: the model's outputs, and those of its attention blocks where a loss needs them."""
        arguments = call_arguments(plain, batch)
        if self._needs("hidden_states"):
            arguments["output_hidden_states"] = True
        with outputs_of(plain.base_model, list(self._attention_masks)) as attention_outputs:
            return model(**arguments), attention_outputs

    def _ask(self, names: Iterable[str], inputs: LossInputs) -> dict[str, Sequence[Term]]:
        """The terms of every loss that has any in the batch."""
        all_ignored = self.count_labels(inputs.batch) == 0
        terms: dict[str, Sequence[Term]] = {}
        for name in names:
            of_loss = self._losses[name].function(inputs)
            if all_ignored:
                of_loss = list(map(_zero_for_no_labels, of_loss))
            if of_loss:
                terms[name] = of_loss
        if not terms:
            raise ValueError(
                f"there is nothing to learn from: the batch has {', '.join(inputs.batch)} but no labels that give a "
                "loss, and there is no teacher with a positive weight. Pass labels, or teacher=."
            )
        return terms

    def penalties(self, student: PreTrainedModel) -> dict[str, Tensor]:
        """The penalties that have a weight.

        Args:
            student: The model that learns, out of its wrappers.

        Returns:
            By name, a scalar for each, unweighted.
        """
        if not self._penalties:
            return {}
        return unit_penalties(student, self._blocks, self._penalties)

    def count_labels(self, batch: Batch) -> Tensor | None:
        """How many labels of a micro-batch the model learns from.

        Args:
            batch: The micro-batch.

        Returns:
            The number; None where there is nothing named `labels`.
        """
        labels: Tensor | None = batch.get("labels")
        if labels is None:
            return None
        mask = token_mask(batch)
        if self._judges_every_token and mask is not None:
            return mask.sum()
        if self.shifts_labels:
            # no token predicts the first label
            labels = labels[..., 1:]
        return (labels != IGNORED_LABEL).sum()


def _zero_for_no_labels(term: Term) -> Term:
    """The term of a batch whose labels are all ignored: 0 where it is a mean over labels, and so NaN."""
    if term.mean_over != OVER_LABELS:
        return term
    # its share of the step is 0, but 0 · NaN would be NaN
    return Term(torch.nan_to_num(term.value), term.mean_over)
