"""What a pruned config says of every layer: to caches, to engines such as vLLM, and to readers of config.json.

A checkpoint carries this code within its `modeling_pruned.py`, so it imports nothing of hfprune.
"""

import copy
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from transformers import Cache

#: The field of config.json that transformers has for sizes of single layers, and the one that admits the others beside
#: it: without the second, transformers refuses to read a size that layers do not share.
PER_LAYER = "per_layer_config"
GLOBAL_ACCESS = "allow_global_per_layer_attribute_access"
#: How wide the key of an attention without heads is in the table: it stands for the length of a text only.
NO_HEADS = 1


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
        dense = self.stock[index]
        config = copy.copy(dense)
        fields = self.sizes[index]
        for name, value in fields.items():
            if isinstance(getattr(type(config), name, None), property):
                # Falcon's config computes the size of a head from that of the dense model
                config_class: Any = type(config)
                config.__class__ = without_property(config_class, name)
            setattr(config, name, value)
        config.skip = removed_parts(fields)
        if "attention" in config.skip:
            # engines have kernels for heads of some sizes, and allocate by the layer even where nothing will call them
            config.head_dim = self.head_dim(dense)
        return config

    def head_dim(self, dense: Any) -> int:
        """How wide the heads of the model are: of layers that have some, or of the dense model."""
        for fields in self.sizes:
            if fields.get("head_dim", NO_HEADS) != NO_HEADS:
                return fields["head_dim"]
        width: int | None = getattr(dense, "head_dim", None)
        return width or int(dense.hidden_size // dense.num_attention_heads)


def removed_parts(fields: Mapping[str, int]) -> list[str]:
    """What a layer lost whole, by the names that transformers has for it: `attention`, `mlp`."""
    parts = []
    if fields.get("head_dim") == NO_HEADS:
        parts.append("attention")
    if 0 in fields.values():
        parts.append("mlp")
    return parts


def without_sizes(config: Any) -> Any:
    """A copy of a pruned config that says what the dense model has, in every layer; any other config as it is."""
    table = getattr(config, "pruning_config", None) or {}
    if not table.get("layers"):
        return config
    plain = copy.copy(config)
    plain.pruning_config = {name: value for name, value in table.items() if name != "layers"}
    return plain


def stated_sizes(config: Any) -> Sequence[dict[str, int]]:
    """The sizes of every layer where the config speaks of one stack of layers; else nothing.

    An encoder-decoder has two stacks and one config. A dense model whose own layers differ says that by itself.
    """
    sizes: Sequence[dict[str, int]] = (config.pruning_config or {}).get("layers") or ()
    if config.is_encoder_decoder or "_heterogeneity_spec" in vars(config):
        return ()
    return sizes if len(sizes) == getattr(config, "num_hidden_layers", None) else ()


def per_layer_fields(config: Any, sizes: Sequence[dict[str, int]]) -> dict[str, dict[str, Any]]:
    """The sizes of layers as transformers documents them for config.json: by number, what differs from the rest.

    Args:
        config: A config without sizes of layers (see `without_sizes`).
        sizes: For every layer, the fields that pruning changed.

    Returns:
        By the layer's number, the fields of the config that have other values there. A field that the config lacks,
        such as BERT's `head_dim`, is given for every layer. `skip` names what the layer lost whole.
    """
    layers = ConfigOfLayers([config] * len(sizes), sizes)
    digits = len(str(len(sizes) - 1))
    found: dict[str, dict[str, Any]] = {}
    for number, fields in enumerate(sizes):
        own: dict[str, Any] = {}
        layer = layers[number]
        for name in fields:
            is_missing = name == "head_dim" and not hasattr(config, name)
            value = getattr(layer, name)
            if is_missing or (hasattr(config, name) and getattr(config, name) != value):
                own[name] = value
        if layer.skip:
            own["skip"] = layer.skip
        if own:
            # transformers writes numbers that sort as text does
            found[str(number).zfill(digits)] = own
    return found


def check_per_layer(config: Any, given: Any) -> None:
    """Refuse sizes of layers in config.json that are not those of the table of shapes."""
    sizes = (config.pruning_config or {}).get("layers") or ()
    expected = per_layer_fields(without_sizes(config), sizes)
    written = given if isinstance(given, dict) else {}
    digits = len(str(len(sizes) - 1))
    found = {str(number).zfill(digits): fields for number, fields in written.items()}
    if found == expected and isinstance(given, dict):
        return
    different = [number for number in {**expected, **found} if expected.get(number) != found.get(number)]
    where = f"layer {different[0]:.20} {found.get(different[0])!r:.150}" if different else f"{given!r:.100}"
    right = f", where pruning_config makes it {expected.get(different[0])!r:.150}" if different else ""
    raise ValueError(
        f"{PER_LAYER} gives {where}{right}. The model is built by pruning_config, so engines that read {PER_LAYER} "
        "would build another one. Leave both as they were saved; the config is edited, damaged, or not to be trusted."
    )


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
