"""Example inputs of the right kind and size for any model that hfprune supports."""

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from hfprune.errors import UnsupportedArchitectureError
from hfprune.structure.batches import Batch, on_device
from hfprune.structure.devices import input_device
from hfprune.structure.wrapping import argument_names, inner

#: Config fields with a number of positions; the second ones are those of a decoder of its own.
_POSITIONS = ("max_position_embeddings", "max_encoder_position_embeddings")
_POSITIONS_OF_DECODER = ("max_target_positions", "max_decoder_position_embeddings")
#: The longest text on which a model without a number of positions is run.
_MOST_TOKENS = 1_000_000


def example_inputs(model: PreTrainedModel, ids: Tensor) -> Batch:
    """A batch for a model of any kind, without padding.

    Args:
        model: The model.
        ids: `(samples, tokens)` token ids. A model of pictures or speech gets as many samples of seeded noise instead.
            If the length of a sound is free, it is so long that the model makes `tokens` frames of it.

    Returns:
        Arguments of the model, on the device where it takes its inputs.

    Raises:
        UnsupportedArchitectureError: The model takes neither texts, pictures nor speech.

    Examples:
        >>> from transformers import BertConfig, BertModel
        >>> sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 32}
        >>> batch = example_inputs(BertModel(BertConfig(num_hidden_layers=1, **sizes)), torch.tensor([[5, 6, 7]]))
        >>> batch["input_ids"].tolist(), batch["attention_mask"].tolist()
        ([[5, 6, 7]], [[1, 1, 1]])
    """
    model = inner(model)
    device = input_device(model)
    name = model.main_input_name
    if name == "input_ids":
        return on_device(_text(model, ids), device)
    samples, tokens = ids.shape
    shape = _shape_of_sample(model.config, name, tokens)
    if shape is None:
        raise UnsupportedArchitectureError(
            f"{type(model).__name__} takes {name!r}, and hfprune makes example inputs for texts, pictures and speech "
            "only. Its size, latency and probe cannot be had; scoring with your data can."
        )
    noise = torch.randn(samples, *shape, dtype=torch.float32, device="cpu", generator=torch.Generator().manual_seed(0))
    batch = {name: noise.to(device, model.dtype)}
    if has_decoder(model):
        batch["decoder_input_ids"] = ids.to(device)
    return batch


def _shape_of_sample(config: PretrainedConfig, name: str, tokens: int) -> tuple[int, ...] | None:
    """The shape of one picture or sound.

    Args:
        config: The config of the model.
        name: The argument of the model that takes it.
        tokens: How many tokens the model shall make of it, if its length is free.

    Returns:
        The shape; None for an argument that takes something else.
    """
    if name == "pixel_values":
        return _shape_of_picture(config)
    if name == "input_features" and hasattr(config, "num_mel_bins"):
        # the encoder of Whisper takes spectrograms of one length only, and halves it
        return (config.num_mel_bins, 2 * config.max_source_positions)
    if name == "input_values" and hasattr(config, "conv_kernel"):
        # SEW runs its layers on every second frame, or fewer
        frames = tokens * getattr(config, "squeeze_factor", 1)
        return (_samples_in_time(config, frames),)
    if name == "input_values" and hasattr(config, "num_mel_bins"):
        # AST cuts a spectrogram of one length into patches, as if it were a picture
        return (config.max_length, config.num_mel_bins)
    return None


def _shape_of_picture(config: PretrainedConfig) -> tuple[int, ...]:
    """The shape of one picture, or of one film."""
    # a classifier made of the tower for pictures of CLIP or SigLIP has the config of both towers
    config = getattr(config, "vision_config", config)
    size = config.image_size
    if isinstance(size, int):
        size = (size, size)
    picture = (config.num_channels, *size)
    frames = getattr(config, "num_frames", None)
    if isinstance(frames, int):
        return (frames, *picture)
    return picture


def _samples_in_time(config: PretrainedConfig, frames: int) -> int:
    """The shortest sound of which a stack of convolutions makes so many frames.

    A convolution of kernel k and stride s makes n frames of (n − 1) · s + k inputs, so this goes from the last one back
    to the sound.

    Args:
        config: The config of the model, with `conv_kernel` and `conv_stride`.
        frames: How many frames the last convolution shall make.

    Returns:
        Samples in time.

    Examples:
        >>> _samples_in_time(PretrainedConfig(conv_kernel=[10, 3], conv_stride=[5, 2]), frames=4)
        50
    """
    length = frames
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        length = (length - 1) * stride + kernel
    return length


def _text(model: PreTrainedModel, ids: Tensor) -> Batch:
    """Arguments of a model of texts."""
    if "MultipleChoice" in type(model).__name__:
        # one choice for each sample
        ids = ids[:, None]
    end = getattr(model.config, "eos_token_id", None)
    if model.config.is_encoder_decoder and isinstance(end, int):
        # BART and its kin classify at the end-of-text token, and fail without one
        ids = ids.clone()
        ids[..., -1] = end
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if has_decoder(model):
        batch["decoder_input_ids"] = ids
    return batch


def has_decoder(model: PreTrainedModel) -> bool:
    """Whether a model takes inputs of a decoder. Some encoder-decoders make them on their own.

    Args:
        model: The model.

    Returns:
        Whether `decoder_input_ids` is an argument of it.
    """
    return model.config.is_encoder_decoder and "decoder_input_ids" in argument_names(model)


def longest_sequence(model: PreTrainedModel) -> int | None:
    """How many tokens the model has positions for; None if its config does not say."""
    model = inner(model)
    fields: tuple[str, ...] = _POSITIONS
    # a classifier of sounds may be the encoder of Whisper alone
    if has_decoder(model):
        fields += _POSITIONS_OF_DECODER
    config = model.config
    # a model made of two models has a config of each
    parts = [config, getattr(config, "encoder", None), getattr(config, "decoder", None)]
    said = [getattr(part, name, None) for part in parts for name in fields]
    longest = min((number for number in said if number), default=None)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            # RoBERTa numbers positions from behind the padding, so the rows up to it serve no token.
            longest = module.num_embeddings - module.padding_idx - 1
    return longest


def learned_positions(model: PreTrainedModel, *, decoder: bool = False) -> int | None:
    """How many tokens a model has rows of position embeddings for.

    Args:
        model: The model.
        decoder: Whether the tokens are those of the decoder of an encoder-decoder.

    Returns:
        The number; None where positions are computed, so that a text can be of any length.
    """
    for name, module in model.named_modules():
        leaf = name.rpartition(".")[2]
        if isinstance(module, nn.Embedding) and ("position" in leaf or leaf == "wpe"):
            longest = longest_sequence(model)
            if decoder:
                return getattr(model.config, "max_target_positions", longest)
            return longest
    return None


def check_length(model: PreTrainedModel, sequence_length: int, *, option: str = "sequence_length") -> None:
    """Refuse sequences that the model has no positions for.

    Args:
        model: The model.
        sequence_length: Tokens in a sequence.
        option: The name of the option that sets the length, for the message.

    Raises:
        ValueError: The sequence is longer than the model's positions, or than any text.
    """
    longest = longest_sequence(model)
    if longest is None and sequence_length > _MOST_TOKENS:
        raise ValueError(
            f"{option}={sequence_length} is more than {_MOST_TOKENS:,} tokens, and the model has to run on a text of "
            "that length. Set the length that it will be used with."
        )
    if longest is not None and sequence_length > longest:
        raise ValueError(
            f"{option}={sequence_length} is more than the model's {longest} positions. Set the length that it "
            "will be used with; windows and texts must not be longer either (window, max_length)."
        )
