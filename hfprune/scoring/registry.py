"""The registry of scorers: what each reads, and where it gets its labels."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from torch import Tensor

#: What the gradients of a pass are of: the loss against labels of the data, or labels drawn from the model's own
#: predictions; or the logits, in a random direction. Or no gradients are needed.
Labels = Literal["data", "model", "logits", "none"]
#: What a scorer reads of a block, and so which pass over the calibration batches runs for it.
Reads = Literal["gates", "residual_gates", "weights", "weight_gradients", "fine_tuning", "activations", "gram"]
#: What users ask of a scorer before they choose it.
Need = Literal["labels", "gradients", "activations"]

_NEEDS: Mapping[Reads, frozenset[Need]] = {
    "gates": frozenset({"gradients"}),
    "residual_gates": frozenset({"gradients", "activations"}),
    "weights": frozenset(),
    "weight_gradients": frozenset({"gradients"}),
    "fine_tuning": frozenset({"gradients"}),
    "activations": frozenset({"activations"}),
    "gram": frozenset({"activations"}),
}
Function = TypeVar("Function", bound=Callable[[Any], Tensor])


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """A registered scorer.

    Attributes:
        name: What users write.
        reads: What its function gets of a block: `gates` a `GateStatistics`, `residual_gates` the same of what a unit
            puts out beyond what the others of its block can make up for, `weights` a `WeightStatistics`,
            `weight_gradients` and `fine_tuning` a `WeightGradientStatistics`, `activations` an `ActivationStatistics`,
            `gram` a `GramStatistics`.
        labels: Where the labels of its gradients come from.
        function: From that to `(units,)` scores, higher for units that are more worth keeping.
    """

    name: str
    reads: Reads
    labels: Labels
    function: Callable[[Any], Tensor]

    @property
    def needs(self) -> frozenset[Need]:
        """Which of `labels` (true ones), `gradients` and `activations` the scorer needs; none: the weights suffice."""
        return _NEEDS[self.reads] | (frozenset({"labels"}) if self.labels == "data" else frozenset())


_SCORERS: dict[str, Scorer] = {}


def register_scorer(name: str, *, reads: Reads = "gates", labels: Labels = "none") -> Callable[[Function], Function]:
    """Add a scorer: decorate a function from what it reads of a block to its `(units,)` scores.

    Args:
        name: What users write.
        reads: What the function gets, see `Scorer`.
        labels: `data` if its gradients are of the loss against true labels, `model` if against labels drawn from the
            model's predictions, `logits` if of the logits in a random direction, `none` if it needs no gradients.

    Returns:
        The decorator.

    Raises:
        ValueError: The name is taken or cannot be one, or what it reads and its labels do not go together.
    """
    if name in _SCORERS:
        raise ValueError(f"a scorer named {name!r} is registered already.")
    if not name.isidentifier():
        raise ValueError(f"the name of a scorer is made of letters, digits and underscores, got {name!r}.")
    if reads not in _NEEDS:
        raise ValueError(f"reads must be one of {', '.join(_NEEDS)}, got {reads!r}.")
    if ("gradients" in _NEEDS[reads]) != (labels != "none"):
        raise ValueError(
            f"a scorer that reads {reads!r} "
            + ("needs labels='data', 'model' or 'logits'." if labels == "none" else f"takes no labels, got {labels!r}.")
        )

    def add(function: Function) -> Function:
        _SCORERS[name] = Scorer(name=name, reads=reads, labels=labels, function=function)
        return function

    return add


def known_scorers() -> Mapping[str, Scorer]:
    """The scorers known now, by name."""
    return dict(_SCORERS)


def get_scorer(name: str) -> Scorer:
    """A scorer by name.

    Args:
        name: Its name.

    Returns:
        The scorer.

    Raises:
        ValueError: There is none of that name; the message lists those there are.
    """
    if name not in _SCORERS:
        raise ValueError(
            f"unknown scorer {name!r}. Known: {', '.join(sorted(_SCORERS))}, and hybrids of two of them, such as "
            "hybrid(l2, fisher, rank)."
        )
    return _SCORERS[name]
