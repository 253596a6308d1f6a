"""Run a model one layer at a time over the calibration batches, with the hidden states of all batches kept."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any, NamedTuple

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfprune.structure.batches import Batch
from hfprune.structure.blocks import Block
from hfprune.structure.running import ForwardEnded, replaced_forward, run_without_head
from hfprune.structure.store import Store

#: The arguments of one call of a layer, without the hidden states.
Call = tuple[tuple[Any, ...], dict[str, Any]]


class Reading(NamedTuple):
    """What one block shows for one batch. The last dimension of both tensors holds the features.

    Attributes:
        inputs: What the block's consumer reads.
        target: The sum of the consumer's output and the residual stream, or the consumer's own output.
    """

    inputs: Tensor
    target: Tensor


class LayerStream:
    """The hidden states of a calibration set before one layer of a model; `advance` moves them behind that layer.

    It keeps the hidden states, in memory or in files, and the other arguments that the model gives to its layers
    (masks, rotary embeddings), most of which layers share.

    Attributes:
        model: The model.

    Args:
        model: The model, which should be frozen.
        layers: Paths of the layers of one stack from the base model, in order.
        batches: At least one calibration batch.
        store: Keeps the hidden states.
        name: The name of this stream; streams that share a store have different names.
        start: The place of the first layer to read. If the store has the hidden states before that layer, from an
            earlier run, they are used; otherwise the layers before it run now.
        device: The device on which layers run, inside `at_work`. None: layers run where they are.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Sequence[str],
        batches: Sequence[Batch],
        *,
        store: Store,
        name: str,
        start: int = 0,
        device: torch.device | None = None,
    ) -> None:
        self.model = model
        self._layers = [model.base_model.get_submodule(path) for path in layers]
        self._store = store
        self._name = name
        self._home = model.device
        self._device = device
        # by layer, by batch
        self._calls: list[list[Call]] = [[] for _ in self._layers]
        # indices of the batches whose hidden states are behind the next layer already
        self._moved: set[int] = set()
        self._next = 0
        if all(self._key(start, index) in store for index in range(len(batches))):
            self._next = start
        self._record(batches)
        for _ in range(self._next, start):
            with self.at_work():
                self.advance()

    def _key(self, layer: int, index: int) -> str:
        """The name in the store of the hidden states of one batch before one layer."""
        return f"{self._name}-{layer}-{index}"

    def _record(self, batches: Sequence[Batch]) -> None:
        """Run only the modules before the layers, and note the arguments that every layer is called with."""
        first_layer = _FirstLayer(self._layers[0].forward)
        with ExitStack() as stack:
            for place, layer in enumerate(self._layers):
                stack.enter_context(replaced_forward(layer, partial(self._stand_in, place, first_layer)))
            for batch in batches:
                with suppress(ForwardEnded):
                    run_without_head(self.model, batch)

    def _stand_in(self, place: int, first_layer: "_FirstLayer", /, *args: Any, **kwargs: Any) -> Any:
        """Called in the place of a layer: notes the arguments, and hands the hidden states on as they are."""
        hidden, other_args, other_kwargs = _split(args, kwargs)
        if place == 0:
            index = len(self._calls[0])
            if self._next == 0:
                self._store[self._key(0, index)] = hidden.detach()
            first_layer.observe(args, kwargs)
        self._calls[place].append((other_args, other_kwargs))
        if place == len(self._layers) - 1:
            raise ForwardEnded
        return first_layer.outputs_with(hidden)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Have the next layer on the device inside the `with`, and where it was before afterwards."""
        layer = self._layers[self._next]
        try:
            if self._device is not None:
                layer.to(self._device)
            yield
        finally:
            if self._device is not None:
                layer.to(self._home)

    def run(self, index: int) -> Tensor:
        """Run the next layer on one batch.

        Args:
            index: The batch.

        Returns:
            The hidden states behind the layer.
        """
        args, kwargs = self._calls[self._next][index]
        hidden = self._store[self._key(self._next, index)]
        if self._device is None:
            # files are read into memory, and the model may be on a GPU
            hidden = hidden.to(self._home)
        else:
            hidden = hidden.to(self._device)
            args, kwargs = send_to_device((args, kwargs), self._device)
        output = self._layers[self._next](hidden, *args, **kwargs)
        hidden_behind: Tensor = output[0] if isinstance(output, tuple) else output
        return hidden_behind

    def _move(self, index: int, hidden_behind: Tensor) -> None:
        """Keep the hidden states of a batch behind the next layer, and drop older ones."""
        self._store[self._key(self._next + 1, index)] = hidden_behind.to(self._home)
        # In memory, hidden states before the layer are of no more use. In files they stay one layer longer: a run that
        # ends before the layer's new weights are written must begin with this layer again.
        is_in_files = self._store.folder is not None
        self._store.drop(self._key(self._next - is_in_files, index))
        self._moved.add(index)

    def advance(self) -> None:
        """Move all batches behind the next layer, and go on to the layer after it."""
        # nothing needs the hidden states behind the last layer
        if self._next + 1 < len(self._layers):
            for index in range(len(self._calls[self._next])):
                if index not in self._moved:
                    self._move(index, self.run(index))
        self._moved = set()
        self._calls[self._next] = []
        self._next += 1

    def read(
        self, index: int, blocks: Sequence[Block], sums: Mapping[str, str | None], *, to_the_end: bool = False
    ) -> dict[str, Reading]:
        """Read what blocks of the next layer show for one batch. The layer runs no further than needed.

        Args:
            index: The batch.
            blocks: Blocks of the next layer.
            sums: By block name, `Block.residual_sum`, or None to read the consumer's own output.
            to_the_end: Run the whole layer and move the batch behind it, which spares `advance` to run it again. The
                batch cannot be read again before `advance`.

        Returns:
            By block name, the reading.
        """
        inputs: dict[str, Tensor] = {}
        targets: dict[str, Tensor] = {}

        def note(values: dict[str, Tensor], name: str, value: Tensor) -> None:
            values[name] = value
            is_complete = len(inputs) == len(targets) == len(blocks)
            if is_complete and not to_the_end:
                raise ForwardEnded

        hidden_behind: Tensor | None = None
        with ExitStack() as stack:
            for block in blocks:
                stack.enter_context(_input_of(self._module(block.consumer), partial(note, inputs, block.name)))
                place = sums[block.name]
                if place is None:
                    stack.enter_context(_output_of(self._module(block.consumer), partial(note, targets, block.name)))
                elif place != block.layer:
                    stack.enter_context(_input_of(self._module(place), partial(note, targets, block.name)))
            with suppress(ForwardEnded):
                hidden_behind = self.run(index)
        if to_the_end and hidden_behind is not None:
            self._move(index, hidden_behind)
        readings = {}
        for block in blocks:
            # a residual sum at the end of the layer has no hook: it is what the layer returns
            target = hidden_behind if sums[block.name] == block.layer else targets[block.name]
            assert target is not None
            readings[block.name] = Reading(inputs=inputs[block.name], target=target)
        return readings

    def _module(self, path: str) -> nn.Module:
        module: nn.Module = self.model.base_model.get_submodule(path)
        return module


class _FirstLayer:
    """Knows what the first layer of a stack returns beside the hidden states, such as the position bias of T5.

    The model hands these values to the layers behind, so stand-ins for layers must return them as well.

    Args:
        forward: The layer's own `forward`.
    """

    def __init__(self, forward: Callable[..., Any]) -> None:
        self._forward = forward
        self._returns_tuple: bool | None = None
        self._beside: tuple[Any, ...] = ()

    def observe(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Run the layer with some arguments, unless it is known to return nothing beside the hidden states."""
        if self._returns_tuple is False:
            return
        output = self._forward(*args, **kwargs)
        self._returns_tuple = isinstance(output, tuple)
        if self._returns_tuple:
            self._beside = output[1:]

    def outputs_with(self, hidden: Tensor) -> Any:
        """What a layer would return that does not change the hidden states."""
        if not self._returns_tuple:
            return hidden
        return (hidden, *self._beside)


