"""Load a structurally pruned transformer whose layers have different widths.

This file knows no architecture: config.json carries a table of shapes, and the modules named there are resized before
the weights are loaded, strictly. It needs torch and transformers only, and the same file is part of every published
checkpoint that needs it, so `from_pretrained(..., trust_remote_code=True)` works without hfprune.

`PrunedBertConfig`, `PrunedBertForSequenceClassification` and so on are made on demand from the classes of transformers.
"""

import inspect
import json
import shutil
from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, Cache, PretrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.pytorch_utils import Conv1D
from transformers.utils import cached_file

FORMAT_VERSION = 1


def _record_without_digests(text: str) -> Any:
    """A record as it is when its model may change: the SHA-256 of files and of the record itself are left out."""
    record = json.loads(text)
    for name in ("files", "digest"):
        record.pop(name, None)
    return record


#: Files that travel with the weights: name -> (attribute of the model, how to read it, how to write it).
ATTACHMENTS: dict[str, tuple[str, Callable[[str], Any], Callable[[Any], str]]] = {
    "pruning_plan.json": ("pruning_plan", json.loads, lambda value: json.dumps(value, indent=1) + "\n"),
    "pruning_record.json": (
        "pruning_record",
        _record_without_digests,
        lambda value: json.dumps(value, indent=1) + "\n",
    ),
}
#: Called with the folder that plan and record of a loaded model came from; hfprune adds to it.
AFTER_LOADING: list[Callable[[Path], None]] = []
#: A file with outputs of the model, to verify a checkpoint by. It is deleted when new weights are written.
PROOF = "pruning_probe.json"
#: What config.json gives as the name of the weights, so that a class that knows nothing of pruning stops there, even if
#: it is told to ignore shapes that do not fit.
STOCK_CLASSES = (
    "none that a stock class could read. This checkpoint is pruned and has shapes of its own: load it with an Auto "
    "class after `import hfprune`, or with an Auto class and trust_remote_code=True. Do not pass "
    "ignore_mismatched_sizes=True, which puts random weights where shapes differ"
)
#: Arguments of `from_pretrained` that choose the state of a repository.
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


class PrunedConfig:
    """Mixin of a stock config: the same fields, and `pruning_config`, the table of shapes."""

    pruning_config: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        # meant for stock classes
        kwargs.pop("transformers_weights", None)
        super().__post_init__(**kwargs)  # type: ignore[misc]
        _register_auto_classes(type(self))  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, Any]:
        """The fields; the name of the weights is the message that a stock class gives when it is to load them."""
        return {**super().to_dict(), "transformers_weights": STOCK_CLASSES}  # type: ignore[misc]


class PrunedModel:
    """Mixin of a stock model: resized as `config.pruning_config` says, before any weight is loaded."""

    pruning_plan: Any = None
    pruning_record: Any = None

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        base = self.base_model  # type: ignore[attr-defined]
        # a base model of a pruned class has resized itself by now
        if base is self or not isinstance(base, PrunedModel):
            resize(self, config)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load weights, plan and record; refuse what would leave weights at random values."""
        if kwargs.get("ignore_mismatched_sizes"):
            raise ValueError(
                "ignore_mismatched_sizes=True would put random weights where shapes differ. A pruned checkpoint "
                "records its shapes and loads without it; leave it out."
            )
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)  # type: ignore[misc]
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        # without a name the weights come from the argument `state_dict`, and nothing lies beside them
        if pretrained_model_name_or_path is not None:
            read_attachments(model, pretrained_model_name_or_path, **kwargs)
        return loaded

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save like transformers does, with plan, record and this file beside the weights."""
        # transformers would push the weights without these files
        if kwargs.get("push_to_hub"):
            raise ValueError("save first, and then push the folder: hfprune.push_to_hub, or model.push_to_hub(repo).")
        # transformers would copy the file too, and name one Auto class only
        self._auto_class = None
        self.config.auto_map = auto_map(base_class(type(self.config)))  # type: ignore[attr-defined]
        if kwargs.get("is_main_process", True):
            write_attachments(self, Path(save_directory))
            write_loader(Path(save_directory))
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]


