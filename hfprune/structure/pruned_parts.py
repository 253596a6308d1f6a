"""Parts of pruned models that the loader needs: what emptied projections leave, and what caches must know.

A checkpoint carries this code within its `modeling_pruned.py`, so it imports nothing of hfprune.
"""

import copy
import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from transformers import Cache, PreTrainedModel
from transformers import initialization as init

#: How peft names its tables of what it does by default, by model type.
TABLES_OF_PEFT = "TRANSFORMERS_MODELS_TO_"

#: The path of a module down to the list of layers that it is in.
_LAYER = re.compile(r"^.*?\.(?=\d+\.)")


def check_shape(shape: tuple[Any, ...], dense: tuple[int, ...]) -> None:
    """Refuse a shape that no pruning of the dense model gives."""
    if not all(type(size) is int for size in shape):
        raise ValueError(f"pruning_config asks for a weight of shape {shape!r:.100}; sizes are whole numbers.")
    grows = any(new > old for new, old in zip(shape, dense, strict=True))
    if min(shape) < 0 or grows:
        raise ValueError(
            f"pruning_config asks for a weight of shape {shape} where the dense model has {dense};"
            " pruning only makes them smaller. The config is damaged, or not to be trusted."
        )


def check_modules(base: nn.Module, paths: Iterable[str]) -> None:
    """Refuse shapes of modules that the model does not have: it is of another type, or has fewer layers."""
    present = dict(base.named_modules(remove_duplicate=False))
    missing = [path not in present for path in paths]
    if not any(missing):
        return
    name = list(paths)[missing.index(True)]
    if missing[0]:
        raise ValueError(
            f"this is a checkpoint of another model type than {type(base).__name__}, or its config is damaged: it has "
            f"shapes of {name!r}. Load it by an Auto class, which finds the right class."
        )
    raise ValueError(
        f"pruning_config has the shape of {name!r:.100}, and the model has no such module. Leave out what changes the "
        "number of layers, such as num_hidden_layers; if nothing does, the config is damaged."
    )


def resize_parameters(base: nn.Module, shapes: dict[str, Any]) -> None:
    """Give parameters beside the projections fewer numbers; None is left of one without any."""
    for path, shape in shapes.items():
        module, _, name = path.rpartition(".")
        owner = base.get_submodule(module)
        dense = owner.get_parameter(name)
        # one without numbers would be saved, and asked for when it is loaded
        if shape == [0]:
            setattr(owner, name, None)
            continue
        if not isinstance(shape, list) or len(shape) != dense.ndim:
            raise ValueError(f"pruning_config gives {path:.100} the shape {shape!r:.100}, of {dense.ndim} dimensions.")
        check_shape(tuple(shape), tuple(dense.shape))
        # the first numbers, so that what no file gives is filled as in the dense model
        kept = dense.detach()[tuple(slice(size) for size in shape)].clone()
        setattr(owner, name, nn.Parameter(kept))


class Emptied(nn.Module):
    """What is left of a projection without inputs or without outputs: its bias, if it has outputs.

    It is no Linear, as quantizers and exporters trip over a Linear with a size of 0, and it has no weight.

    Args:
        inputs: How many input features the projection has.
        outputs: How many output features it has.
        bias: Its bias, for shape and dtype; None if it has none.

    Attributes:
        inputs: How many input features it has.
        outputs: How many output features it has.
        is_biased: Whether the projection had a bias.
    """

    def __init__(self, inputs: int, outputs: int, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.inputs = inputs
        self.outputs = outputs
        self.is_biased = bias is not None
        # T5 asks for the weight's dtype, if there is a weight
        self.register_parameter("weight", None)
        self.register_parameter("bias", None)
        if bias is not None and outputs:
            self.bias = nn.Parameter(bias.new_zeros(outputs))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """The bias for every token: `(..., inputs)` -> `(..., outputs)`."""
        if not self.outputs:
            return features[..., :0]
        # the sum of no features, so that gradients of 0 reach what comes before: torch's DDP waits for them
        nothing = features.new_zeros(*features.shape[:-1], self.outputs) + features.sum()
        if self.bias is None:
            return nothing
        return nothing + self.bias.to(nothing.dtype)

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{self.inputs} -> {self.outputs}, of a removed block"

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """Itself if it has a bias, else nothing.

        Libraries such as peft replace projections that they find by name. They cannot replace this one.

        Args:
            memo: As for `torch.nn.Module.named_modules`.
            prefix: As there.
            remove_duplicate: As there.

        Yields:
            Its name, and itself.
        """
        if self.bias is not None:
            yield from super().named_modules(memo, prefix, remove_duplicate)

    def _load_from_state_dict(self, state_dict: dict[str, torch.Tensor], prefix: str, *args: Any) -> None:
        # earlier versions had parameters without numbers here
        for name in (f"{prefix}weight", f"{prefix}bias"):
            if name in state_dict and not state_dict[name].numel():
                del state_dict[name]
        super()._load_from_state_dict(state_dict, prefix, *args)


class LayerConfig:
    """A layer's view of the model's config: it gives what the config has, but for the sizes that are set on it."""

    def __init__(self, shared: Any) -> None:
        self.shared = shared

    def __getattr__(self, name: str) -> Any:
        # copy and pickle ask for these before there is a shared config
        if name == "shared" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.shared, name)


