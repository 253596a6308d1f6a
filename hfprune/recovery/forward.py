"""How recovery calls the student and the teacher: with which arguments, and with which outputs kept."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from hfprune.structure.batches import Batch
from hfprune.structure.running import without_cache


def call_arguments(model: PreTrainedModel, batch: Batch) -> dict[str, Any]:
    """The keyword arguments to call a model with for a batch.

    They ask for no key/value cache, and sounds, pictures and embeddings are in the model's present dtype.

    Args:
        model: The model.
        batch: The batch.

    Returns:
        The keyword arguments.
    """
    arguments = without_cache(model, batch)
    converted = {}
    for name, value in arguments.items():
        # labels of a regression stay as exact as they are
        if isinstance(value, Tensor) and value.is_floating_point() and name != "labels":
            converted[name] = value.to(model.dtype)
    return arguments | converted


def with_decoder_inputs(model: PreTrainedModel, batch: Mapping[str, Any]) -> Batch:
    """A copy of a batch with the inputs of the decoder, where the model would make them from the labels.

    The teacher is called without labels, so it could not make them itself.

    Args:
        model: The model.
        batch: The batch.

    Returns:
        The copy; with nothing added for a model without a decoder, and where the decoder's inputs are there.
    """
    batch = dict(batch)
    labels = batch.get("labels")
    makes_them = model.config.is_encoder_decoder and hasattr(model, "prepare_decoder_input_ids_from_labels")
    has_them = "decoder_input_ids" in batch or "decoder_inputs_embeds" in batch
    if makes_them and not has_them and isinstance(labels, Tensor):
        batch["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels=labels)
    return batch


@contextmanager
def outputs_of(model: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect what modules put out, inside the `with`.

    Args:
        model: The model.
        paths: Of modules, relative to `model`.

    Yields:
        By path, what the module put out last.

    Raises:
        ValueError: A model has no such module.
    """
    outputs: dict[str, Tensor] = {}

    def keep(path: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(_: nn.Module, __: object, output: Tensor) -> None:
            outputs[path] = output

        return hook

    with ExitStack() as hooks:
        for path in paths:
            try:
                module = model.get_submodule(path)
            except AttributeError:
                raise ValueError(
                    f"{type(model).__name__} has no {path!r}, whose output is to be compared. Set "
                    "attention_outputs_weight=0, or use the dense model that was pruned as teacher."
                ) from None
            hooks.callback(module.register_forward_hook(keep(path)).remove)
        yield outputs