def write_loader(folder: Path) -> None:
    """Copy this file into a folder."""
    shutil.copyfile(__file__, folder / "modeling_pruned.py")


def read_attachments(model: Any, name_or_path: Any, **kwargs: Any) -> None:
    """Set the plan and the record of a model, where the folder or repository it came from has them.

    Args:
        model: The model.
        name_or_path: A folder, or a repository on the Hub.
        **kwargs: As for `from_pretrained`; only those that choose the repository's state are used.
    """
    hub = {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name) is not None}
    folder: Path | None = None
    for name, (attribute, read, _) in ATTACHMENTS.items():
        path = cached_file(name_or_path, name, _raise_exceptions_for_missing_entries=False, **hub)
        if path is not None:
            setattr(model, attribute, read(Path(path).read_text(encoding="utf-8")))
            folder = Path(path).parent
    if folder is not None:
        for function in AFTER_LOADING:
            function(folder)


def write_attachments(model: Any, folder: Path) -> None:
    """Write the plan and the record of a model, where it has them, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PROOF).unlink(missing_ok=True)
    for name, (attribute, _, write) in ATTACHMENTS.items():
        value = getattr(model, attribute, None)
        if value is not None:
            (folder / name).write_text(write(value), encoding="utf-8")


def resize(model: PreTrainedModel, config: PretrainedConfig) -> None:
    """Give the modules of a stock skeleton the recorded shapes and sizes. Works on the meta device.

    Args:
        model: A model with the shapes of the dense one.
        config: Its config; `pruning_config` holds `shapes`, `attributes`, `inputs` and `bypassed`, by path from the
            base model.

    Raises:
        ValueError: There is no table, or it has a newer format than this file understands.
    """
    table = getattr(config, "pruning_config", None)
    if not isinstance(table, dict):
        raise ValueError(
            "this is no pruned checkpoint: its config has no pruning_config. Load it by an Auto class or its own class."
        )
    if table.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"pruning_config has format_version {table.get('format_version')!r}, this code understands "
            f"{FORMAT_VERSION}. Upgrade hfprune, or load with the code in the checkpoint (trust_remote_code=True)."
        )
    base = model.base_model
    if table["shapes"] and next(iter(table["shapes"])) not in dict(base.named_modules()):
        raise ValueError(
            f"this is a checkpoint of another model type than {type(base).__name__}, or its config is damaged: it has "
            f"shapes of {next(iter(table['shapes']))!r}. Load it by an Auto class, which finds the right class."
        )
    for path, shape in table["shapes"].items():
        _resize(base.get_submodule(path), shape["in_features"], shape["out_features"], model._init_weights)
    for path, value in table["attributes"].items():
        _set_size(base, path, value)
    for path, arguments in table.get("inputs", {}).items():
        _follow_heads(base.get_submodule(path), arguments)
    for path, consumer in table.get("bypassed", {}).items():
        module = base.get_submodule(path)
        module.bypassed_consumer = consumer
        _bypass(module)


def owner_of(base: nn.Module, path: str) -> tuple[Any, str]:
    """The object that has an attribute, and the attribute's name.

    Args:
        base: The module that the path starts from.
        path: Such as `layers.0.self_attn.num_heads`, or `layers.0.self_attn.config.num_heads` for an attribute of a
            module's config.

    Returns:
        A module or its config, and a name.
    """
    owner, _, attribute = path.rpartition(".")
    module, _, last = owner.rpartition(".")
    if last == "config":
        return base.get_submodule(module).config, attribute
    return base.get_submodule(owner), attribute


def _set_size(base: nn.Module, path: str, value: Any) -> None:
    """Set an attribute that says how many heads or features a module has, if it makes the module smaller."""
    owner, attribute = owner_of(base, path)
    dense = getattr(owner, attribute, None)
    if type(dense) is not int or type(value) is not int or not 0 <= value <= dense:
        raise ValueError(
            f"pruning_config sets {path} to {value!r:.50} where the dense model has {dense!r:.50}; pruning only "
            "makes sizes smaller. The config is damaged, or not to be trusted."
        )
    # all layers share one config, so a layer with a size of its own gets a view of its own
    if isinstance(owner, PretrainedConfig):
        module: Any = base.get_submodule(path.rpartition(".")[0].rpartition(".")[0])
        owner = _LayerConfig(owner)
        module.config = owner
    setattr(owner, attribute, value)


class _LayerConfig:
    """A layer's view of the model's config: it gives what the config has, but for the sizes that are set on it."""

    def __init__(self, shared: Any) -> None:
        self.shared = shared

    def __getattr__(self, name: str) -> Any:
        # copy and pickle ask for these before there is a shared config
        if name == "shared" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.shared, name)


def _bypass(module: Any) -> Any:
    """Leave out a module without heads, also in the copies that torch.nn.DataParallel makes of it."""
    module.forward = partial(_without_heads, module)
    module._replicate_for_data_parallel = partial(_replicate, module, _bypass)
    return module


def _replicate(module: Any, again: Callable[[Any], Any]) -> Any:
    """A copy for DataParallel, bound to its own weights: a copied `forward` would run with the original's."""
    return again(type(module)._replicate_for_data_parallel(module))


