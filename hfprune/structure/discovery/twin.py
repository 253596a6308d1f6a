"""A small random model of the same class and config, and what its layers do in one pass: what discovery looks at."""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hfprune.structure.batches import Batch
from hfprune.structure.blocks import features_of
from hfprune.structure.devices import input_embeddings
from hfprune.structure.discovery.proposals import Projection, has_whole_layer
from hfprune.structure.examples import example_inputs
from hfprune.structure.modeling_pruned import base_class
from hfprune.structure.running import frozen, inputs_of

#: Fields of a config that are of this checkpoint, or of hfprune.
_NOT_OF_THE_DENSE = (
    "transformers_weights",
    "pruning_config",
    "auto_map",
    "architectures",
    "transformers_version",
    "dtype",
    "_name_or_path",
)
_LAYERS, _SAMPLES, _TOKENS = 2, 2, 8


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A list of like layers of a model.

    Attributes:
        path: As in `Architecture.stacks`.
        outermost: How many entries the outermost list on the way has.
        layers: The layers by path, from the base model.
    """

    path: str
    outermost: int
    layers: Mapping[str, nn.Module]


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What the layers of a list do in one pass.

    Attributes:
        projections: By path of the layer, its projections that run, in order.
        times: How often each layer runs; 0 if that differs.
        chained: Whether each layer takes first what the one before it gives, as reconstruction runs them.
    """

    projections: Mapping[str, Sequence[Projection]]
    times: int
    chained: bool


def dense_fields(config: PretrainedConfig) -> dict[str, Any]:
    """The fields of a model's dense config, stock or pruned, with nothing of this checkpoint."""
    fields = copy.deepcopy(config.to_dict())
    for name in _NOT_OF_THE_DENSE:
        fields.pop(name, None)
    return {**fields, "model_type": base_class(type(config)).model_type}


def make_twin(model: PreTrainedModel) -> tuple[PreTrainedModel, Batch]:
    """A dense model of the class and config of this one, with random weights, on the CPU in float32.

    Where all layers of its lists are alike it has two of each. Weights are large enough that every unit matters; the
    random state of torch stays as it is.

    Args:
        model: The model, dense or pruned; it may be on the meta device.

    Returns:
        The twin, in evaluation mode, and a batch for it.
    """
    cls, config_class = base_class(type(model)), base_class(type(model.config))
    fields = dense_fields(model.config)
    config = config_class.from_dict(copy.deepcopy(fields))
    with torch.device("meta"):
        whole = cls(config)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would seed accelerators too
        twin: PreTrainedModel = cls(_shortened(whole, cls, config_class, fields) or config_class.from_dict(fields))
        twin.to(torch.float32).eval()
        with torch.no_grad():
            for name, parameter in twin.named_parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=parameter.shape[-1] ** -0.5)
                elif name.endswith("bias"):
                    parameter.normal_(std=0.1)
                else:
                    parameter.uniform_(0.5, 1.5)  # also scales that start near 0
        embeddings = input_embeddings(twin)
        known = embeddings.num_embeddings if isinstance(embeddings, nn.Embedding) else 2
        return twin, example_inputs(twin, torch.randint(0, known, (_SAMPLES, _TOKENS)))


def _shortened(
    whole: PreTrainedModel, cls: type[PreTrainedModel], config_class: type[PretrainedConfig], fields: dict[str, Any]
) -> PretrainedConfig | None:
    """The config with two layers in every list, if all are alike and the config can say that; else None."""
    stacks = stacks_of(whole.base_model)
    lengths = {stack.outermost for stack in stacks if stack.outermost > _LAYERS}
    if not lengths or any(len(set(map(_signature, stack.layers.values()))) > 1 for stack in stacks):
        return None
    short = copy.deepcopy(fields)
    for name, value in short.items():
        if type(value) is int and value in lengths and ("layer" in name or "depth" in name or "block" in name):
            short[name] = _LAYERS
        elif isinstance(value, list) and len(value) in lengths:
            short[name] = value[:_LAYERS]
    try:
        with torch.device("meta"):
            made = cls(config_class.from_dict(copy.deepcopy(short)))
        found = {stack.path: stack for stack in stacks_of(made.base_model)}
        for stack in stacks:
            mine = found[stack.path]
            like = {_signature(layer) for layer in (*mine.layers.values(), *stack.layers.values())}
            if mine.outermost != min(stack.outermost, _LAYERS) or len(like) > 1:
                return None
    except Exception:  # noqa: BLE001 (whatever a config refuses: the whole model is the twin then)
        return None
    return config_class.from_dict(short)


def _signature(layer: nn.Module) -> tuple[Any, ...]:
    return tuple(
        (path, type(module).__qualname__, *(tuple(p.shape) for p in module.parameters(recurse=False)))
        for path, module in layer.named_modules()
    )


