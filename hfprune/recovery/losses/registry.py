"""The registries of recovery: losses, which look at the outputs for a batch, and penalties on the weights of units.

A new loss is one file with one registration. It says what it needs, gets that, and returns its terms:

    from torch import Tensor
    from hfprune.recovery.losses import LossInputs, Term, register_loss

    @register_loss("agreement", needs=["teacher"])
    def agreement(inputs: LossInputs) -> list[Term]:
        student = inputs.outputs.logits.softmax(-1)
        teacher = inputs.teacher_outputs.logits.softmax(-1)
        value = (student - teacher).abs().sum(-1).mean()
        return [Term(value, mean_over="labels")]

    args = RecoveryArguments(output_dir="out", loss_weights={"agreement": 0.2})
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainingArguments

from hfprune.structure.arguments import TEXT, checked
from hfprune.structure.batches import Batch
from hfprune.structure.registration import check_same

#: What a term can be a mean over: the labels of a batch, or the tokens that one of its masks lets through.
OVER_LABELS = "labels"
OVER_TOKENS = "attention_mask"
OVER_DECODER_TOKENS = "decoder_attention_mask"
#: The label that losses of transformers leave out: of padding, and of tokens that are not to be predicted.
IGNORED_LABEL = -100

#: What a loss can need.
#: `labels`: the student is called with the labels, so that its outputs have a loss.
#: `teacher`: the teacher runs over every batch.
#: `teacher_logits`: the logits of the teacher, which the data can have as columns. The teacher then rests.
#: `hidden_states`: the outputs of the models have hidden states.
#: `attention_outputs`: the outputs of the last projection of every attention block are kept.
Need = Literal["labels", "teacher", "teacher_logits", "hidden_states", "attention_outputs"]


class Term(NamedTuple):
    """One mean that a loss consists of; the loss is the mean of its terms.

    Attributes:
        value: A scalar, the mean over one micro-batch.
        mean_over: What it is a mean over: `labels`, or the tokens of `attention_mask` or `decoder_attention_mask`.
            Under gradient accumulation a micro-batch then counts for its share of the labels or tokens of the whole
            step, so that the gradient is that of one large batch.
    """

    value: Tensor
    mean_over: str


@dataclass(frozen=True, kw_only=True)
class LossInputs:
    """What a loss gets to compute its terms from: one micro-batch, and what the models gave for it.

    Attributes:
        args: The `RecoveryArguments` of the training, whose weights are defined by these registries.
        batch: The arguments of the models, labels included; the columns of the teacher are not among them.
        student: The model that learns, out of all wrappers.
        teacher: The model that it learns from, also where it rests because the data has its logits; None without one.
        outputs: What the student returned.
        teacher_outputs: What the teacher returned for the same batch; None where it did not run.
        teacher_columns: By name, the columns of `add_teacher_logits` that the data has.
        attention_outputs: By module path, what the last projection of every attention block of the student returned.
            Empty unless a loss needs them.
        teacher_attention_outputs: The same of the teacher.
        attention_masks: By the same paths, the name of the mask of the tokens that the block works on.
        shifts_labels: Whether the logits at place i predict the label at place i + 1, as in causal language models.
    """

    args: TrainingArguments
    batch: Batch
    student: PreTrainedModel
    teacher: PreTrainedModel | None
    outputs: Any
    teacher_outputs: Any
    teacher_columns: Mapping[str, Tensor]
    attention_outputs: Mapping[str, Tensor]
    teacher_attention_outputs: Mapping[str, Tensor]
    attention_masks: Mapping[str, str]
    shifts_labels: bool


@dataclass(frozen=True, kw_only=True)
class UnitWeights:
    """The weights of the units of one block: what a penalty gets.

    Attributes:
        slices: For every parameter that the units own a slice of: `(units, weights of one unit in it)`.
    """

    slices: Sequence[Tensor]

    @property
    def weights_per_unit(self) -> int:
        """How many weights one unit has in all."""
        return sum(weights.shape[1] for weights in self.slices)

    @cached_property
    def squares(self) -> Tensor:
        """Σw² over the weights of each unit, `(units,)`."""
        by_slice = [weights.square().sum(1) for weights in self.slices]
        return torch.stack(by_slice).sum(0)


#: The terms of a micro-batch; none where it has nothing that the loss could look at.
LossFunction = Callable[[LossInputs], Sequence[Term]]
#: A scalar: the sum over the units of one block.
PenaltyFunction = Callable[[UnitWeights], Tensor]


@dataclass(frozen=True, kw_only=True)
class Weighted:
    """A part of the training objective that users can weigh.

    Attributes:
        name: What users write in `loss_weights`, and what logs call it: `loss_<name>`.
        weight_field: The field of `RecoveryArguments` that holds its weight; empty where `loss_weights` does.
    """

    name: str
    weight_field: str = ""

    @property
    def setting(self) -> str:
        """How users write its weight, for messages.

        Examples:
            >>> from hfprune.recovery.losses.registry import Weighted
            >>> Weighted(name="logits", weight_field="logits_weight").setting
            'logits_weight'
            >>> Weighted(name="agreement").setting
            "loss_weights['agreement']"
        """
        return self.weight_field or f"loss_weights[{self.name!r}]"


@dataclass(frozen=True, kw_only=True)
class Loss(Weighted):
    """A registered loss.

    Attributes:
        needs: What it needs, see `Need`. A loss that needs a teacher is left out where there is none.
        weight_without_teacher: Its weight where no teacher says anything about a batch; None: the same as elsewhere.
        function: From `LossInputs` to its terms.
    """

    needs: frozenset[Need]
    weight_without_teacher: float | None
    function: LossFunction


@dataclass(frozen=True, kw_only=True)
class Penalty(Weighted):
    """A registered penalty: it depends on the weights of the student's units alone, and is a mean over all units.

    Attributes:
        function: From the `UnitWeights` of one block to the sum over its units.
    """

    function: PenaltyFunction


_LOSSES: dict[str, Loss] = {}
_PENALTIES: dict[str, Penalty] = {}


@checked(name=TEXT)
def register_loss(
    name: str, *, needs: Iterable[Need] = (), weight_field: str = "", weight_without_teacher: float | None = None
) -> Callable[[LossFunction], LossFunction]:
    """Add a loss: decorate a function from `LossInputs` to terms.

    Losses are summed in the order in which they were registered.

    Args:
        name: What users and logs call it.
        needs: What it needs, see `Need`.
        weight_field: The field of `RecoveryArguments` with its weight; left out, `loss_weights[name]` counts.
        weight_without_teacher: As for `Loss`.

    Returns:
        The decorator.

    Raises:
        ValueError: Another function has that name, or it cannot be one. A function of the same module and name is
            replaced, so that a cell of a notebook can be run again.

    Examples:
        >>> from hfprune import RecoveryArguments
        >>> from hfprune.recovery.losses import Term, get_loss, register_loss
        >>> @register_loss("agreement", needs=["teacher"])
        ... def agreement(inputs):
        ...     student = inputs.outputs.logits.softmax(-1)
        ...     teacher = inputs.teacher_outputs.logits.softmax(-1)
        ...     return [Term((student - teacher).abs().sum(-1).mean(), mean_over="labels")]
        >>> args = RecoveryArguments("recovery", loss_weights={"agreement": 0.2}, use_cpu=True)
        >>> get_loss("agreement").setting
        "loss_weights['agreement']"
    """
    _check_name(name)

    def add(function: LossFunction) -> LossFunction:
        _check_taken(name, function, _LOSSES, _PENALTIES)
        _LOSSES[name] = Loss(
            name=name,
            weight_field=weight_field,
            needs=frozenset(needs),
            weight_without_teacher=weight_without_teacher,
            function=function,
        )
        return function

    return add


@checked(name=TEXT)
def register_penalty(name: str, *, weight_field: str = "") -> Callable[[PenaltyFunction], PenaltyFunction]:
    """Add a penalty: decorate a function from the `UnitWeights` of a block to the sum over its units.

    Args:
        name: What users and logs call it.
        weight_field: The field of `RecoveryArguments` with its weight; left out, `loss_weights[name]` counts.

    Returns:
        The decorator.

    Raises:
        ValueError: Another function has that name, or it cannot be one. A function of the same module and name is
            replaced, so that a cell of a notebook can be run again.

    Examples:
        >>> import torch
        >>> from hfprune.recovery.losses import UnitWeights, register_penalty
        >>> @register_penalty("unit_largest")
        ... def unit_largest(weights):
        ...     largest = [part.abs().amax(1) for part in weights.slices]
        ...     return torch.stack(largest).amax(0).sum()
        >>> unit_largest(UnitWeights(slices=[torch.tensor([[3.0, -4.0], [1.0, 0.0]])]))
        tensor(5.)
    """
    _check_name(name)

    def add(function: PenaltyFunction) -> PenaltyFunction:
        _check_taken(name, function, _PENALTIES, _LOSSES)
        _PENALTIES[name] = Penalty(name=name, weight_field=weight_field, function=function)
        return function

    return add


def _check_taken(
    name: str, function: Callable[..., Any], own: Mapping[str, Loss | Penalty], other: Mapping[str, Loss | Penalty]
) -> None:
    """Refuse a name that another function has, in its own registry or in the other one: the two share their names."""
    what = "a loss or penalty"
    if name in other:
        raise ValueError(f"{what} named {name!r} is registered already.")
    if name in own:
        earlier: Callable[..., Any] = own[name].function
        check_same(what, name, function, earlier)


def _check_name(name: str) -> None:
    if not name.isidentifier():
        raise ValueError(f"the name of a loss is made of letters, digits and underscores, got {name!r}.")


def known_losses() -> Mapping[str, Loss]:
    """The losses known now, by name, in the order in which they are summed.

    Returns:
        A copy, with a `Loss` for each name; changing it registers nothing.

    Examples:
        >>> from hfprune.recovery.losses import known_losses
        >>> list(known_losses())[:4]
        ['task', 'logits', 'hidden_states', 'attention_outputs']
    """
    return dict(_LOSSES)


def known_penalties() -> Mapping[str, Penalty]:
    """The penalties known now, by name.

    Returns:
        A copy, with a `Penalty` for each name; changing it registers nothing.

    Examples:
        >>> from hfprune.recovery.losses import known_penalties
        >>> list(known_penalties())[:3]
        ['unit_l1', 'unit_l2', 'unit_group_lasso']
    """
    return dict(_PENALTIES)


@checked(name=TEXT)
def get_loss(name: str) -> Loss | Penalty:
    """A loss or a penalty by name.

    Args:
        name: Its name.

    Returns:
        The loss or penalty.

    Raises:
        ValueError: There is none of that name; the message lists those there are.

    Examples:
        >>> from hfprune.recovery.losses import get_loss
        >>> loss = get_loss("hidden_states")
        >>> loss.setting, sorted(loss.needs)
        ('hidden_states_weight', ['hidden_states', 'teacher'])
    """
    if name in _LOSSES:
        return _LOSSES[name]
    if name in _PENALTIES:
        return _PENALTIES[name]
    raise ValueError(f"unknown loss {name!r}. Registered: {', '.join([*_LOSSES, *_PENALTIES])}.")
