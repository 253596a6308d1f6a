"""The registries of scoring: statistics, which a pass reads of a model, and scorers, which are formulas over them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from torch import Tensor
from transformers import PreTrainedModel

from hfprune.structure.batches import Batch
from hfprune.structure.blocks import Block

#: What the gradients of a pass are of: the loss against labels of the data, or labels drawn from the model's own
#: predictions; or the logits, in a random direction. Or no gradients are needed.
Labels = Literal["data", "model", "logits", "none"]
#: What users ask of a scorer before they choose it.
Need = Literal["labels", "gradients", "activations"]

Function = TypeVar("Function", bound=Callable[[Any], Tensor])


@dataclass(frozen=True, kw_only=True)
class ScoringRun:
    """What a pass gets to read its statistic from.

    Attributes:
        model: The model to score.
        blocks: Its blocks that have units left.
        batches: Calibration batches of all processes.
        scorer: The scorer that will read the statistic.
        seed: Of everything that is drawn.
        teacher: Draws the labels for scorers with `labels="model"`.
    """

    model: PreTrainedModel
    blocks: Sequence[Block]
    batches: Sequence[Batch]
    scorer: "Scorer"
    seed: int
    teacher: PreTrainedModel


#: Reads a statistic of every block, with the blocks' names.
Pass = Callable[[ScoringRun], Iterable[tuple[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class Statistic:
    """What scorers can read of a block.

    Attributes:
        name: What a scorer says that it reads.
        needs: What it asks of the user: `gradients`, `activations`, or nothing beside the weights.
        read: The pass that reads it.
    """

    name: str
    needs: frozenset[Need]
    read: Pass


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """A registered scorer.

    Attributes:
        name: What users write.
        reads: The statistic that its function gets of a block: `gates` a `GateStatistics`, `residual_gates` the same
            of what a unit puts out beyond what the others of its block can make up for, `weights` a
            `WeightStatistics`, `weight_gradients` and `fine_tuning` a `WeightGradientStatistics`, `activations` an
            `ActivationStatistics`, `gram` a `GramStatistics`; or one that was registered beside these.
        labels: Where the labels of its gradients come from.
        function: From that to `(units,)` scores, higher for units that are more worth keeping.
        one_shot: The scorer to take in its place where there is only one round; its own name if it is made for that
            too.
    """

    name: str
    reads: str
    labels: Labels
    function: Callable[[Any], Tensor]
    one_shot: str

    @property
    def needs(self) -> frozenset[Need]:
        """Which of `labels` (true ones), `gradients` and `activations` the scorer needs; none: the weights suffice."""
        needs = get_statistic(self.reads).needs
        return needs | {"labels"} if self.labels == "data" else needs


_STATISTICS: dict[str, Statistic] = {}
_SCORERS: dict[str, Scorer] = {}


def register_statistic(name: str, *, needs: Iterable[Need] = ()) -> Callable[[Pass], Pass]:
    """Add a statistic: decorate the pass that reads it.

    Args:
        name: What scorers say that they read.
        needs: What it asks of the user: `gradients`, `activations`, both, or nothing.

    Returns:
        The decorator.

    Raises:
        ValueError: The name is taken.
    """
    if name in _STATISTICS:
        raise ValueError(f"a statistic named {name!r} is registered already.")

    def add(read: Pass) -> Pass:
        _STATISTICS[name] = Statistic(name=name, needs=frozenset(needs), read=read)
        return read

    return add


def known_statistics() -> Mapping[str, Statistic]:
    """The statistics known now, by name."""
    return dict(_STATISTICS)


def get_statistic(name: str) -> Statistic:
    """A statistic by name.

    Args:
        name: Its name.

    Returns:
        The statistic.

    Raises:
        ValueError: There is none of that name; the message lists those there are.
    """
    if name not in _STATISTICS:
        raise ValueError(f"reads must be one of {', '.join(_STATISTICS)}, got {name!r}.")
    return _STATISTICS[name]


def register_scorer(
    name: str, *, reads: str = "gates", labels: Labels = "none", one_shot: str = ""
) -> Callable[[Function], Function]:
    """Add a scorer: decorate a function from what it reads of a block to its `(units,)` scores.

    Args:
        name: What users write.
        reads: What the function gets, see `Scorer`.
        labels: `data` if its gradients are of the loss against true labels, `model` if against labels drawn from the
            model's predictions, `logits` if of the logits in a random direction, `none` if it needs no gradients.
        one_shot: The scorer to take in its place where there is only one round, if this one is made for several.

    Returns:
        The decorator.

    Raises:
        ValueError: The name is taken or cannot be one, or what it reads and its labels do not go together.
    """
    if name in _SCORERS:
        raise ValueError(f"a scorer named {name!r} is registered already.")
    if not name.isidentifier():
        raise ValueError(f"the name of a scorer is made of letters, digits and underscores, got {name!r}.")
    needs_gradients = "gradients" in get_statistic(reads).needs
    if needs_gradients and labels == "none":
        raise ValueError(f"a scorer that reads {reads!r} needs labels='data', 'model' or 'logits'.")
    if labels != "none" and not needs_gradients:
        raise ValueError(f"a scorer that reads {reads!r} takes no labels, got {labels!r}.")

    def add(function: Function) -> Function:
        _SCORERS[name] = Scorer(name=name, reads=reads, labels=labels, function=function, one_shot=one_shot or name)
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