@cache
def without_property(config_class: Any, name: str) -> Any:
    """A config class in which a field is set that the stock class computes."""
    return type(config_class.__name__, (config_class,), {name: None, "__module__": config_class.__module__})


class ConfigOfLayers(Sequence[Any]):
    """The config of every layer of a pruned model, as transformers reads it to allocate caches.

    Args:
        stock: Those of the dense model.
        sizes: For every layer, the fields that pruning changed.
    """

    def __init__(self, stock: Any, sizes: Sequence[dict[str, int]]) -> None:
        for name, value in (field for fields in sizes for field in fields.items()):
            if type(value) is not int or value < 0 or name.startswith("_"):
                raise ValueError(f"pruning_config gives a layer {name!r:.50} = {value!r:.50}, which is no size.")
        self.stock = stock
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: Any) -> Any:
        """The config of a layer, by its number; those of a slice; or that of all layers of a type, by its name."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if isinstance(index, str):
            # what layers of a type share, as the rotary embedding, is that of the dense model
            return self.stock[index]
        config = copy.copy(self.stock[index])
        for name, value in self.sizes[index].items():
            if isinstance(getattr(type(config), name, None), property):
                # Falcon's config computes the size of a head from that of the dense model
                config_class: Any = type(config)
                config.__class__ = without_property(config_class, name)
            setattr(config, name, value)
        return config


def update_paged(
    paged: Any,
    most: int,
    *,
    key_states: torch.Tensor,
    value_states: torch.Tensor,
    layer_idx: int,
    kwargs: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Put new keys and values into the first heads of a layer in a paged cache, and get all that these heads have.

    Args:
        paged: The cache of continuous batching, which has the same heads in all layers.
        most: How many.
        key_states: `(1, heads, tokens, head_dim)`; layers may have fewer heads than the cache.
        value_states: As the keys.
        layer_idx: The number of the layer.
        kwargs: Further arguments of attention, which the cache changes.

    Returns:
        Keys and values, of the heads of the layer.
    """
    update = partial(type(paged).update, paged, layer_idx=layer_idx, kwargs=kwargs)
    heads = key_states.shape[1]
    if kwargs.get("block_table") is not None:
        # nothing is written here: attention gets the cache itself, `(blocks, tokens, heads, head_dim)`
        keys, values = update(key_states=key_states, value_states=value_states)
        for name in ("k_cache", "v_cache"):
            kwargs[name] = kwargs[name][..., :heads, :]
        return keys, values
    more = (0, 0, 0, 0, 0, most - heads)
    keys, values = (nn.functional.pad(states, more) for states in (key_states, value_states))
    keys, values = update(key_states=keys, value_states=values)
    return keys[:, :heads], values[:, :heads]