def stacks_of(base: nn.Module) -> list[Stack]:
    """The lists of layers of a base model: the outermost lists with projections, or whole layers in lists inside.

    Args:
        base: The base model.

    Returns:
        The lists, in the order in which the model holds them.
    """
    found = []
    for path, module in _outermost_lists(base):
        layers, outermost = {f"{path}.{index}": layer for index, layer in enumerate(module)}, len(module)
        while inner := _inner_list(next(iter(layers.values()))):
            path = f"{path}.*.{inner}"
            layers = {
                f"{outer}.{inner}.{index}": entry
                for outer, layer in layers.items()
                for index, entry in enumerate(layer.get_submodule(inner).children())
            }
        found.append(Stack(path=path, outermost=outermost, layers=layers))
    return found


def _outermost_lists(module: nn.Module, path: str = "") -> list[tuple[str, nn.ModuleList]]:
    found = []
    for name, child in module.named_children():
        inside = f"{path}.{name}".lstrip(".")
        if isinstance(child, nn.ModuleList) and len(child) and projections_of(child[0]):
            found.append((inside, child))
        else:
            found += _outermost_lists(child, inside)
    return found


def _inner_list(layer: nn.Module) -> str:
    """The path of a list of whole layers inside an entry of a list; empty if the entry is a layer itself."""
    for path, module in layer.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) and has_whole_layer(module[0], projections_of(module[0])):
            return str(path)
    return ""


def projections_of(module: nn.Module) -> list[str]:
    """Paths of the projections in a module."""
    return [path for path, inner in module.named_modules() if isinstance(inner, (nn.Linear, Conv1D))]


def output_of(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Hidden states behind the last layer; of an encoder-decoder, the first output of it whole. Seeded.

    Args:
        model: The model.
        batch: Its arguments.

    Returns:
        The output, detached.
    """
    with frozen(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        called = model if model.config.is_encoder_decoder else model.base_model
        output: Tensor = called(**inputs_of(called, batch))[0]
    return output


def trace(model: PreTrainedModel, batch: Batch, stack: Stack) -> Trace:
    """Run a model and note what the layers of a list do.

    Args:
        model: The model.
        batch: Its arguments.
        stack: The layers.

    Returns:
        What they do.
    """
    entered: dict[str, list[Tensor]] = {path: [] for path in stack.layers}
    left: dict[str, list[Tensor]] = {path: [] for path in stack.layers}
    found: dict[str, dict[str, Projection]] = {path: {} for path in stack.layers}

    def enter(path: str) -> Callable[..., None]:
        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs.get("hidden_states")
            entered[path].append(hidden if isinstance(hidden, Tensor) else torch.empty(0, 1))

        return note

    def leave(path: str) -> Callable[..., None]:
        return lambda _, __, output: left[path].append(output[0] if isinstance(output, tuple) else output)

    def project(layer: str, path: str) -> Callable[..., None]:
        def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            inputs, outputs = features_of(module)
            tokens = entered[layer][-1].shape[:-1].numel() if entered[layer] else 0
            whole = bool(args) and args[0].numel() == tokens * inputs
            projection = Projection(path=path, inputs=inputs, outputs=outputs, whole=whole)
            found[layer].setdefault(path, projection)

        return note

    with ExitStack() as hooks:
        for path, layer in stack.layers.items():
            hooks.callback(layer.register_forward_pre_hook(enter(path), with_kwargs=True).remove)
            hooks.callback(layer.register_forward_hook(leave(path)).remove)
            for inner in projections_of(layer):
                hook = layer.get_submodule(inner).register_forward_pre_hook(project(path, inner))
                hooks.callback(hook.remove)
        output_of(model, batch)
    times = {len(calls) for calls in entered.values()}
    return Trace(
        projections={path: list(ran.values()) for path, ran in found.items()},
        times=times.pop() if len(times) == 1 else 0,
        chained=all(
            torch.equal(left[before][0], entered[path][0])
            for before, path in pairwise(stack.layers)
            if left[before] and entered[path] and before.rpartition(".")[0] == path.rpartition(".")[0]
        ),
    )


def watch_inputs(model: PreTrainedModel, batch: Batch, layer: nn.Module) -> dict[str, Tensor]:
    """Run a model and note what the modules of a layer read.

    Args:
        model: The model.
        batch: Its arguments.
        layer: The layer.

    Returns:
        By path in the layer, in the order in which they run, the first input of the first use; last, under the empty
        path, what the layer gives.
    """
    found: dict[str, Tensor] = {}

    def entered(path: str) -> Callable[..., None]:
        def note(_: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor):
                found.setdefault(path, args[0])

        return note

    def left(_: nn.Module, __: Any, output: Any) -> None:
        found.setdefault("", output[0] if isinstance(output, tuple) else output)

    with ExitStack() as hooks:
        for path, module in layer.named_modules():
            if path:
                hooks.callback(module.register_forward_pre_hook(entered(path)).remove)
        hooks.callback(layer.register_forward_hook(left).remove)
        output_of(model, batch)
    return found
