"""Write a decoder and its tokenizer into a GGUF file."""

import copy
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfprune.deployment.gguf.checks import refusal
from hfprune.deployment.gguf.layout import Layout, layout_of, own_tensors
from hfprune.deployment.gguf.tokenizer import Vocabulary, vocabulary_of
from hfprune.deployment.targets import WriteOptions
from hfprune.errors import ExportError

logger = logging.getLogger(__name__)

#: The name of the file.
FILE = "model.gguf"
#: By name what a quantisation does: the help of the command line.
QUANTIZATIONS = {
    "f16": "weights in float16",
    "bf16": "weights in bfloat16",
    "q8_0": "weights in 8 bits, 32 of a row with one scale",
    "q4_0": "weights in 4 bits, 32 of a row with one scale; embeddings in 8",
    "q4_1": "weights in 4 bits, 32 of a row with a scale and an offset; embeddings in 8",
}
#: Weights of one row that share a scale.
BLOCK = 32
#: The types of weights as they are.
_PLAIN = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
#: What general.file_type says of a file, by the type of most of its weights.
_FILE_TYPES = {
    "F32": "ALL_F32",
    "F16": "MOSTLY_F16",
    "BF16": "MOSTLY_BF16",
    "Q8_0": "MOSTLY_Q8_0",
    "Q4_0": "MOSTLY_Q4_0",
    "Q4_1": "MOSTLY_Q4_1",
}
#: Rows that are looked up, or that give the logits: an error there is in every token.
_SENSITIVE = ("token_embd.weight", "output.weight")


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        architecture: The name of the graph in llama.cpp.
        tensor_bytes: Bytes of all tensors.
        wide_bytes: Bytes of those matrices that were to be quantised and are in float16, as their rows are no multiple
            of 32 weights.
        wide: The names of these matrices.
    """

    architecture: str
    tensor_bytes: int
    wide_bytes: int
    wide: tuple[str, ...]


def write(model: PreTrainedModel, folder: Path, options: WriteOptions) -> None:
    """Write a model and its tokenizer into `model.gguf` in a folder.

    Args:
        model: A causal language model.
        folder: The folder.
        options: The quantisation, the tokenizer and the name of the model.

    Raises:
        ExportError: llama.cpp cannot compute the model, or cannot say its tokenizer.
    """
    written = write_file(model, folder / FILE, options)
    if written.wide:
        logger.warning(
            "%d matrices (%.1f MB of %.1f) stay in float16 instead of %s: their rows are no multiple of %d weights. "
            'Prune with PruningConfig(target="gguf-%s") for widths that can be quantised.',
            len(written.wide),
            written.wide_bytes / 1e6,
            written.tensor_bytes / 1e6,
            options.quantization,
            BLOCK,
            options.quantization,
        )


def write_file(model: PreTrainedModel, path: Path, options: WriteOptions) -> Written:
    """Write a model and its tokenizer into a file.

    Args:
        model: A causal language model.
        path: The file.
        options: The quantisation, the tokenizer and the name of the model.

    Returns:
        What was written.

    Raises:
        ExportError: llama.cpp cannot compute the model, or cannot say its tokenizer.
    """
    import gguf

    reason = refusal(model)
    if reason is not None:
        raise ExportError(f"{reason}.")
    if options.tokenizer is None:
        raise ExportError("a GGUF file holds the tokenizer, and none was given. Give the tokenizer of the model.")
    layout = layout_of(model)
    vocabulary = vocabulary_of(options.tokenizer, rows=len(layout.outside["token_embd.weight"]))
    main_type = _PLAIN[model.dtype] if options.quantization is None else options.quantization.upper()

    writer = gguf.GGUFWriter(path, layout.architecture)
    _add_sizes(writer, layout, rows=len(vocabulary.tokens))
    writer.add_name(options.name or type(model).__name__)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[main_type]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_vocabulary(writer, vocabulary)
    written = _add_tensors(writer, layout, main_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return written


def with_weights_of_file(model: PreTrainedModel, quantization: str) -> PreTrainedModel:
    """A copy of a model with the weights that its file holds: quantised, and made float32 again.

    The rows of a matrix are quantised one by one, so their order in the file does not matter.

    Args:
        model: The model, in float32.
        quantization: The quantisation of the file.

    Returns:
        The copy, by which PyTorch computes what llama.cpp shall compute.
    """
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    again = copy.deepcopy(model)
    with torch.no_grad():
        for name, tensor in own_tensors(again):
            kind = GGMLQuantizationType[_type_of(name, tensor, quantization.upper())]
            values = dequantize(quantize(tensor.contiguous().numpy(), kind), kind)
            tensor.copy_(torch.from_numpy(values).reshape(tensor.shape))
    return again


def _add_sizes(writer: Any, layout: Layout, *, rows: int) -> None:
    """Write the sizes of a model, by layer where llama.cpp reads them by layer."""
    writer.add_block_count(len(layout.layers))
    writer.add_context_length(layout.context)
    writer.add_embedding_length(layout.hidden)
    writer.add_vocab_size(rows)
    writer.add_layer_norm_rms_eps(layout.epsilon)
    writer.add_rope_freq_base(layout.rope_base)
    # llama.cpp would divide the hidden size by the number of heads, which pruning changes
    writer.add_key_length(layout.head_width)
    writer.add_value_length(layout.head_width)
    writer.add_rope_dimension_count(layout.head_width)
    heads = [layer.heads for layer in layout.layers]
    groups = [layer.groups for layer in layout.layers]
    neurons = [layer.neurons for layer in layout.layers]
    writer.add_head_count(_one_or_all(heads))
    writer.add_head_count_kv(_one_or_all(groups))
    writer.add_feed_forward_length(_one_or_all(neurons))


def _one_or_all(sizes: list[int]) -> int | list[int]:
    """One size if all layers have it: files of stock models have a number there, not a list."""
    if len(set(sizes)) == 1:
        return sizes[0]
    return sizes


def _add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    """Write the tokenizer."""
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types(list(vocabulary.types))
    if vocabulary.scores:
        writer.add_token_scores(list(vocabulary.scores))
    else:
        writer.add_token_merges(list(vocabulary.merges))
    for name, number in vocabulary.special.items():
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(vocabulary.adds_bos)
    writer.add_add_eos_token(vocabulary.adds_eos)
    writer.add_add_space_prefix(vocabulary.adds_space)
    templates = [{"name": name, "template": text} for name, text in vocabulary.chat_templates.items()]
    if templates:
        writer.add_chat_template(templates)


def _add_tensors(writer: Any, layout: Layout, main_type: str) -> Written:
    """Quantise and write the tensors."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    total = wide_bytes = 0
    wide = []
    for name, tensor in layout.tensors():
        kind = _type_of(name, tensor, main_type)
        values = tensor.detach().float().cpu().contiguous()
        if kind == "F16" and values.abs().max() > torch.finfo(torch.float16).max:
            raise ExportError(f"{name} has weights that float16 cannot hold. Export with quantize='bf16', or none.")
        data = quantize(values.numpy(), GGMLQuantizationType[kind])
        writer.add_tensor(name, data, raw_dtype=GGMLQuantizationType[kind])
        total += data.nbytes
        if main_type.startswith("Q") and tensor.ndim > 1 and kind == "F16":
            wide.append(name)
            wide_bytes += data.nbytes
    return Written(layout.architecture, total, wide_bytes, tuple(wide))


def _type_of(name: str, tensor: Tensor, main_type: str) -> str:
    """The type of a tensor in the file."""
    # norms, biases and rotary factors: llama.cpp wants them in float32
    if tensor.ndim == 1:
        return "F32"
    if not main_type.startswith("Q"):
        return main_type
    if tensor.shape[-1] % BLOCK:
        return "F16"
    if name in _SENSITIVE:
        return "Q8_0"
    return main_type
