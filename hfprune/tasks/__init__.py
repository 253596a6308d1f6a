"""What the scripts share: their arguments, and for each kind of task the data, model and trainer that it takes."""

from hfprune.tasks.arguments import (
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
from hfprune.tasks.causal_text import causal_language_modelling
from hfprune.tasks.masked_text import masked_language_modelling
from hfprune.tasks.task import Task
from hfprune.tasks.texts import text_classification
from hfprune.tasks.tokens import token_classification

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
