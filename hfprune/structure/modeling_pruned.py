"""Load a structurally pruned transformer whose layers have different widths.

This file knows no architecture: config.json carries a table of shapes, and the modules named there are resized before
the weights are loaded, strictly. It needs torch and transformers only. Every checkpoint that needs it carries it, in
one file with `pruned_layers.py` and `pruned_parts.py`, so `from_pretrained(..., trust_remote_code=True)` works without
hfprune.

`PrunedBertConfig`, `PrunedBertForSequenceClassification` and so on are made on demand from the classes of transformers.
"""

import json
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial, wraps
from pathlib import Path
from typing import Any

import transformers
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.pytorch_utils import Conv1D
from transformers.utils import cached_file

from hfprune.structure.pruned_layers import (
    GLOBAL_ACCESS,
    PER_LAYER,
    ConfigOfLayers,
    LayerConfig,
    check_per_layer,
    fit_caches,
    per_layer_fields,
    stated_sizes,
    without_sizes,
)
from hfprune.structure.pruned_parts import (
    Emptied,
    bypass,
    check_modules,
    check_report,
    check_shape,
    fill_resized,
    follow_heads,
    inform_peft,
    resize_parameters,
    zero_biases,
)

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

    _is_pruned = True
    model_type: str
    pruning_config: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        # meant for stock classes
        kwargs.pop("transformers_weights", None)
        # of a dense model whose own layers differ, the stock class takes it
        table = kwargs.get("pruning_config")
        is_ours = isinstance(table, dict) and "layers" in table and kwargs.pop(GLOBAL_ACCESS, False)
        given = kwargs.pop(PER_LAYER, None) if is_ours else None
        # of a checkpoint of another type, the model says that
        is_of_type = kwargs.get("model_type", type(self).model_type) == type(self).model_type
        super().__post_init__(**kwargs)  # type: ignore[misc]
        if given is not None and is_of_type:
            check_per_layer(self, given)
        # libraries tell by it what they know of a type, such as Whisper's prompts; `to_dict` says that of the class
        self.model_type = base_class(type(self)).model_type
        _register_auto_classes(type(self))  # type: ignore[arg-type]

    @property
    def per_layer_config(self) -> Any:
        """The config of every layer, with its own sizes where the table has them (of a decoder, not its encoder)."""
        plain = without_sizes(self)
        if plain is self:
            return super().per_layer_config  # type: ignore[misc]
        sizes = (self.pruning_config or {})["layers"]
        stock = plain.per_layer_config
        return ConfigOfLayers(stock, sizes) if len(sizes) == len(stock) else stock

    @per_layer_config.setter
    def per_layer_config(self, value: Any) -> None:
        PretrainedConfig.per_layer_config.fset(self, value)

    @property
    def is_heterogeneous(self) -> bool:
        """Whether layers have sizes of their own; engines such as vLLM then read `per_layer_config`."""
        # early versions of transformers 5 have none of these
        return bool(stated_sizes(self)) or getattr(super(), "is_heterogeneous", False)

    @property
    def per_layer_attributes(self) -> set[str] | None:
        """The fields that layers have values of their own for."""
        own = {name for sizes in stated_sizes(self) for name in sizes}
        return own or getattr(super(), "per_layer_attributes", None)

    @property
    def allow_global_per_layer_attribute_access(self) -> bool:
        """Fields that layers have values of their own for can be read still: they are the dense model's."""
        return bool(stated_sizes(self)) or getattr(super(), "allow_global_per_layer_attribute_access", False)

    @allow_global_per_layer_attribute_access.setter
    def allow_global_per_layer_attribute_access(self, value: bool) -> None:
        PretrainedConfig.allow_global_per_layer_attribute_access.fset(self, value)

    def _update_heterogeneous_to_dict_output(self, fields: dict[str, Any]) -> None:
        """Write what transformers has of layers that differ, where it is the dense model's own."""
        if not stated_sizes(self):
            super()._update_heterogeneous_to_dict_output(fields)  # type: ignore[misc]

    def validate_architecture(self) -> None:
        """Hold what the stock class holds its config to against the dense model's sizes."""
        plain = without_sizes(self)
        if plain is self:
            super().validate_architecture()  # type: ignore[misc]
        else:
            plain.validate_architecture()

    def to_dict(self) -> dict[str, Any]:
        """The fields; the name of the weights is the message that a stock class gives when it is to load them."""
        # the last that peft asks for before it looks a model type up
        inform_peft(type(self).model_type)
        fields = {**super().to_dict(), "transformers_weights": STOCK_CLASSES}  # type: ignore[misc]
        if stated_sizes(self):
            fields[GLOBAL_ACCESS] = True
            fields[PER_LAYER] = per_layer_fields(without_sizes(self), stated_sizes(self))
        return fields


