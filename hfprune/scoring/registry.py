"""The registries of scoring: statistics, collected from a model, and scorers, which are formulas over statistics."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from torch import Tensor
from transformers import PreTrainedModel

from hfprune.structure.arguments import TEXT, checked, choice
from hfprune.structure.batches import Batch
from hfprune.structure.blocks import Block
from hfprune.structure.registration import check_same

#: What a scorer differentiates. `data`: the loss against the labels of the data. `model`: the loss against labels that
#: are drawn from a model's own predictions. `logits`: the logits, in a random direction. `none`: nothing.
Labels = Literal["data", "model", "logits", "none"]
#: What a user must provide for a scorer: labelled data, or the memory for gradients or activations.
Need = Literal["labels", "gradients", "activations"]

Function = TypeVar("Function", bound=Callable[[Any], Tensor])


@dataclass(frozen=True, kw_only=True)
class ScoringRun:
    """The arguments of the function that collects a statistic.

    Attributes:
        model: The model to score.
        blocks: The blocks of the model that have units left.
        batches: The calibration batches of all processes.
        scorer: The scorer that the statistic is for.
        seed: The seed of all random draws.
        teacher: The model that draws the labels, for scorers with `labels="model"`.
    """

    model: PreTrainedModel
    blocks: Sequence[Block]
    batches: Sequence[Batch]
    scorer: "Scorer"
    seed: int
    teacher: PreTrainedModel


#: Collects a statistic: gives the name of every block, with the statistic of that block.
Pass = Callable[[ScoringRun], Iterable[tuple[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class Statistic:
    """A registered statistic: numbers about one block that scorers can read.

    Attributes:
        name: The name that a scorer gives as `reads`.
        needs: What collecting it requires: `gradients`, `activations`, both, or only the weights (empty).
        read: The function that collects it from a model.
    """

    name: str
    needs: frozenset[Need]
    read: Pass


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """A registered scorer.

    Attributes:
        name: The name in `PruningConfig(scorer=...)`.
        reads: The statistic that the function gets. `gates`: a `GateStatistics`. `residual_gates`: a `GateStatistics`
            of the part of a unit's activations that the other units of its block cannot reproduce. `weights`: a
            `WeightStatistics`. `weight_gradients` and `fine_tuning`: a `WeightGradientStatistics`. `activations`: an
            `ActivationStatistics`. `gram`: a `GramStatistics`. Other names: statistics that were registered later.
        labels: What its gradients are taken of.
        function: Computes `(units,)` scores from the statistic of one block. A higher score means that the unit is
            more worth keeping.
        one_shot: The scorer that replaces it where the model is scored only once. Its own name if it suits that too.
    """

    name: str
    reads: str
    labels: Labels
    function: Callable[[Any], Tensor]
    one_shot: str = ""

    def __post_init__(self) -> None:
        if not self.one_shot:
            object.__setattr__(self, "one_shot", self.name)

    @property
    def needs(self) -> frozenset[Need]:
        """Which of (true) `labels`, `gradients` and `activations` the scorer needs; empty if the weights suffice."""
        statistic = get_statistic(self.reads)
        if self.labels == "data":
            return statistic.needs | {"labels"}
        return statistic.needs


_STATISTICS: dict[str, Statistic] = {}
_SCORERS: dict[str, Scorer] = {}


@checked(name=TEXT)
def register_statistic(name: str, *, needs: Iterable[Need] = ()) -> Callable[[Pass], Pass]:
    """Add a statistic: decorate the function that collects it.

    Args:
        name: The name that scorers give as `reads`.
        needs: What collecting it requires: `gradients`, `activations`, both, or only the weights (empty).

    Returns:
        The decorator.

    Raises:
        ValueError: Another function has that name. A function of the same module and name is replaced, so that a
            cell of a notebook can be run again.

    Examples:
        >>> from hfprune.scoring import known_statistics, register_statistic
        >>> @register_statistic("parameters")
        ... def read_parameters(run):
        ...     for block in run.blocks:
        ...         yield block.name, block.unit_params
        >>> known_statistics()["parameters"].needs
        frozenset()
    """

    def add(read: Pass) -> Pass:
        if name in _STATISTICS:
            check_same("a statistic", name, read, _STATISTICS[name].read)
        _STATISTICS[name] = Statistic(name=name, needs=frozenset(needs), read=read)
        return read

    return add


def known_statistics() -> Mapping[str, Statistic]:
    """All statistics that are registered now, by name.

    Returns:
        A copy, with a `Statistic` for each name; changing it registers nothing.

    Examples:
        >>> from hfprune.scoring import known_statistics
        >>> sorted(known_statistics()["weight_gradients"].needs)
        ['gradients']
    """
    return dict(_STATISTICS)


def get_statistic(name: str) -> Statistic:
    """Look up a statistic.

    Args:
        name: Its name.

    Returns:
        The statistic.

    Raises:
        ValueError: No statistic has that name; the message lists the known ones.
    """
    if name not in _STATISTICS:
        raise ValueError(f"reads must be one of {', '.join(_STATISTICS)}, got {name!r}.")
    return _STATISTICS[name]


@checked(name=TEXT, reads=TEXT, labels=choice(get_args(Labels)))
def register_scorer(
    name: str, *, reads: str = "gates", labels: Labels = "none", one_shot: str = ""
) -> Callable[[Function], Function]:
    """Add a scorer: decorate a function that computes `(units,)` scores from the statistic of a block.

    Args:
        name: The name in `PruningConfig(scorer=...)`: letters, digits and underscores.
        reads: The statistic that the function gets, see `Scorer`.
        labels: What its gradients are taken of: `data` for the loss against true labels, `model` for the loss against
            labels drawn from the model's predictions, `logits` for the logits in a random direction. `none` if the
            statistic needs no gradients.
        one_shot: The scorer that replaces it where the model is scored only once, if this one is made for several
            rounds.

    Returns:
        The decorator.

    Raises:
        ValueError: Another function has that name, it is not a valid name, or `reads` and `labels` contradict each
            other. A function of the same module and name is replaced, so that a cell of a notebook can be run again.

    Examples:
        >>> import hfprune
        >>> from hfprune.scoring import register_scorer
        >>> @register_scorer("largest_weight", reads="weights")
        ... def largest_weight(statistics):
        ...     return statistics.weights.abs().amax(1)
        >>> scores = hfprune.score(dense, batches, scorer="largest_weight")
        >>> tuple(scores["encoder.layer.0.ffn"].shape)
        (32,)
    """
    # names of hybrids are parsed, so a name must not hold their commas and brackets
    if not name.isidentifier():
        raise ValueError(f"the name of a scorer is made of letters, digits and underscores, got {name!r}.")
    _check_labels(reads, labels)

    def add(function: Function) -> Function:
        if name in _SCORERS:
            check_same("a scorer", name, function, _SCORERS[name].function)
        _SCORERS[name] = Scorer(name=name, reads=reads, labels=labels, function=function, one_shot=one_shot)
        return function

    return add


def _check_labels(reads: str, labels: Labels) -> None:
    """Require labels where the statistic needs gradients, and only there."""
    needs_gradients = "gradients" in get_statistic(reads).needs
    if needs_gradients and labels == "none":
        raise ValueError(f"a scorer that reads {reads!r} needs labels='data', 'model' or 'logits'.")
    if labels != "none" and not needs_gradients:
        raise ValueError(f"a scorer that reads {reads!r} takes no labels, got {labels!r}.")


def known_scorers() -> Mapping[str, Scorer]:
    """All scorers that are registered now, by name.

    Returns:
        A copy, with a `Scorer` for each name; changing it registers nothing.

    Examples:
        >>> from hfprune.scoring import known_scorers
        >>> [name for name, scorer in known_scorers().items() if "labels" in scorer.needs]
        ['sensitivity', 'taylor', 'fisher', 'residual_fisher', 'gradient', 'weight_sensitivity', 'movement']
    """
    return dict(_SCORERS)


@checked(name=TEXT)
def get_scorer(name: str) -> Scorer:
    """Look up a scorer.

    Args:
        name: Its name.

    Returns:
        The scorer.

    Raises:
        ValueError: No scorer has that name; the message lists the known ones.

    Examples:
        >>> from hfprune.scoring import get_scorer
        >>> scorer = get_scorer("fisher")
        >>> scorer.reads, sorted(scorer.needs)
        ('gates', ['gradients', 'labels'])
    """
    if name not in _SCORERS:
        raise ValueError(
            f"unknown scorer {name!r}. Known: {', '.join(sorted(_SCORERS))}, and hybrids of two of them, such as "
            "hybrid(l2, fisher, rank)."
        )
    return _SCORERS[name]
