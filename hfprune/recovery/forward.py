"""How recovery calls the student and the teacher: with which arguments, and with which outputs kept."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from hfprune.structure.batches import Batch
from hfprune.structure.examples import has_decoder
from hfprune.structure.running import ForwardEnded, without_cache
from hfprune.structure.targets import check_target_texts


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

    Raises:
        CalibrationError: The model writes texts, and the labels are no texts.
    """
    batch = dict(batch)
    check_target_texts(model, batch)
    labels = batch.get("labels")
    has_them = "decoder_input_ids" in batch or "decoder_inputs_embeds" in batch
    if has_them or not has_decoder(model) or not isinstance(labels, Tensor):
        return batch
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        batch["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels=labels)
        return batch
    # labels of samples, or of several classes, are no tokens
    if labels.ndim == 2 and not labels.is_floating_point():
        ids = _decoder_inputs_of_forward(model, batch)
        if ids is not None:
            batch["decoder_input_ids"] = ids
    return batch


def _decoder_inputs_of_forward(model: PreTrainedModel, batch: Batch) -> Tensor | None:
    """The tokens that a model gives its decoder where it is called with labels.

    Not every model has a method for that, and their names differ: Whisper shifts the labels in the middle of its
    forward pass. So the model is called, with zeros for what the encoder would give, and stopped before its decoder.

    Args:
        model: The model.
        batch: The batch, with labels.

    Returns:
        `(samples, tokens)` ids; None if the decoder gets no tokens.
    """
    given: dict[str, Any] = {}

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given.update(kwargs)
        if args:
            given["input_ids"] = args[0]
        raise ForwardEnded

    labels = batch["labels"]
    config = getattr(model.config, "encoder", model.config)
    nothing = torch.zeros(len(labels), 1, config.hidden_size, dtype=model.dtype, device=labels.device)
    # the mask is one of the tokens that the encoder would read
    inputs = {name: value for name, value in batch.items() if name not in ("attention_mask", "encoder_outputs")}
    hook = model.get_decoder().register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with torch.no_grad(), suppress(ForwardEnded):
            model(**inputs, encoder_outputs=BaseModelOutput(last_hidden_state=nothing))
    finally:
        hook.remove()
    ids: Tensor | None = given.get("input_ids")
    return ids


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