class PrunedModel:
    """Mixin of a stock model: resized as `config.pruning_config` says, before any weight is loaded."""

    _is_pruned = True
    pruning_plan: Any = None
    pruning_record: Any = None

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        # the stock class builds the layers of the dense model
        sizes = (config.pruning_config or {}).pop("layers", ())
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        base = self.base_model  # type: ignore[attr-defined]
        # a base model of a pruned class has resized itself by now
        if base is self or not isinstance(base, PrunedModel):
            resize(self, config)
            fill_resized(self)
        set_sizes_of_layers(self, sizes)

    def _init_weights(self, module: nn.Module) -> None:
        """Fill the weights of a module as the stock class does; of one whose projections are gone there are none."""
        if not any(isinstance(child, Emptied) for child in module.children()):
            super()._init_weights(module)  # type: ignore[misc]

    def initialize_weights(self) -> None:
        """Fill what is not filled or loaded, as transformers does; biases of removed blocks, which it skips, are 0."""
        zero_biases(self)  # type: ignore[arg-type]
        super().initialize_weights()  # type: ignore[misc]

    @classmethod
    def is_custom_code(cls) -> bool:
        """As the stock class: transformers fills weights of its own classes by their parents too, others' not."""
        return bool(base_class(cls).is_custom_code())

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load weights, plan and record; with `ignore_mismatched_sizes` only what is not pruned may be random."""
        wants_report = kwargs.pop("output_loading_info", False)
        loaded = super().from_pretrained(  # type: ignore[misc]
            pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
        )
        model, report = loaded
        # without a name the weights come from the argument `state_dict`, and nothing lies beside them
        if pretrained_model_name_or_path is not None:
            check_report(model, report)
            read_attachments(model, pretrained_model_name_or_path, **kwargs)
        return loaded if wants_report else model

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
        # tensors keep the names that the table of shapes has; some types have others in their dense checkpoints
        kwargs.setdefault("save_original_format", False)
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]


def loader_text() -> str:
    """The text of this file as checkpoints carry it: on its own, with what it imports of hfprune in it."""
    text = Path(__file__).read_text(encoding="utf-8")
    for name in ("pruned_layers", "pruned_parts"):
        imported = rf"^from hfprune\.structure\.{name} import (\([^)]*\)|.*)\n"
        found = re.search(imported, text, flags=re.MULTILINE)
        # the copy in a checkpoint imports nothing of hfprune, and is written as it is
        if found is not None:
            part = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
            text = f"{text[: found.start()]}{part}{text[found.end() :]}"
    return text


def write_loader(folder: Path) -> None:
    """Write this file into a folder, on its own."""
    # bytes, so that it is the same file on every system
    (folder / "modeling_pruned.py").write_bytes(loader_text().encode())


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
            base model; and `parameters`, where parameters beside the projections are cut.

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
    check_modules(base, table["shapes"])
    for path, shape in table["shapes"].items():
        _resize(base, path, shape["in_features"], shape["out_features"])
        # earlier versions saved tensors without numbers for a projection that has no inputs or no outputs
        if 0 in shape.values():
            without_numbers = rf"(^|\.){re.escape(path)}\.(weight|bias)$"
            known = model._keys_to_ignore_on_load_unexpected or ()
            model._keys_to_ignore_on_load_unexpected = {*known, without_numbers}
    resize_parameters(base, table.get("parameters", {}))
    for path, value in table["attributes"].items():
        _set_size(base, path, value)
    for path, arguments in table.get("inputs", {}).items():
        follow_heads(base.get_submodule(path), arguments)
    for path, consumer in table.get("bypassed", {}).items():
        module = base.get_submodule(path)
        module.bypassed_consumer = consumer
        bypass(module)


def set_sizes_of_layers(model: Any, sizes: Sequence[dict[str, int]]) -> None:
    """Let a model say in its config the sizes of its layers, if they are known, and hold caches to them."""
    config = model.config.get_text_config(decoder=True)
    if not sizes or not hasattr(config, "num_attention_heads"):
        return
    model.config.pruning_config["layers"] = list(sizes)
    # BERT and its kin have a cache only as decoders
    can_be_either = hasattr(config, "add_cross_attention") and not config.is_encoder_decoder
    if can_be_either and not getattr(config, "is_decoder", True):
        return
    most = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    heads = [fields.get("num_key_value_heads") for fields in sizes]
    model.register_forward_pre_hook(partial(fit_caches, heads=heads, most=most), with_kwargs=True)


def owner_of(base: nn.Module, path: str) -> tuple[Any, str]:
    """The object that has an attribute, and the attribute's name.

    The path is such as `layers.0.self_attn.num_heads`, or `layers.0.self_attn.config.num_heads` for an attribute of a
    module's config.
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
        owner = LayerConfig(owner)
        module.config = owner
    setattr(owner, attribute, value)


