"""Parts of pruned models that the loader needs: what emptied projections leave, and arguments that follow heads.

A checkpoint carries this code within its `modeling_pruned.py`, so it imports nothing of hfprune.
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
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


def cached_width(cached: Any, number: int) -> int:
    """How many numbers a layer without heads puts into a cache for every token: 1, or what was allocated for it."""
    layers = getattr(cached, "layers", ())
    keys = getattr(layers[number], "keys", None) if number < len(layers) else None
    if keys is None or keys.ndim != 4:
        return 1
    return int(keys.shape[-1])


def bypass(module: Any) -> Any:
    """Leave out a module without heads, also in the copies that torch.nn.DataParallel makes of it."""
    module.forward = partial(_without_heads, module)
    module._replicate_for_data_parallel = partial(_replicate, module, bypass)
    return module


def _replicate(module: Any, again: Callable[[Any], Any]) -> Any:
    """A copy for DataParallel, bound to its own weights: a copied `forward` would run with the original's."""
    return again(type(module)._replicate_for_data_parallel(module))


def _without_heads(
    module: Any, hidden_states: torch.Tensor, *_: Any, **given: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """`forward` of an attention module that has no heads left, from `(samples, tokens, features)`.

    It returns no features, `(samples, tokens, 0)`, or what the consumer inside the module makes of no features; and
    attention weights of no heads.
    """
    samples, tokens = hidden_states.shape[:2]
    nothing = hidden_states[..., :0]
    weights = hidden_states.new_zeros(samples, 0, tokens, tokens)
    cache = given.get("past_key_values", given.get("layer_past"))
    if isinstance(cache, Cache):
        # caches take the length of a text from any of their layers: a key and a value of one number for every token
        layer = module.layer_idx if hasattr(module, "layer_idx") else module.layer_id
        seen = hidden_states.new_ones(samples, 1, tokens, cached_width(cache, layer))
        cache.update(seen, seen, layer)
    if not module.bypassed_consumer:
        return nothing, weights
    consumer = module.get_submodule(module.bypassed_consumer)
    return consumer(nothing), weights


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


def follow_heads(module: Any, arguments: dict[str, dict[str, Any]]) -> None:
    """Let arguments with one slice a head hold those of the heads that stay, inside the module only.

    Args:
        module: The module that takes the arguments.
        arguments: By name of an argument: `dim`, where the heads are; `of`, how many the dense model has; `index`,
            which of them stay; `made_by`, the module's method that makes the argument; and `returned`, its place in
            what the module returns.
    """
    for name, rule in arguments.items():
        check_heads(name, rule)
    module.register_forward_pre_hook(partial(select_given, arguments=arguments), with_kwargs=True)
    returned = {rule["returned"] for rule in arguments.values() if rule.get("returned") is not None}
    if returned:
        module.register_forward_hook(partial(return_all, places=returned))
    makers = {rule["made_by"]: rule for rule in arguments.values() if rule.get("made_by")}
    if makers:
        _select_made(module, makers)


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
    return select_heads(getattr(type(module), name)(module, *args, **kwargs), rule)


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