def _without_heads(
    module: Any, hidden_states: torch.Tensor, *_: Any, **given: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """`forward` of an attention module that has no heads left.

    Args:
        module: The module.
        hidden_states: `(samples, tokens, features)`.
        **given: Other arguments, a cache perhaps among them.

    Returns:
        No features, `(samples, tokens, 0)`, or what the consumer inside the module makes of no features; and attention
        weights of no heads.
    """
    samples, tokens = hidden_states.shape[:2]
    nothing = hidden_states.new_zeros(samples, tokens, 0)
    weights = hidden_states.new_zeros(samples, 0, tokens, tokens)
    cache = given.get("past_key_values", given.get("layer_past"))
    if isinstance(cache, Cache):
        # caches take the length of a text from any of their layers: one number a token as keys, and no values
        seen = hidden_states.new_ones(samples, 1, tokens, 1)
        layer = module.layer_idx if hasattr(module, "layer_idx") else module.layer_id
        cache.update(seen, seen[..., :0], layer)
    if not module.bypassed_consumer:
        return nothing, weights
    consumer = module.get_submodule(module.bypassed_consumer)
    return consumer(nothing), weights


def _resize(module: nn.Module, in_features: int, out_features: int, initialize: Callable[[nn.Module], None]) -> None:
    """Give a projection other numbers of features, with new weights.

    Args:
        module: A Linear or Conv1D.
        in_features: Its inputs.
        out_features: Its outputs.
        initialize: Fills the new weights as the model's class does.
    """
    if isinstance(module, Conv1D):
        shape = (in_features, out_features)
    elif isinstance(module, nn.Linear):
        shape = (out_features, in_features)
    else:
        raise TypeError(f"cannot resize a {type(module).__name__}, only Linear and Conv1D")
    _check_shape(shape, tuple(module.weight.shape))
    if tuple(module.weight.shape) == shape:
        return
    if isinstance(module, Conv1D):
        module.nx = in_features
        module.nf = out_features
    else:
        module.in_features = in_features
        module.out_features = out_features
    has_weights = in_features > 0 and out_features > 0
    module.weight = nn.Parameter(module.weight.new_empty(shape), requires_grad=has_weights)
    if module.bias is not None:
        module.bias = nn.Parameter(module.bias.new_zeros(out_features), requires_grad=out_features > 0)
    # torch warns of initialising nothing, and on the meta device it is slow
    if has_weights and not module.weight.is_meta:
        initialize(module)


def _check_shape(shape: tuple[Any, ...], dense: tuple[int, ...]) -> None:
    """Refuse a shape that no pruning of the dense model gives."""
    if not all(type(size) is int for size in shape):
        raise ValueError(f"pruning_config asks for a weight of shape {shape!r:.100}; sizes are whole numbers.")
    grows = any(new > old for new, old in zip(shape, dense, strict=True))
    if min(shape) < 0 or grows:
        raise ValueError(
            f"pruning_config asks for a weight of shape {shape} where the dense model has {dense};"
            " pruning only makes them smaller. The config is damaged, or not to be trusted."
        )


def _follow_heads(module: Any, arguments: dict[str, dict[str, Any]]) -> None:
    """Let arguments with one slice a head hold those of the heads that stay, inside the module only.

    Args:
        module: The module that takes the arguments.
        arguments: By name of an argument: `dim`, where the heads are; `of`, how many the dense model has; `index`,
            which of them stay; `made_by`, the module's method that makes the argument; and `returned`, its place in
            what the module returns.
    """
    for name, rule in arguments.items():
        _check_heads(name, rule)
    module.register_forward_pre_hook(partial(_select_given, arguments=arguments), with_kwargs=True)
    returned = {rule["returned"] for rule in arguments.values() if rule.get("returned") is not None}
    if returned:
        module.register_forward_hook(partial(_return_all, places=returned))
    makers = {rule["made_by"]: rule for rule in arguments.values() if rule.get("made_by")}
    if makers:
        _select_made(module, makers)


def _check_heads(name: str, rule: dict[str, Any]) -> None:
    """Refuse indices of heads that do not increase, or that no dense model has."""
    index = rule.get("index", [])
    whole = all(type(head) is int for head in index)
    if whole and not index:
        return
    increasing = whole and all(first < second for first, second in pairwise(index))
    if not increasing or not 0 <= index[0] <= index[-1] < rule["of"]:
        raise ValueError(f"pruning_config gives slices of {name!r:.50} that are not increasing or not there.")


def _select_made(module: Any, makers: dict[str, dict[str, Any]]) -> Any:
    """Let methods that make a slice for every head give those of the heads that stay."""
    for name, rule in makers.items():
        is_method = callable(getattr(type(module), name, None)) and not hasattr(nn.Module, name)
        if name.startswith("_") or not is_method:
            raise ValueError(f"pruning_config names {name!r:.50}, which is no method of {type(module).__name__}.")
        setattr(module, name, partial(_make, module, name, rule))
    module._replicate_for_data_parallel = partial(_replicate, module, partial(_select_made, makers=makers))
    return module


def _make(module: Any, name: str, rule: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
    """Call a method of the class, and select from what it makes."""
    return _select(getattr(type(module), name)(module, *args, **kwargs), rule)


def _select(value: torch.Tensor, rule: dict[str, Any]) -> torch.Tensor:
    """The slices of the heads that stay, with all of them within reach as `of_all_heads`."""
    dim = rule["dim"]
    heads = rule["of"]
    # a dimension that the heads do not divide holds one slice for all of them
    if value.shape[dim] % heads:
        return value
    # heads may be repeated for every sample
    starts = torch.arange(0, value.shape[dim], heads, device=value.device)
    index = torch.tensor(rule["index"], dtype=torch.long, device=value.device)
    selected = value.index_select(dim, (starts[:, None] + index).flatten())
    selected.of_all_heads = value  # type: ignore[attr-defined]
    return selected


def _select_given(
    module: nn.Module, args: Any, kwargs: Any, *, arguments: dict[str, dict[str, Any]]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Pre-hook: of arguments that are given, select the slices of the heads that stay."""
    bound = inspect.signature(module.forward).bind(*args, **kwargs)
    for name, rule in arguments.items():
        value = bound.arguments.get(name)
        if value is None:
            continue
        # an argument without a dimension of heads is zeros of another size: the module makes its own
        bound.arguments[name] = None if rule["dim"] is None else _select(value, rule)
    return bound.args, bound.kwargs


def _return_all(_: nn.Module, __: Any, output: tuple[Any, ...], *, places: set[int]) -> tuple[Any, ...]:
    """Hook: later layers, which have other heads, get the slices of all."""
    values = list(output)
    for place in places.intersection(range(len(values))):
        # a value without slices of its own is that of all heads already
        values[place] = getattr(values[place], "of_all_heads", values[place])
    return tuple(values)


def base_class(cls: type) -> Any:
    """The stock class under a pruned one; a stock class itself."""
    return next(c for c in cls.__mro__ if not issubclass(c, (PrunedConfig, PrunedModel)))


def auto_classes(config_class: type[PretrainedConfig]) -> dict[str, type[PreTrainedModel]]:
    """The stock model class behind each Auto class that knows a stock config: `{"AutoModel": BertModel, ...}`."""
    classes: dict[str, type[PreTrainedModel]] = {}
    for name, auto in vars(modeling_auto).items():
        mapping = getattr(auto, "_model_mapping", None)
        if not name.startswith("AutoModel") or mapping is None or config_class not in mapping:
            continue
        entry = mapping[config_class]
        model_class = entry[0] if isinstance(entry, (list, tuple)) else entry
        # a few mappings borrow another type's config
        if model_class.config_class is config_class:
            classes[name] = model_class
    return classes


def register_config(model_type: str) -> None:
    """Let `AutoConfig` know `pruned_<model_type>`; the model classes follow when the first such config is built."""
    stock = CONFIG_MAPPING[model_type]
    config_class = pruned_class(stock)
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)


@cache
def _register_auto_classes(config_class: type[PretrainedConfig]) -> None:
    """Let the Auto classes know the pruned classes: late, when the first such config is built, as it imports models."""
    for auto, stock in auto_classes(base_class(config_class)).items():
        getattr(transformers, auto).register(config_class, pruned_class(stock), exist_ok=True)


def auto_map(config_class: type[PretrainedConfig]) -> dict[str, str]:
    """What config.json's `auto_map` must say for this file to load every head of the model type."""
    names = {name: cls.__name__ for name, cls in auto_classes(config_class).items()}
    names["AutoConfig"] = config_class.__name__
    return {auto: f"modeling_pruned.Pruned{name}" for auto, name in sorted(names.items())}


def stock_class(name: str) -> Any:
    """The config or model class of that name, of transformers or registered by the user with an Auto class; or None."""
    candidates: list[Any] = [getattr(transformers, name, None)]
    mappings = [CONFIG_MAPPING]
    for auto in vars(modeling_auto).values():
        mapping = getattr(auto, "_model_mapping", None) if isinstance(auto, type) else None
        if mapping is not None:
            mappings.append(mapping)
    for mapping in mappings:
        candidates += mapping._extra_content.values()
    for candidate in candidates:
        is_stock = isinstance(candidate, type) and issubclass(candidate, (PretrainedConfig, PreTrainedModel))
        if is_stock and candidate.__name__ == name and candidate.__module__ != __name__:
            return candidate
    return None


def pruned_class(base: Any) -> Any:
    """Make `Pruned<Base>` from a config or model class, once."""
    name = f"Pruned{base.__name__}"
    existing = globals().get(name)
    if existing is not None:
        return existing
    namespace: dict[str, Any] = {"__module__": __name__, "__qualname__": name, "_auto_class": None}
    if issubclass(base, PretrainedConfig):
        mixin: type = PrunedConfig
        namespace["model_type"] = f"pruned_{base.model_type}"
        # without one of its own, transformers would make an `__init__` that skips that of the user's class
        if not base.__module__.startswith("transformers."):
            namespace["__init__"] = lambda self, **kwargs: base.__init__(self, **kwargs)
    else:
        mixin = PrunedModel
        namespace["config_class"] = pruned_class(base.config_class)
    return globals().setdefault(name, type(name, (mixin, base), namespace))


def __getattr__(name: str) -> type:
    """`Pruned<Base>`, from the class `<Base>`."""
    base = stock_class(name.removeprefix("Pruned")) if name.startswith("Pruned") else None
    if base is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    pruned: type = pruned_class(base)
    return pruned
