"""The exceptions of hfprune. Each message says what was wrong, what was expected and what to do."""

# Every class also has a built-in base, so that code which knows only Python's own exceptions can catch it.


class HfpruneError(Exception):
    """Base of every exception that hfprune raises on purpose."""


class UnsupportedArchitectureError(HfpruneError, ValueError):
    """The model type is not in the table and no entry could be proven, or the class could not be loaded again."""


class StructureError(HfpruneError, ValueError):
    """A model does not look as its architecture entry says; the message lists every problem found."""


class CalibrationError(HfpruneError, ValueError):
    """The calibration data cannot be used: too few samples, no labels, no tokens."""


class NonFiniteScoreError(HfpruneError, ArithmeticError):
    """A score is NaN or infinite. Nothing was planned or changed."""


class BudgetError(HfpruneError, ValueError):
    """No allocation meets the budget under the constraints of the config."""


class PlanMismatchError(HfpruneError, ValueError):
    """A plan was made for another model, or for another state of this model."""


class CheckpointError(HfpruneError, OSError):
    """A checkpoint folder is incomplete, damaged or contradicts itself."""


class MissingDependencyError(HfpruneError, ImportError):
    """An optional package is needed and not installed; the message has the command that installs it."""