class SharedStream:
    """The interface of `LayerStream` for layers that run several times in one pass: every reading runs the whole model.

    Attributes:
        model: The model.

    Args:
        model: The model, which should be frozen.
        batches: At least one calibration batch.
    """

    def __init__(self, model: PreTrainedModel, batches: Sequence[Batch]) -> None:
        self.model = model
        self._batches = batches

    def at_work(self) -> AbstractContextManager[None]:
        """Do nothing: the model runs where it is."""
        return nullcontext()

    def advance(self) -> None:
        """Do nothing: no hidden states are kept."""

    def read(
        self, index: int, blocks: Sequence[Block], sums: Mapping[str, str | None], *, to_the_end: bool = True
    ) -> dict[str, Reading]:
        """Read what blocks show for one batch.

        Args:
            index: The batch.
            blocks: The blocks.
            sums: As for `LayerStream.read`.
            to_the_end: Of no effect: the model always runs to the end.

        Returns:
            By block name, the reading. The tensors of all runs of a layer are concatenated along the first dimension.
        """
        del to_the_end
        # by block name, for each run of the layer
        inputs: dict[str, list[Tensor]] = {}
        targets: dict[str, list[Tensor]] = {}
        base = self.model.base_model
        with ExitStack() as stack:
            for block in blocks:
                consumer = base.get_submodule(block.consumer)
                inputs[block.name] = []
                targets[block.name] = []
                stack.enter_context(_input_of(consumer, inputs[block.name].append))
                note_target = targets[block.name].append
                place = sums[block.name]
                if place is None:
                    stack.enter_context(_output_of(consumer, note_target))
                elif place == block.layer:
                    stack.enter_context(_output_of(base.get_submodule(block.layer), note_target))
                else:
                    stack.enter_context(_input_of(base.get_submodule(place), note_target))
            run_without_head(self.model, self._batches[index])
        readings = {}
        for block in blocks:
            name = block.name
            readings[name] = Reading(inputs=torch.cat(inputs[name]), target=torch.cat(targets[name]))
        return readings


def _split(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """The hidden states, and the other arguments of a layer."""
    if args:
        return args[0], args[1:], kwargs
    others = dict(kwargs)
    hidden = others.pop("hidden_states")
    return hidden, (), others


@contextmanager
def _input_of(module: nn.Module, note: Callable[[Tensor], None]) -> Iterator[None]:
    """Call a function with the first argument of a module, inside the `with`, whenever the module runs."""
    handle = module.register_forward_pre_hook(lambda _, args: note(args[0]))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _output_of(module: nn.Module, note: Callable[[Tensor], None]) -> Iterator[None]:
    """Call a function with the output of a module, inside the `with`, whenever the module runs."""
    handle = module.register_forward_hook(lambda _, __, output: note(output))
    try:
        yield
    finally:
        handle.remove()
