"""Run a model one layer at a time over the calibration batches, with the hidden states of all of them kept."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfprune.structure.batches import Batch
from hfprune.structure.blocks import Block
from hfprune.structure.running import ForwardEnded, replaced_forward, run_without_head
from hfprune.structure.store import Store


class LayerStream:
    """The hidden states of a calibration set in front of one layer of a model; `advance` moves them past it.

    What is kept: tokens × hidden size for the hidden states, in memory or in files, and what the model hands to its
    layers beside them (masks, rotary embeddings), which layers mostly share.

    Attributes:
        model: The model.

    Args:
        model: The model, which should be frozen.
        layers: Paths of the layers of one stack from the base model, in order.
        batches: At least one calibration batch.
        kept: Keeps the hidden states.
        name: Of this stream among those that share `kept`.
        start: The layer in front of which to begin. Hidden states that `kept` has from an earlier run are taken;
            otherwise the layers before it run.
        device: Where layers run, in `at_work`; where they are if not given.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Sequence[str],
        batches: Sequence[Batch],
        *,
        kept: Store | None = None,
        name: str = "hidden",
        start: int = 0,
        device: torch.device | None = None,
    ) -> None:
        self.model = model
        self._layers = [model.base_model.get_submodule(path) for path in layers]
        self._kept, self._name = Store() if kept is None else kept, name
        self._home, self._device = model.device, device
        self._calls: list[list[tuple[tuple[Any, ...], dict[str, Any]]]] = []  # by layer, by batch
        self._behind: set[int] = set()  # batches that are past the next layer
        there = all(self._key(start, index) in self._kept for index in range(len(batches)))
        self._next = start if there else 0
        self._record(batches)
        for _ in range(self._next, start):
            with self.at_work():
                self.advance()

    def _key(self, layer: int, index: int) -> str:
        return f"{self._name}-{layer}-{index}"

    def _record(self, batches: Sequence[Batch]) -> None:
        """Run only what comes before the layers, and note what every layer is called with."""
        others: list[Any] = []  # what the first layer returns behind the hidden states, such as a position bias

        def stand_in(index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
            def note(*args: Any, **kwargs: Any) -> Any:
                hidden, rest, named = _split(args, kwargs)
                if index == 0:
                    number = len(self._calls[0])
                    if self._next == 0:
                        self._kept[self._key(0, number)] = hidden.detach()
                    if others != [None]:  # it returns a tuple, or is not known yet
                        output = forward(*args, **kwargs)
                        others[:] = [list(output[1:])] if isinstance(output, tuple) else [None]
                self._calls[index].append((rest, named))
                if index == len(self._layers) - 1:
                    raise ForwardEnded
                return hidden if others[0] is None else (hidden, *others[0])

            return note

        self._calls = [[] for _ in self._layers]
        with ExitStack() as stack:
            for index, layer in enumerate(self._layers):
                stack.enter_context(replaced_forward(layer, stand_in(index, layer.forward)))
            for batch in batches:
                with suppress(ForwardEnded):
                    run_without_head(self.model, batch)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """The next layer is on the device inside the `with`, and where it was before afterwards."""
        layer = self._layers[self._next]
        try:
            if self._device is not None:
                layer.to(self._device)
            yield
        finally:
            if self._device is not None:
                layer.to(self._home)

    def run(self, index: int) -> Tensor:
        """The hidden states of batch `index` behind the next layer."""
        args, kwargs = self._calls[self._next][index]
        place = self._home if self._device is None else self._device
        hidden = self._kept[self._key(self._next, index)].to(place)
        if self._device is not None:
            args, kwargs = send_to_device((args, kwargs), place)
        output = self._layers[self._next](hidden, *args, **kwargs)
        behind: Tensor = output[0] if isinstance(output, tuple) else output
        return behind

    def _move(self, index: int, behind: Tensor) -> None:
        """Keep what is behind the next layer of a batch, and no longer what is in front of it.

        In files the last layer's stays: a run that is cut short now begins there again.
        """
        self._kept[self._key(self._next + 1, index)] = behind.to(self._home)
        self._kept.drop(self._key(self._next - (self._kept.folder is not None), index))
        self._behind.add(index)

    def advance(self) -> None:
        """Run the next layer over all batches; the one after it is then the next. Behind the last, nothing is run."""
        if self._next + 1 < len(self._layers):
            for index in range(len(self._calls[self._next])):
                if index not in self._behind:
                    self._move(index, self.run(index))
        self._behind = set()
        self._calls[self._next] = []
        self._next += 1

    def read(
        self, index: int, blocks: Sequence[Block], sums: Mapping[str, str | None], *, to_the_end: bool = False
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """What blocks of the next layer show for batch `index`; the layer is run no further than needed.

        Args:
            index: Which batch.
            blocks: Blocks of the next layer.
            sums: By block name, `Block.residual_sum`, or None for the consumer's own output.
            to_the_end: Run the whole layer and move the batch past it, so that `advance` need not; it cannot be read
                again before.

        Returns:
            By block name: the consumer's input, and the residual sum (or the consumer's output); the last dimension
            holds the features.
        """
        inputs: dict[str, Tensor] = {}
        outputs: dict[str, Tensor] = {}
        base = self.model.base_model

        def store(into: dict[str, Tensor], name: str) -> Callable[[Tensor], None]:
            def put(value: Tensor) -> None:
                into[name] = value
                if len(inputs) == len(outputs) == len(blocks) and not to_the_end:
                    raise ForwardEnded

            return put

        with ExitStack() as stack:
            for block in blocks:
                consumer = base.get_submodule(block.consumer)
                stack.enter_context(_input_of(consumer, store(inputs, block.name)))
                place = sums[block.name]
                if place is None:
                    stack.enter_context(_output_of(consumer, store(outputs, block.name)))
                elif place != block.layer:
                    stack.enter_context(_input_of(base.get_submodule(place), store(outputs, block.name)))
            try:
                behind = self.run(index)
            except ForwardEnded:
                behind = None
        if to_the_end and behind is not None:
            self._move(index, behind)
        found = {}
        for block in blocks:
            total = behind if sums[block.name] == block.layer else outputs[block.name]
            assert total is not None
            found[block.name] = (inputs[block.name], total)
        return found


class SharedStream:
    """What `LayerStream` gives, for layers that run several times in one pass: the whole model runs for every reading.

    Args:
        model: The model, which should be frozen.
        batches: At least one calibration batch.
    """

    def __init__(self, model: PreTrainedModel, batches: Sequence[Batch]) -> None:
        self.model, self._batches = model, batches

    def at_work(self) -> AbstractContextManager[None]:
        """Nothing: the model runs where it is."""
        return nullcontext()

    def advance(self) -> None:
        """Nothing: no hidden states are kept."""

    def read(
        self, index: int, blocks: Sequence[Block], sums: Mapping[str, str | None], *, to_the_end: bool = True
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """As `LayerStream.read`, always to the end; the uses of a block stand one behind the other."""
        del to_the_end
        inputs: dict[str, list[Tensor]] = {block.name: [] for block in blocks}
        outputs: dict[str, list[Tensor]] = {block.name: [] for block in blocks}
        base = self.model.base_model
        with ExitStack() as stack:
            for block in blocks:
                consumer = base.get_submodule(block.consumer)
                stack.enter_context(_input_of(consumer, inputs[block.name].append))
                place = sums[block.name]
                if place is None or place == block.layer:
                    module = consumer if place is None else base.get_submodule(block.layer)
                    stack.enter_context(_output_of(module, outputs[block.name].append))
                else:
                    stack.enter_context(_input_of(base.get_submodule(place), outputs[block.name].append))
            run_without_head(self.model, self._batches[index])
        return {block.name: (torch.cat(inputs[block.name]), torch.cat(outputs[block.name])) for block in blocks}


def _split(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """The hidden states, and the other arguments of a layer."""
    if args:
        return args[0], args[1:], kwargs
    rest = dict(kwargs)
    return rest.pop("hidden_states"), (), rest


@contextmanager
def _input_of(module: nn.Module, put: Callable[[Tensor], None]) -> Iterator[None]:
    handle = module.register_forward_pre_hook(lambda _, args: put(args[0]))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _output_of(module: nn.Module, put: Callable[[Tensor], None]) -> Iterator[None]:
    handle = module.register_forward_hook(lambda _, __, output: put(output))
    try:
        yield
    finally:
        handle.remove()
