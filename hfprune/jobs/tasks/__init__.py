"""What the scripts share: their arguments, and for each kind of task the data, model and trainer that it takes."""

from hfprune.jobs.settings import (
    Arguments,
    CausalTextArguments,
    DataArguments,
    MaskedTextArguments,
    MethodArguments,
    ModelArguments,
    TextArguments,
    TokenArguments,
    parse,
)
from hfprune.jobs.tasks.causal_language_modelling import causal_language_modelling
from hfprune.jobs.tasks.masked_language_modelling import masked_language_modelling
from hfprune.jobs.tasks.task import Task
from hfprune.jobs.tasks.text_classification import text_classification
from hfprune.jobs.tasks.token_classification import token_classification

__all__ = [
    "Arguments",
    "CausalTextArguments",
    "DataArguments",
    "MaskedTextArguments",
    "MethodArguments",
    "ModelArguments",
    "Task",
    "TextArguments",
    "TokenArguments",
    "causal_language_modelling",
    "masked_language_modelling",
    "parse",
    "text_classification",
    "token_classification",
]
