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


class ExportError(HfpruneError, RuntimeError):
    """A model cannot be exported, or the exported file does not compute what the model computes; no file is left."""


class MissingDependencyError(HfpruneError, ImportError):
    """An optional package is needed and not installed; the message has the command that installs it."""


#: What a command and a script report in one line: mistakes of a user, and what cannot be had. transformers raises an
#: ImportError where quantized weights need a backend that is not installed, and a RuntimeError where shapes differ;
#: memory that is used up is one too.
MISTAKES = (HfpruneError, ValueError, OSError, ImportError, RuntimeError)


def one_line(error: BaseException) -> str:
    r"""The message of an error; those of other libraries come with line breaks and indentation.

    >>> one_line(OSError("no such file.\n    Look elsewhere."))
    'no such file. Look elsewhere.'

    Args:
        error: The error.

    Returns:
        Its text.
    """
    # ours list one problem a line where there are several
    if isinstance(error, HfpruneError):
        return str(error)
    return " ".join(str(error).split()) or type(error).__name__
