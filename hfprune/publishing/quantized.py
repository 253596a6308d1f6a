"""Checkpoints with quantised weights: by which packages, in which files, and what shapes the files stand for.

The lists are closed. transformers makes objects of the classes that a config names, so a stranger's config may name no
others than those that `hfprune.quantize` writes. No tensor is read but the sizes that 4-bit weights have beside them.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safetensors import safe_open
from transformers import PreTrainedModel

from hfprune.errors import CheckpointError
from hfprune.publishing.weights import Shapes, stored_shapes, weight_files
from hfprune.structure.json_text import read_json

#: What `quant_method` in config.json may be.
TORCHAO = "torchao"
BITSANDBYTES = "bitsandbytes"
#: Classes of torchao that a config, or the head of a weight file, may name.
_CLASSES = frozenset(
    {
        "Int8DynamicActivationInt8WeightConfig",
        "Int8WeightOnlyConfig",
        "Int8Tensor",
        "QuantizeTensorToInt8Kwargs",
        "MappingType",
        "PerRow",
        "Tensor",
        "torch.dtype",
    }
)
#: The settings of each package, by name.
_SETTINGS = MappingProxyType(
    {
        TORCHAO: frozenset(
            {
                "quant_method",
                "quant_type",
                "modules_to_not_convert",
                "include_input_output_embeddings",
                "untie_embedding_weights",
            }
        ),
        BITSANDBYTES: frozenset(
            {
                "quant_method",
                "load_in_4bit",
                "load_in_8bit",
                "_load_in_4bit",
                "_load_in_8bit",
                "bnb_4bit_compute_dtype",
                "bnb_4bit_quant_storage",
                "bnb_4bit_quant_type",
                "bnb_4bit_use_double_quant",
                "llm_int8_enable_fp32_cpu_offload",
                "llm_int8_has_fp16_weight",
                "llm_int8_skip_modules",
                "llm_int8_threshold",
            }
        ),
    }
)
#: Texts that settings of bitsandbytes may be.
_WORDS = frozenset({BITSANDBYTES, "float32", "float16", "bfloat16", "uint8", "fp4", "nf4"})
#: The end of a tensor's name that stands for the values of `weight`, and of those beside it, as torchao writes them.
_VALUES = "._weight_qdata"
_BESIDE_VALUES = ("._weight_scale", "._weight_zero_point")
#: The same of bitsandbytes in 8 bits, whose values are called `weight`.
_SCALE = ".SCB"
_FORMAT = ".weight_format"
#: And in 4 bits: the scales of blocks, the 16 values that there are, and a text with shape and size of blocks.
_STATES = (".weight.quant_state.bitsandbytes__nf4", ".weight.quant_state.bitsandbytes__fp4")
#: The most bytes of that text.
_LONGEST_STATE = 10_000


def quantizer_of(model: PreTrainedModel) -> str | None:
    """The package that quantised a model's weights, as transformers calls it; None if they are not quantised.

    Args:
        model: The model.

    Returns:
        Such as `torchao`; `unknown` for a quantiser without a config.
    """
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None:
        return "unknown" if getattr(model, "is_quantized", False) else None
    method = getattr(getattr(quantizer, "quantization_config", None), "quant_method", "unknown")
    return str(getattr(method, "value", method))


def is_saveable(model: PreTrainedModel) -> bool:
    """Whether the weights of a quantised model can become a checkpoint that is checked before it is loaded.

    Args:
        model: A quantised model.

    Returns:
        Whether config and weights are those of the closed lists.
    """
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None or quantizer_of(model) not in _SETTINGS:
        return False
    settings = json.loads(json.dumps(quantizer.quantization_config.to_dict(), default=str))
    return not list(setting_problems_of({"quantization_config": settings}))


def check_not_packed(model: PreTrainedModel) -> None:
    """Refuse a 4-bit model whose weights bitsandbytes has rearranged for the processor, as they cannot be put back.

    It does so when the model first runs on a CPU with bfloat16 instructions. Its way back leaves the scales of blocks
    as they are, in another order and rounded.

    Args:
        model: A quantised model.

    Raises:
        CheckpointError: It ran already.
    """
    for name, parameter in model.named_parameters():
        if getattr(getattr(parameter, "quant_state", None), "packing_format_for_cpu", False):
            raise CheckpointError(
                f"{name} was rearranged for this processor when the 4-bit model ran, and bitsandbytes cannot undo that "
                "without loss. Save the model before it runs: load it again, and save it at once."
            )


def setting_problems_of(config: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the quantisation that a config asks for, before transformers reads it.

    Args:
        config: The content of config.json.

    Yields:
        One line for each problem.
    """
    given = config.get("quantization_config")
    if given in (None, {}):
        return
    method = given.get("quant_method") if isinstance(given, dict) else given
    if not isinstance(method, str) or method not in _SETTINGS:
        yield (
            f"config.json says that the weights are quantised by {method!r:.50}; those of a checkpoint of hfprune may "
            f"be so by {' or '.join(_SETTINGS)}. Quantise the checkpoint from before with hfprune.quantize"
        )
        return
    foreign = sorted(set(given) - _SETTINGS[method])
    if foreign:
        yield f"config.json sets {foreign[0]!r:.50} for {method}, which hfprune does not write. Remove it"
    elif method == TORCHAO:
        yield from _foreign_classes(given, "config.json")
    else:
        yield from _foreign_words(given)


def _foreign_classes(values: Any, where: str) -> Iterator[str]:
    """Names of classes that are not in the list, at any depth."""
    if isinstance(values, dict):
        name = values.get("_type", "Tensor")
        if name not in _CLASSES:
            yield f"{where} names the class {name!r:.100}, of which hfprune makes no quantised weights. It was not made"
        for value in values.values():
            yield from _foreign_classes(value, where)
    elif isinstance(values, list):
        for value in values:
            yield from _foreign_classes(value, where)