def fit_caches(
    _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, heads: Sequence[int | None], most: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Hook before a pruned model: give a paged cache the heads of every layer, and refuse a cache of other heads.

    Args:
        args: The model's arguments, which stay as they are.
        kwargs: Its arguments by name.
        heads: How many heads the cached keys of every layer have; None where it is not known.
        most: Those that a paged cache is allocated for.

    Returns:
        The arguments.

    Raises:
        ValueError: Keys in the cache have other heads than the layer that they are for.
    """
    paged = kwargs.get("cache")
    if paged is not None and hasattr(paged, "layer_to_allocator") and "update" not in vars(paged):
        # attention asks for the class of the cache, so it stays the same object
        paged.update = partial(update_paged, paged, most)
    cache = kwargs.get("past_key_values")
    layers = cache.layers if isinstance(cache, Cache) and hasattr(cache, "layers") else ()
    for number, (layer, expected) in enumerate(zip(layers, heads, strict=False)):
        keys = getattr(layer, "keys", None)
        if keys is not None and keys.ndim == 4 and expected is not None and keys.shape[1] != expected:
            raise ValueError(
                f"the cache has {keys.shape[1]} key/value heads for layer {number}, which has {expected}: it was "
                "made for another model, or for layers that are all alike, as prefix tuning by peft makes it. Allocate "
                "it by model.config.per_layer_config, or use an adapter that adds no keys (LoRA)."
            )
    return args, kwargs


def check_heads(name: str, rule: dict[str, Any]) -> None:
    """Refuse indices of heads that do not increase, or that no dense model has, and what is no number of heads."""
    index = rule.get("index", [])
    dim = rule.get("dim")
    heads = rule.get("of")
    counts_heads = type(dim) is int and type(heads) is int and heads > 0
    # without a dimension of heads there is nothing to select
    if dim is not None and not counts_heads:
        raise ValueError(f"pruning_config gives slices of {name!r:.50} along {dim!r:.50}, of {heads!r:.50} heads.")
    whole = all(type(head) is int for head in index)
    if whole and not index:
        return
    increasing = whole and all(first < second for first, second in pairwise(index))
    if not increasing or not 0 <= index[0] <= index[-1] < (heads or 0):
        raise ValueError(f"pruning_config gives slices of {name!r:.50} that are not increasing or not there.")


def select_heads(value: torch.Tensor, rule: dict[str, Any]) -> torch.Tensor:
    """The slices of the heads that stay, with all of them within reach as `of_all_heads`."""
    dim = rule["dim"]
    heads = rule["of"]
    # a dimension that the heads do not divide holds one slice for all of them
    if value.shape[dim] % heads:
        return value
    # heads may be repeated for every sample
    starts = torch.arange(0, value.shape[dim], heads, dtype=torch.long, device=value.device)
    index = torch.tensor(rule["index"], dtype=torch.long, device=value.device)
    selected = value.index_select(dim, (starts[:, None] + index).flatten())
    selected.of_all_heads = value  # type: ignore[attr-defined]
    return selected


def select_given(
    module: nn.Module, args: Any, kwargs: Any, *, arguments: dict[str, dict[str, Any]]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Pre-hook: of arguments that are given, select the slices of the heads that stay."""
    bound = inspect.signature(module.forward).bind(*args, **kwargs)
    for name, rule in arguments.items():
        value = bound.arguments.get(name)
        if value is None:
            continue
        # an argument without a dimension of heads is zeros of another size: the module makes its own
        bound.arguments[name] = None if rule["dim"] is None else select_heads(value, rule)
    return bound.args, bound.kwargs


def return_all(_: nn.Module, __: Any, output: tuple[Any, ...], *, places: set[int]) -> tuple[Any, ...]:
    """Hook: later layers, which have other heads, get the slices of all."""
    values = list(output)
    for place in places.intersection(range(len(values))):
        # a value without slices of its own is that of all heads already
        values[place] = getattr(values[place], "of_all_heads", values[place])
    return tuple(values)


def fill_resized(model: PreTrainedModel) -> None:
    """Let transformers draw the weights of resized modules, as it draws all weights of a new model.

    It has filled the modules of the dense sizes, and marked them. A weight's scale may follow from the module, from a
    parent or from the base model, so all of them lose their mark. On the meta device there is nothing to fill.

    Args:
        model: A model that was resized.
    """
    base = model.base_model
    modules = {name: base.get_submodule(name) for name in model.config.pruning_config["shapes"]}
    for name, module in modules.items():
        if not isinstance(module, Emptied):
            _unmark(model, name)
    # stock code fills projections of a module that it expects to be there
    for name, module in modules.items():
        if isinstance(module, Emptied):
            base.get_submodule(name.rpartition(".")[0])._is_hf_initialized = True
    if model.device.type != "meta":
        model.initialize_weights()


def zero_biases(model: nn.Module) -> None:
    """Fill biases of removed blocks that no file gave; transformers knows Linears, and these are none."""
    for module in model.modules():
        if isinstance(module, Emptied) and module.bias is not None:
            # it leaves alone what is loaded
            init.zeros_(module.bias)


def _unmark(model: PreTrainedModel, name: str) -> None:
    """Let transformers take a module of the base model, and all that it is in up to there, for not filled.

    A head would fill its output embeddings, which are those of the input by now.
    """
    module: Any = model.base_model
    around: list[Any] = [module]
    for part in name.split("."):
        module = module.get_submodule(part)
        around.append(module)
    for one in around:
        one._is_hf_initialized = False


def inform_peft(pruned_type: str) -> None:
    """Give a pruned type what peft, if it is imported, has for the dense type in its tables, such as target modules."""
    tables = vars(sys.modules.get("peft.utils.constants", object))
    stock_type = pruned_type.removeprefix("pruned_")
    for name, table in tables.items():
        if name.startswith(TABLES_OF_PEFT) and isinstance(table, dict) and stock_type in table:
            table.setdefault(pruned_type, table[stock_type])


def check_report(model: Any, report: dict[str, Any]) -> None:
    """Refuse weights of layers that do not fit, or are not there: they are random now."""
    body = f"{model.base_model_prefix}."
    pruned = model.config.pruning_config["shapes"]
    layers = tuple({path[: found.end()] for path in pruned if (found := _LAYER.search(path))} or pruned)
    for name, stored, expected in sorted(report["mismatched_keys"]):
        if name.removeprefix(body).startswith(layers):
            raise ValueError(
                f"{name} is {tuple(stored)} in the weights, and {tuple(expected)} in the model: a pruned module would "
                "be random. ignore_mismatched_sizes is for new heads; leave out what changes the size of other modules."
            )
    for name in sorted(report["missing_keys"]):
        if name.removeprefix(body).startswith(layers):
            raise ValueError(
                f"{name} is not in the weights: it would be random. Leave out what changes the number of layers."
            )
