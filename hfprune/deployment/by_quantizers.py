"""The methods of torchao and bitsandbytes, through transformers' own settings for them."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel, TorchAoConfig
from transformers.pytorch_utils import Conv1D

from hfprune.deployment.methods import Method, register_method
from hfprune.deployment.targets import Tolerance
from hfprune.structure.architectures import base_model_type

#: As for int8 files of other runtimes.
_EIGHT_BITS = Tolerance(typical=0.25, agreement=0.8)
#: As for 4-bit files of llama.cpp: of a small language model they change many choices between near words. What reads
#: weights wrongly is further off.
_FOUR_BITS = Tolerance(typical=0.6, agreement=0.2)
#: Weights of a row that bitsandbytes quantises together in 4 bits, and rows that its kernel for CPUs takes at once.
_BLOCK = 64
_ROWS = 32
#: How many names of modules a message has.
_NAMED = 3


def _refusal(model: PreTrainedModel) -> str | None:
    """Why no method here takes a model."""
    if model.config.is_encoder_decoder:
        return (
            f"{type(model).__name__} is an encoder-decoder, and hfprune compares encoders, and decoders alone. "
            "Quantise it while it loads: hfprune.load(folder, quantization_config=...)"
        )
    if any(isinstance(module, Conv1D) for module in model.modules()):
        return (
            f"the projections of a {base_model_type(model.config.model_type)} are Conv1D layers, which torchao leaves "
            "as they are and bitsandbytes turns round. Export it: hfprune export MODEL --to onnx --quantize int8"
        )
    if not any(True for _ in _linears(model)):
        return f"{type(model).__name__} has no Linear layer with weights of its own, so nothing would be quantised"
    return None


def _linears(model: PreTrainedModel) -> Iterator[tuple[str, nn.Linear]]:
    """The Linear layers whose weights are quantised: not the output matrix of a language model."""
    output = model.get_output_embeddings()
    for name, module in model.named_modules():
        if type(module) is nn.Linear and module is not output:
            yield name, module


def _refusal_of_four_bits(model: PreTrainedModel) -> str | None:
    """Why a model cannot have 4-bit weights of bitsandbytes."""
    reason = _refusal(model)
    if reason is not None:
        return reason
    unfit = [name for name in _unfit(model) if not _is_of_head(name)]
    if not unfit:
        return None
    sizes = []
    for name in unfit[:_NAMED]:
        module = model.get_submodule(name)
        sizes.append(f"{name} ({module.in_features} to {module.out_features})")
    more = f" and {len(unfit) - _NAMED} more" if len(unfit) > _NAMED else ""
    return (
        f"bitsandbytes quantises {_BLOCK} weights of a row together, and on a CPU it gives wrong numbers, or none, for "
        f"inputs in other multiples or outputs in multiples of other than {_ROWS}: {', '.join(sizes)}{more}. For "
        'feed-forward layers prune with PruningConfig(target="bitsandbytes-4bit"); attention fits if heads times their '
        f"width is a multiple of {_BLOCK}. int8 takes every width"
    )


def _unfit(model: PreTrainedModel) -> list[str]:
    """The Linear layers whose sizes the 4-bit kernel does not take."""
    names = []
    for name, module in _linears(model):
        if module.in_features % _BLOCK or module.out_features % _ROWS:
            names.append(name)
    return names


def _is_of_head(name: str) -> bool:
    """Whether a module is of the head of a model, or of a pooler, and not of its layers."""
    return not any(part.isdigit() for part in name.split("."))


def _unfit_of_head(model: PreTrainedModel) -> Sequence[str]:
    """What stays as it is in 4 bits: output matrices, and heads of a few classes."""
    left = [name for name in _unfit(model) if _is_of_head(name)]
    output = model.get_output_embeddings()
    # a list takes the place of what transformers would leave by itself
    left += [name for name, module in model.named_modules() if module is output]
    return sorted(left)


def _nothing(model: PreTrainedModel) -> Sequence[str]:  # noqa: ARG001 (the signature of `Method.left`)
    return []


def _int8(left: Sequence[str]) -> Any:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    return TorchAoConfig(Int8DynamicActivationInt8WeightConfig(), modules_to_not_convert=list(left) or None)


def _int8_weights(left: Sequence[str]) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=list(left) or None)


def _eight_bits(left: Sequence[str]) -> Any:
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(left) or None)


def _four_bits(left: Sequence[str]) -> Any:
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=list(left) or None)


register_method(
    Method(
        name="int8",
        does="int8 weights; activations are quantised as the model runs (torchao)",
        package="torchao",
        config=_int8,
        tolerance=_EIGHT_BITS,
        refusal=_refusal,
        left=_nothing,
    )
)
register_method(
    Method(
        name="int8-weights",
        does="int8 weights; activations stay as they are (torchao)",
        package="torchao",
        config=_int8_weights,
        tolerance=_EIGHT_BITS,
        refusal=_refusal,
        left=_nothing,
    )
)
register_method(
    Method(
        name="bitsandbytes-8bit",
        does="LLM.int8: int8 weights and activations, but for columns with outliers (bitsandbytes)",
        package="bitsandbytes",
        config=_eight_bits,
        tolerance=_EIGHT_BITS,
        refusal=_refusal,
        left=_nothing,
    )
)
register_method(
    Method(
        name="bitsandbytes-4bit",
        does="NF4: 4-bit weights, 64 together (bitsandbytes)",
        package="bitsandbytes",
        config=_four_bits,
        tolerance=_FOUR_BITS,
        refusal=_refusal_of_four_bits,
        left=_unfit_of_head,
    )
)
