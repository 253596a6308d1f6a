"""Inputs of the right kind and size for any model that the table knows."""

import inspect

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfprune.errors import UnsupportedArchitectureError
from hfprune.structure.batches import Batch
from hfprune.structure.devices import input_device


def example_inputs(model: PreTrainedModel, ids: Tensor) -> Batch:
    """A batch for a model of any kind, without padding.

    Args:
        model: The model.
        ids: `(samples, tokens)` token ids. A model of pictures or speech gets as many samples of seeded noise instead;
            of speech so long that it makes as many tokens, if its length is free.

    Returns:
        Arguments of the model, where it wants them.

    Raises:
        UnsupportedArchitectureError: The model wants something else.
    """
    device, samples = input_device(model), len(ids)
    name = model.main_input_name
    if name == "input_ids":
        return {key: value.to(device) for key, value in _text(model, ids).items()}
    config = model.config
    if name == "pixel_values":
        side = config.image_size
        shape = (config.num_channels, *((side, side) if isinstance(side, int) else side))
    elif name == "input_features":
        shape = (config.num_mel_bins, 2 * config.max_source_positions)
    elif name == "input_values" and hasattr(config, "conv_kernel"):
        length = ids.shape[-1]
        for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
            length = (length - 1) * stride + kernel
        shape = (length,)
    else:
        raise UnsupportedArchitectureError(
            f"{type(model).__name__} takes {name!r}, and hfprune makes example inputs for texts, pictures and speech "
            "only. Its size, latency and probe cannot be had; scoring with your data can."
        )
    noise = torch.randn(samples, *shape, generator=torch.Generator().manual_seed(0))
    found = {name: noise.to(device, model.dtype)}
    return found | ({"decoder_input_ids": ids.to(device)} if _has_decoder(model) else {})


def _text(model: PreTrainedModel, ids: Tensor) -> Batch:
    if "MultipleChoice" in type(model).__name__:
        ids = ids[:, None]
    if model.config.is_encoder_decoder and isinstance(model.config.eos_token_id, int):
        ids = ids.clone()
        ids[..., -1] = model.config.eos_token_id  # where some classify
    decoder = {"decoder_input_ids": ids} if _has_decoder(model) else {}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **decoder}


def _has_decoder(model: PreTrainedModel) -> bool:
    return model.config.is_encoder_decoder and "decoder_input_ids" in inspect.signature(model.forward).parameters