def _foreign_words(settings: Mapping[str, Any]) -> Iterator[str]:
    """Texts among the settings of bitsandbytes that it does not know."""
    for name, value in settings.items():
        if isinstance(value, str) and value not in _WORDS:
            yield f"config.json sets {name} to {value!r:.50}, which is none of {', '.join(sorted(_WORDS))}"


def plain_shapes(folder: Path, config: Mapping[str, Any]) -> Shapes:
    """The shapes that weights have when the model computes with them, from the headers of the weight files.

    Args:
        folder: A checkpoint's folder.
        config: The content of its config.json, which `setting_problems_of` took.

    Returns:
        Shapes by the name of the tensor in the model.

    Raises:
        CheckpointError: There are no weights, a file is damaged, or parts of a quantised weight do not fit together.
    """
    stored = stored_shapes(folder)
    given = config.get("quantization_config")
    if not given:
        return stored
    if given["quant_method"] == TORCHAO:
        _check_heads(folder)
        return _of_torchao(stored)
    if given.get("load_in_4bit"):
        return _of_four_bits(stored, folder)
    return _of_eight_bits(stored)


def _check_heads(folder: Path) -> None:
    """Refuse weight files whose heads name other classes than hfprune writes: torchao makes objects of them."""
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            head = file.metadata() or {}
        for name, text in head.items():
            # one entry lists the names of all tensors, and one says that the tensors are PyTorch's
            if name in ("format", "tensor_names"):
                continue
            try:
                values = read_json(text)
            except ValueError as error:
                raise CheckpointError(f"the head of {path.name} says nothing readable of {name!r:.100}") from error
            for problem in _foreign_classes(values, f"the head of {path.name}"):
                raise CheckpointError(problem)


def _of_torchao(stored: Shapes) -> Shapes:
    """int8 values with a scale and a zero for every row."""
    shapes: Shapes = {}
    for name, shape in stored.items():
        if name.endswith(_VALUES):
            shapes[f"{name.removesuffix(_VALUES)}.weight"] = shape
            continue
        ending = next((ending for ending in _BESIDE_VALUES if name.endswith(ending)), None)
        if ending is None:
            shapes[name] = shape
            continue
        values = stored.get(name.removesuffix(ending) + _VALUES)
        _check_part(name, shape, None if values is None else (values[0], 1))
    return shapes


def _of_eight_bits(stored: Shapes) -> Shapes:
    """int8 values with a scale for every row, and a number that says how they are arranged."""
    shapes: Shapes = {}
    for name, shape in stored.items():
        if name.endswith(_SCALE):
            weight = stored.get(f"{name.removesuffix(_SCALE)}.weight")
            _check_part(name, shape, None if weight is None else (weight[0],))
        elif name.endswith(_FORMAT):
            _check_part(name, shape, ())
        else:
            shapes[name] = shape
    return shapes


def _of_four_bits(stored: Shapes, folder: Path) -> Shapes:
    """Two values in a byte, in one row, with a scale for every block of them."""
    shapes: Shapes = {}
    states = _states(stored, folder)
    for name, shape in stored.items():
        if name.endswith(_STATES):
            continue
        part = name if name.endswith(".weight") else name.rpartition(".")[0]
        state = states.get(part)
        if state is None:
            shapes[name] = shape
            continue
        numbers = state["shape"][0] * state["shape"][1]
        if name == part:
            _check_part(name, shape, (-(-numbers // 2), 1))
            shapes[name] = tuple(state["shape"])
        elif name == f"{part}.absmax":
            _check_part(name, shape, (-(-numbers // state["blocksize"]),))
        else:
            _check_part(name, shape, (16,) if name == f"{part}.quant_map" else None)
    return shapes


def _states(stored: Shapes, folder: Path) -> dict[str, dict[str, Any]]:
    """By the name of a 4-bit weight, its shape and the size of its blocks."""
    states: dict[str, dict[str, Any]] = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                ending = next((ending for ending in _STATES if name.endswith(ending)), None)
                if ending is None or name not in stored:
                    continue
                if len(stored[name]) != 1 or stored[name][0] > _LONGEST_STATE:
                    raise CheckpointError(f"{name} is {stored[name]} in the weights, and is no description of a weight")
                text = bytes(file.get_tensor(name).tolist()).decode(errors="replace")
                states[f"{name.removesuffix(ending)}.weight"] = _state_in(text, name)
    return states


def _state_in(text: str, name: str) -> dict[str, Any]:
    """The description of a 4-bit weight, checked: bitsandbytes reads and writes memory by its numbers."""
    try:
        state = read_json(text)
        sizes = [*state["shape"], state["blocksize"]]
        is_sound = len(sizes) == 3 and all(type(size) is int and size > 0 for size in sizes)
        is_sound = is_sound and set(state) == {"quant_type", "blocksize", "dtype", "shape"} and state["dtype"] in _WORDS
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{name} in the weights is no description of a 4-bit weight: {error!r:.100}") from error
    if not is_sound:
        raise CheckpointError(f"{name} in the weights describes a weight as hfprune does not write it: {text:.150}")
    return dict(state)


def _check_part(name: str, shape: tuple[int, ...], expected: tuple[int, ...] | None) -> None:
    """Refuse a part of a quantised weight that belongs to none, or is of another size."""
    if expected is None:
        raise CheckpointError(f"{name} is in the weights, and no quantised weight that it belongs to")
    if shape != expected:
        raise CheckpointError(f"{name} is {shape} in the weights, where its quantised weight needs {expected}")
