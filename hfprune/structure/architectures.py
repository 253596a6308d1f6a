"""Which model types are known: the entries of the table, and those that users add."""

from collections.abc import Mapping

from hfprune.structure.modeling_pruned import register_config
from hfprune.structure.specs import Architecture
from hfprune.structure.table import TABLE

PRUNED_PREFIX = "pruned_"
_TABLE = dict(TABLE)


def known_architectures() -> Mapping[str, Architecture]:
    """The entries known now, by model type."""
    return dict(_TABLE)


def register_architecture(model_type: str, architecture: Architecture) -> None:
    """Teach hfprune a model type.

    Args:
        model_type: The `config.model_type` of the dense model.
        architecture: Where its blocks are.

    Raises:
        ValueError: The model type is known already; an entry is never replaced silently.
        KeyError: transformers does not know the model type; `AutoConfig.register` it first.
    """
    if model_type in _TABLE:
        raise ValueError(f"model_type {model_type!r} has an architecture entry already; pick another model type.")
    register_config(model_type)
    _TABLE[model_type] = architecture


def base_model_type(model_type: str) -> str:
    """The dense model type: `pruned_bert` and `bert` both give `bert`.

    >>> base_model_type("pruned_bert")
    'bert'
    """
    return model_type.removeprefix(PRUNED_PREFIX)
