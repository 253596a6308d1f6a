"""Where the blocks of a model type are: by the table, by an entry that the user adds, or by a finder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from transformers import PreTrainedModel

from hfprune.errors import UnsupportedArchitectureError
from hfprune.structure.arguments import TEXT, checked, instance
from hfprune.structure.modeling_pruned import register_config
from hfprune.structure.specs import Architecture
from hfprune.structure.table import TABLE

PRUNED_PREFIX = "pruned_"
_TABLE = dict(TABLE)
#: From a model and the type of its dense config to an entry; raises UnsupportedArchitectureError if there is none.
Finder = Callable[[PreTrainedModel, str], Architecture]
_FINDERS: dict[str, Finder] = {}


@dataclass(frozen=True, kw_only=True)
class Support:
    """How hfprune knows where the blocks of a model are.

    Attributes:
        entry: The places of the blocks.
        by: `table` if the entry stands in the table or was registered, or the name of the finder that gave it: `proof`
            for discovery, which proposes entries and proves them.
    """

    entry: Architecture
    by: str


def known_architectures() -> Mapping[str, Architecture]:
    """The entries known now, by model type.

    Returns:
        A copy, with an `Architecture` for each model type; changing it registers nothing.

    Examples:
        >>> from hfprune.structure import known_architectures
        >>> entry = known_architectures()["bert"]
        >>> entry.stacks["encoder.layer"]["ffn"].producers
        ('intermediate.dense',)
    """
    return dict(_TABLE)


@checked(model_type=TEXT, architecture=instance("an Architecture", Architecture))
def register_architecture(model_type: str, architecture: Architecture) -> None:
    """Teach hfprune a model type.

    Args:
        model_type: The `config.model_type` of the dense model.
        architecture: Where its blocks are.

    Raises:
        ValueError: The model type is known already; an entry is never replaced silently.
        KeyError: transformers does not know the model type; `AutoConfig.register` it first.

    Examples:
        >>> from hfprune.structure import Architecture, BlockSpec, find_blocks, register_architecture
        >>> from transformers import SplinterConfig, SplinterModel
        >>> attention = BlockSpec(
        ...     producers=("attention.self.query", "attention.self.key", "attention.self.value"),
        ...     consumer="attention.output.dense",
        ...     head_dim="attention.self.attention_head_size",
        ...     sizes={"attention.self.num_attention_heads": "heads", "attention.self.all_head_size": "features"},
        ... )
        >>> ffn = BlockSpec(
        ...     producers=("intermediate.dense",),
        ...     consumer="output.dense",
        ...     config_fields={"intermediate_size": "features"},
        ... )
        >>> entry = Architecture(stacks={"encoder.layer": {"attention": attention, "ffn": ffn}})
        >>> register_architecture("splinter", entry)
        >>> sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 32}
        >>> for block in find_blocks(SplinterModel(SplinterConfig(num_hidden_layers=1, **sizes))):
        ...     print(block.name, block.units)
        encoder.layer.0.attention 2
        encoder.layer.0.ffn 16
    """
    if model_type in _TABLE:
        raise ValueError(f"model_type {model_type!r} has an architecture entry already; pick another model type.")
    register_config(model_type)
    _TABLE[model_type] = architecture


@checked(name=TEXT)
def register_finder(name: str) -> Callable[[Finder], Finder]:
    """Add a way to find the entry of a model type that the table lacks: decorate a finder.

    Reading a model thereby needs to know nothing of how entries are found; discovery, which reads and cuts models to
    prove its entries, stands above it.

    Args:
        name: What `Support.by` says.

    Returns:
        The decorator.

    Examples:
        >>> from hfprune.errors import UnsupportedArchitectureError
        >>> from hfprune.structure import known_architectures
        >>> from hfprune.structure.architectures import register_finder
        >>> @register_finder("last part of the name")
        ... def of_last_part(model, model_type):
        ...     stock = model_type.rpartition("_")[2]
        ...     if stock not in known_architectures():
        ...         raise UnsupportedArchitectureError(f"no known model type at the end of {model_type!r}.")
        ...     return known_architectures()[stock]
        >>> list(of_last_part(dense, "company_bert").stacks)
        ['encoder.layer']
    """

    def add(finder: Finder) -> Finder:
        _FINDERS[name] = finder
        return finder

    return add


def support_of(model: PreTrainedModel) -> Support:
    """The entry of a model's type in the table, or else the first entry that a finder gives.

    Args:
        model: The model, dense or pruned.

    Returns:
        The entry, and how it was found.

    Raises:
        UnsupportedArchitectureError: The table has no entry, and no finder gives one. The message of the last finder
            says what it found.

    Examples:
        >>> from hfprune.structure import support_of
        >>> support = support_of(dense)
        >>> support.by, list(support.entry.stacks)
        ('table', ['encoder.layer'])
    """
    model_type = base_model_type(model.config.model_type)
    if model_type in _TABLE:
        return Support(entry=_TABLE[model_type], by="table")
    refusal = UnsupportedArchitectureError(f"no architecture entry for model_type {model_type!r}.")
    for name, finder in _FINDERS.items():
        try:
            return Support(entry=finder(model, model_type), by=name)
        except UnsupportedArchitectureError as error:
            refusal = error
    raise refusal


def base_model_type(model_type: str) -> str:
    """The dense model type: `pruned_bert` and `bert` both give `bert`.

    Args:
        model_type: The `config.model_type` of a dense or a pruned model.

    Returns:
        The type without the prefix of pruned ones.

    Examples:
        >>> from hfprune.structure.architectures import base_model_type
        >>> base_model_type("pruned_bert")
        'bert'
    """
    return model_type.removeprefix(PRUNED_PREFIX)