def _resize(base: nn.Module, path: str, in_features: int, out_features: int) -> None:
    """Give a Linear or Conv1D other numbers of features, without weights; leave an `Emptied` where one is 0."""
    module = base.get_submodule(path)
    if isinstance(module, Conv1D):
        shape = (in_features, out_features)
    elif isinstance(module, nn.Linear):
        shape = (out_features, in_features)
    else:
        raise TypeError(f"cannot resize a {type(module).__name__}, only Linear and Conv1D")
    check_shape(shape, tuple(module.weight.shape))
    if 0 in shape:
        parent, _, name = path.rpartition(".")
        emptied: Any = base.get_submodule(parent)
        setattr(emptied, name, Emptied(in_features, out_features, module.bias))
        # vLLM fuses projections of modules whose classes and children have the same names: these get another child
        emptied.removed = Emptied(0, 0, None)
        return
    if tuple(module.weight.shape) == shape:
        return
    if isinstance(module, Conv1D):
        module.nx = in_features
        module.nf = out_features
    else:
        module.in_features = in_features
        module.out_features = out_features
    module.weight = nn.Parameter(module.weight.new_empty(shape))
    if module.bias is not None:
        module.bias = nn.Parameter(module.bias.new_zeros(out_features))


def base_class(cls: type) -> Any:
    """The stock class under a pruned one; a stock class itself."""
    # no comparison with the mixins: engines pickle classes of a checkpoint by value, and so there are two of each
    return next(c for c in cls.__mro__ if not hasattr(c, "_is_pruned"))


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
        pruned = pruned_class(stock)
        getattr(transformers, auto).register(config_class, pruned, exist_ok=True)
        # `transformers serve` looks there for the class that config.json names; transformers replaces its own module
        # when it imports its processors, so that there may be two
        for module in (transformers, sys.modules["transformers"]):
            setattr(module, pruned.__name__, pruned)


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
        namespace["__init__"] = _init_like(base)
    return globals().setdefault(name, type(name, (mixin, base), namespace))


def _init_like(base: Any) -> Callable[..., None]:
    """`__init__` of a pruned model class, with the signature of that of its stock class."""

    @wraps(base.__init__)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        PrunedModel.__init__(self, *args, **kwargs)

    return init


def __getattr__(name: str) -> type:
    """`Pruned<Base>`, from the class `<Base>`."""
    base = stock_class(name.removeprefix("Pruned")) if name.startswith("Pruned") else None
    if base is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    pruned: type = pruned_class(base)
    return pruned
