"""Run a model one layer at a time over the calibration batches, with the hidden states of all of them kept."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfprune.structure.blocks import Block
from hfprune.structure.gates import Batch, run_without_head


class _Reached(Exception):  # noqa: N818 (no error: it ends a layer early)
    """What was wanted of a layer is there; the rest of it need not run."""


class LayerStream:
    """The hidden states of a calibration set in front of one layer of a model; `advance` moves them past it.

    Memory: tokens × hidden size for the hidden states, and what the model hands to its layers beside them (masks,
    rotary embeddings), which layers mostly share.

    Attributes:
        model: The model.

    Args:
        model: The model, which should be frozen.
        layers: Paths of the layers of one stack from the base model, in order.
        batches: At least one calibration batch.
    """

    def __init__(self, model: PreTrainedModel, layers: Sequence[str], batches: Sequence[Batch]) -> None:
        self.model = model
        self._layers = [model.base_model.get_submodule(path) for path in layers]
        self._next = 0
        self._calls: list[list[tuple[tuple[Any, ...], dict[str, Any]]]] = []  # by layer, by batch
        self._hidden: list[Tensor] = []
        self._behind: dict[int, Tensor] = {}
        self._record(batches)

    def _record(self, batches: Sequence[Batch]) -> None:
        """Run only what comes before the layers, and note what every layer is called with."""
        others: list[Any] = []  # what the first layer returns behind the hidden states, such as a position bias

        def stand_in(index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
            def note(*args: Any, **kwargs: Any) -> Any:
                hidden, rest, named = _split(args, kwargs)
                if index == 0:
                    self._hidden.append(hidden.detach())
                    output = forward(*args, **kwargs)
                    others[:] = [list(output[1:])] if isinstance(output, tuple) else [None]
                self._calls[index].append((rest, named))
                if index == len(self._layers) - 1:
                    raise _Reached
                return hidden if others[0] is None else (hidden, *others[0])

            return note

        self._calls = [[] for _ in self._layers]
        with ExitStack() as stack:
            for index, layer in enumerate(self._layers):
                stack.enter_context(_replaced_forward(layer, stand_in(index, layer.forward)))
            for batch in batches:
                with suppress(_Reached):
                    run_without_head(self.model, batch)

    def run(self, index: int) -> Tensor:
        """The hidden states of batch `index` behind the next layer."""
        args, kwargs = self._calls[self._next][index]
        output = self._layers[self._next](self._hidden[index], *args, **kwargs)
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        return hidden

    def advance(self) -> None:
        """Run the next layer over all batches; the one after it is then the next."""
        for index in range(len(self._hidden)):
            self._hidden[index] = self._behind.pop(index) if index in self._behind else self.run(index)
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
            to_the_end: Run the whole layer, so that `advance` need not do so again.

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
                    raise _Reached

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
            except _Reached:
                behind = None
        if to_the_end and behind is not None:
            self._behind[index] = behind
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
def _replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Another `forward` for one module; one that was set on the instance before (by accelerate's hooks) comes back."""
    own = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if own is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = own


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
