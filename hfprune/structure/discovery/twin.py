"""A small random model of the same class and config, and what its layers do in one pass: what discovery looks at."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
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
from hfprune.structure.pruned_layers import without_sizes
from hfprune.structure.running import frozen, inputs_of

#: Fields of a config that belong to one checkpoint or to hfprune, and so tell nothing of the dense model's structure.
_NOT_OF_THE_DENSE = (
    "transformers_weights",
    "pruning_config",
    "auto_map",
    "architectures",
    "transformers_version",
    "dtype",
    "_name_or_path",
)
#: Layers in each list of a twin whose layers are alike: two still differ from each other once they are pruned.
_LAYERS = 2
#: The batch of a twin. Several tokens, as attention to a single one does not depend on the query.
_SAMPLES = 2
_TOKENS = 8
#: Parts of names of config fields that may say how many layers there are.
_WORDS_OF_DEPTH = ("layer", "depth", "block")


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A list of like layers of a model.

    Attributes:
        path: Path of the list, as in `Architecture.stacks`.
        outermost: Number of entries of the outermost list on the path.
        layers: The layers by path, from the base model.
    """

    path: str
    outermost: int
    layers: Mapping[str, nn.Module]


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What the layers of a list do in one pass.

    Attributes:
        projections: By path of the layer, its projections in the order in which they run.
        times: How often each layer runs; 0 if none does, or if some run more often than others.
        chained: Whether each layer takes as its first argument the output of the layer before it, as reconstruction
            runs them.
    """

    projections: Mapping[str, Sequence[Projection]]
    times: int
    chained: bool


def dense_fields(config: PretrainedConfig) -> dict[str, Any]:
    """The fields of a model's dense config, without those that belong to one checkpoint only.

    Args:
        config: The config, stock or pruned; it stays as it is.

    Returns:
        Copies of the fields, by name.
    """
    fields: dict[str, Any] = copy.deepcopy(without_sizes(config).to_dict())
    for name in _NOT_OF_THE_DENSE:
        fields.pop(name, None)
    # a pruned config calls itself pruned_bert
    fields["model_type"] = base_class(type(config)).model_type
    return fields


def make_twin(model: PreTrainedModel) -> tuple[PreTrainedModel, Batch]:
    """A dense model of the class and config of this one, with random weights, on the CPU in float32.

    Where all layers of its lists are alike it has two of each. Weights are large enough that every unit matters; the
    random state of torch stays as it is.

    Args:
        model: The model, dense or pruned; it may be on the meta device.

    Returns:
        The twin, in evaluation mode, and a batch for it.
    """
    model_class = base_class(type(model))
    config_class = base_class(type(model.config))
    fields = dense_fields(model.config)
    with torch.device("meta"):
        whole = model_class(config_class.from_dict(copy.deepcopy(fields)))
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would seed accelerators too, whose state is not forked here
        torch.default_generator.manual_seed(0)
        config = _shortened(whole, model_class, config_class, fields)
        if config is None:
            config = config_class.from_dict(fields)
        twin: PreTrainedModel = model_class(config)
        twin.to(torch.float32).eval()
        _randomise(twin)
        ids = torch.randint(0, _known_tokens(twin), (_SAMPLES, _TOKENS), dtype=torch.long, device="cpu")
        return twin, example_inputs(twin, ids)


def _randomise(twin: PreTrainedModel) -> None:
    """Draw all weights, as those of a fresh model are so small that some units would change nothing."""
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if parameter.ndim > 1:
                # keeps activations of about the same size from layer to layer
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
            else:
                # norms, and scales of a layer's output that start near 0
                parameter.uniform_(0.5, 1.5)


def _known_tokens(model: PreTrainedModel) -> int:
    """How many token ids a model embeds; 2 without token embeddings, where at most a decoder reads the ids 0 and 1."""
    embeddings = input_embeddings(model)
    if isinstance(embeddings, nn.Embedding):
        return embeddings.num_embeddings
    return 2


def _shortened(
    whole: PreTrainedModel,
    model_class: type[PreTrainedModel],
    config_class: type[PretrainedConfig],
    fields: Mapping[str, Any],
) -> PretrainedConfig | None:
    """The config of the same model with two layers in every list.

    Args:
        whole: The model with all layers; it may be on the meta device.
        model_class: Its class.
        config_class: The class of its config.
        fields: The fields of its config.

    Returns:
        The config; None if the layers of a list differ, if no list has more than two, or if the config cannot say it.
    """
    stacks = stacks_of(whole.base_model)
    lengths: set[int] = set()
    for stack in stacks:
        if len(_signatures(stack)) > 1:
            return None
        if stack.outermost > _LAYERS:
            lengths.add(stack.outermost)
    if not lengths:
        return None
    short_fields = _short_fields(fields, lengths)
    try:
        with torch.device("meta"):
            short = model_class(config_class.from_dict(copy.deepcopy(short_fields)))
        # fields were chosen by name and value, so the model itself must tell whether they were the right ones
        if not _is_short_version(stacks_of(short.base_model), stacks):
            return None
    except Exception:  # noqa: BLE001 (whatever a config refuses: the whole model is the twin then)
        return None
    return config_class.from_dict(short_fields)


def _short_fields(fields: Mapping[str, Any], lengths: set[int]) -> dict[str, Any]:
    """The fields of a config with two in the place of every number of layers, and with lists by layer cut to two.

    Args:
        fields: The fields of a config.
        lengths: The numbers of layers that a model of it has.

    Returns:
        Copies of the fields.
    """
    short = copy.deepcopy(dict(fields))
    for name, value in short.items():
        if type(value) is int and value in lengths:
            if any(word in name for word in _WORDS_OF_DEPTH):
                short[name] = _LAYERS
        elif isinstance(value, list) and len(value) in lengths:
            short[name] = value[:_LAYERS]
    return short


def _is_short_version(short: Iterable[Stack], whole: Iterable[Stack]) -> bool:
    """Whether lists of layers are the same lists, with the same layers, but two of each."""
    short_stacks = {stack.path: stack for stack in short}
    for stack in whole:
        short_stack = short_stacks.get(stack.path)
        if short_stack is None:
            return False
        signatures = _signatures(short_stack) | _signatures(stack)
        if short_stack.outermost != min(stack.outermost, _LAYERS) or len(signatures) > 1:
            return False
    return True


def _signatures(stack: Stack) -> set[tuple[Any, ...]]:
    """What the layers of a list are made of: one signature if all are alike."""
    return set(map(_signature, stack.layers.values()))


def _signature(layer: nn.Module) -> tuple[Any, ...]:
    """Path, class and shapes of parameters of every module of a layer."""
    signature: list[Any] = []
    for path, module in layer.named_modules():
        signature += [path, type(module).__qualname__]
        for parameter in module.parameters(recurse=False):
            signature.append(parameter.shape)
    return tuple(signature)


def stacks_of(base: nn.Module) -> list[Stack]:
    """The lists of layers of a base model: the outermost lists with projections, or whole layers in lists inside.

    Args:
        base: The base model.

    Returns:
        The lists, in the order in which the model holds them.

    Examples:
        >>> base = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])})
        >>> [(stack.path, list(stack.layers)) for stack in stacks_of(base)]
        [('layers', ['layers.0', 'layers.1'])]
    """
    stacks = []
    for path, entries in _outermost_lists(base):
        layers: dict[str, nn.Module] = {f"{path}.{index}": layer for index, layer in enumerate(entries)}
        # ALBERT has groups of layers in its list, so the layers are in lists inside
        while inner := _inner_list(next(iter(layers.values()))):
            path = f"{path}.*.{inner}"
            layers = _entries_of_inner_lists(layers, inner)
        stacks.append(Stack(path=path, outermost=len(entries), layers=layers))
    return stacks


def _entries_of_inner_lists(outer: Mapping[str, nn.Module], inner: str) -> dict[str, nn.Module]:
    """The entries of the lists at the path `inner` of several modules, by path."""
    entries: dict[str, nn.Module] = {}
    for path, module in outer.items():
        for index, entry in enumerate(module.get_submodule(inner).children()):
            entries[f"{path}.{inner}.{index}"] = entry
    return entries


def _outermost_lists(module: nn.Module, path: str = "") -> list[tuple[str, nn.ModuleList]]:
    """The lists with projections that are in no other such list, with their paths."""
    lists: list[tuple[str, nn.ModuleList]] = []
    for name, child in module.named_children():
        path_of_child = f"{path}.{name}".lstrip(".")
        if isinstance(child, nn.ModuleList) and len(child) and projections_of(child[0]):
            lists.append((path_of_child, child))
        else:
            lists += _outermost_lists(child, path_of_child)
    return lists


def _inner_list(layer: nn.Module) -> str:
    """The path of a list of whole layers inside an entry of a list; empty if the entry is a layer itself."""
    for path, module in layer.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) and has_whole_layer(module[0], projections_of(module[0])):
            return str(path)
    return ""


def projections_of(module: nn.Module) -> list[str]:
    """Paths of the projections in a module.

    >>> projections_of(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)))
    ['0', '2']
    """
    return [path for path, inner in module.named_modules() if isinstance(inner, (nn.Linear, Conv1D))]


def stacked_weights_of(module: nn.Module) -> list[str]:
    """Paths of the parameters in a module that stack the weights of several projections, as experts do."""
    stacked: list[str] = []
    for path, inner in module.named_modules():
        # weights of convolutions have three dimensions as well
        if type(inner).__module__.startswith("torch."):
            continue
        for name, parameter in inner.named_parameters(recurse=False):
            if parameter.ndim == 3:
                stacked.append(f"{path}.{name}".lstrip("."))
    return stacked


def output_of(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Hidden states behind the last layer; of an encoder-decoder, the first output of the whole model. Seeded.

    Args:
        model: The model.
        batch: Its arguments.

    Returns:
        The output, detached.
    """
    with frozen(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
        # some models draw in evaluation mode too
        torch.default_generator.manual_seed(0)
        # the heads of some encoder-decoders make the decoder's inputs
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
    notes = {path: _Notes() for path in stack.layers}
    with ExitStack() as hooks:
        for path, layer in stack.layers.items():
            hooks.enter_context(notes[path].of(layer))
        output_of(model, batch)
    times = {len(of_layer.inputs) for of_layer in notes.values()}
    return Trace(
        projections={path: list(of_layer.projections.values()) for path, of_layer in notes.items()},
        times=times.pop() if len(times) == 1 else 0,
        chained=_is_chained(notes),
    )


@dataclass(kw_only=True)
class _Notes:
    """Notes on what one layer does while a model runs.

    Attributes:
        inputs: The first argument of every call.
        outputs: The first output of every call.
        projections: Its projections by path, in the order of their first calls.
    """

    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    projections: dict[str, Projection] = field(default_factory=dict)

    @contextmanager
    def of(self, layer: nn.Module) -> Iterator[None]:
        """Take notes of a layer in every pass inside the `with`.

        Args:
            layer: The layer.

        Yields:
            Nothing.
        """
        with ExitStack() as hooks:
            on_input = layer.register_forward_pre_hook(self._note_input, with_kwargs=True)
            hooks.callback(on_input.remove)
            on_output = layer.register_forward_hook(self._note_output)
            hooks.callback(on_output.remove)
            for path in projections_of(layer):
                projection = layer.get_submodule(path)
                on_call = projection.register_forward_pre_hook(partial(self._note_projection, path))
                hooks.callback(on_call.remove)
            yield

    def _note_input(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs.get("hidden_states")
        if not isinstance(hidden, Tensor):
            # no rows: equal to no output, and no projection reads all of them
            hidden = torch.empty(0, 1, dtype=torch.float32, device="cpu")
        self.inputs.append(hidden)

    def _note_output(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        self.outputs.append(_first(output))

    def _note_projection(self, path: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        inputs, outputs = features_of(module)
        tokens = 0
        # a projection may run outside its layer, before any call of it
        if self.inputs:
            tokens = self.inputs[-1].shape[:-1].numel()
        # compared by numbers of values, as some layers flatten samples and tokens
        whole = bool(args) and args[0].numel() == tokens * inputs
        self.projections.setdefault(path, Projection(path=path, inputs=inputs, outputs=outputs, whole=whole))


def _is_chained(notes: Mapping[str, _Notes]) -> bool:
    """Whether each layer took the output of the layer before it, in the first call of each.

    Args:
        notes: By path, what the layers of a list did.

    Returns:
        True too where layers did not run.
    """
    for before, path in pairwise(notes):
        outputs = notes[before].outputs
        inputs = notes[path].inputs
        # the first layer of one inner list does not follow the last layer of another
        in_one_list = before.rpartition(".")[0] == path.rpartition(".")[0]
        if outputs and inputs and in_one_list and not torch.equal(outputs[0], inputs[0]):
            return False
    return True


def watch_inputs(model: PreTrainedModel, batch: Batch, layer: nn.Module) -> dict[str, Tensor]:
    """Run a model and note what the modules of a layer read.

    Args:
        model: The model.
        batch: Its arguments.
        layer: The layer.

    Returns:
        By path in the layer, in the order in which the modules run, the first argument of the first call; last, under
        the empty path, the output of the layer.
    """
    values: dict[str, Tensor] = {}

    def note_input(path: str, _: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            values.setdefault(path, args[0])

    def note_output(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        values.setdefault("", _first(output))

    with ExitStack() as hooks:
        for path, module in layer.named_modules():
            # the empty path stands for the layer itself, of which the output is wanted
            if path:
                on_input = module.register_forward_pre_hook(partial(note_input, path))
                hooks.callback(on_input.remove)
        hooks.callback(layer.register_forward_hook(note_output).remove)
        output_of(model, batch)
    return values


def _first(output: Any) -> Any:
    """The hidden states among what a layer returns: the first of a tuple."""
    return output[0] if isinstance(output, tuple) else output
