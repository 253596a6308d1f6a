"""The targets that transformers exports to: ONNX, OpenVINO, ExecuTorch and torch.export.

An encoder, or a model with a head of its own, becomes one graph: arguments in, outputs out. A causal language model
becomes one graph that also takes and gives the key/value cache. With an empty cache it reads a text at once (prefill),
with a filled one it reads the next token (decode); one graph for both needs half of the bytes of two.
"""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_unflatten, treespec_loads
from transformers import PreTrainedModel

from hfprune.deployment.decoders_of_executorch import DECODER_FILE, DecoderRunner, write_decoder
from hfprune.deployment.examples import padded, positions_of, takes_texts, texts_of
from hfprune.deployment.proof import logits_of
from hfprune.deployment.quiet import quiet
from hfprune.deployment.targets import (
    EXACT,
    OpenOptions,
    Runner,
    Target,
    Tolerance,
    WriteOptions,
    register_target,
)
from hfprune.errors import ExportError
from hfprune.structure.json_text import read_json
from hfprune.structure.predictions import predicts_next_token
from hfprune.structure.wrapping import argument_names

#: Says what the cache of every layer holds, which a graph alone does not say in every format.
CACHE_FILE = "cache.json"
#: int8 changes every output a little, and few of them much; a graph that is wrong changes most of them.
_EIGHT_BITS = Tolerance(typical=0.25, agreement=0.8)


@dataclass(frozen=True, kw_only=True)
class _Backend:
    """What differs between the targets of this file.

    Attributes:
        exporter: The name of the exporter's class in `transformers.exporters`.
        config: The name of the class of its options.
        options: Further options.
        quantizer: Makes the quantiser for a quantisation.
        opening: What the runtime is opened with, for a number of threads.
    """

    exporter: str
    config: str
    options: Mapping[str, Any]
    quantizer: Callable[[WriteOptions], Any]
    opening: Callable[[int | None], dict[str, Any]]


def _write(backend: _Backend, model: PreTrainedModel, folder: Path, options: WriteOptions) -> None:
    """Write a model into a folder, by one of transformers' exporters."""
    # not at the top: the exporters are newer than the oldest transformers that hfprune works with
    import transformers.exporters as exporters

    with quiet():
        arguments = _traced_arguments(model, options)
        quantizer = backend.quantizer(options) if options.quantization else None
        shapes = _free_shapes(arguments)
        config = getattr(exporters, backend.config)(
            dynamic=True, dynamic_shapes=shapes, quantizer=quantizer, **backend.options
        )
        exporter = getattr(exporters, backend.exporter)()
        # the exporter takes output flags out of the arguments that it gets
        exported = exporter.export(model, dict(arguments), config)
        # the folder has a config already, without the table of shapes, which only PyTorch needs
        exported.config = None
        exported.save_pretrained(folder)
    if "past_key_values" in arguments:
        _write_cache(arguments["past_key_values"], folder)


def _traced_arguments(model: PreTrainedModel, options: WriteOptions) -> dict[str, Any]:
    """The arguments of the graph, with values to trace it with."""
    if not predicts_next_token(model):
        arguments: dict[str, Any] = dict(options.batch)
        if "use_cache" in argument_names(model):
            arguments["use_cache"] = False
        return arguments
    from transformers.exporters.utils import decompose_for_generation

    # generation reads padding in front; with padding the mask becomes an argument of the graph
    batch = padded(model, options.tokenizer, texts_of(model, options.tokenizer)[:3], left=True)
    batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    # two tokens in one step, as a step of one token would become a graph for one token only
    stages = decompose_for_generation(model, batch, multi_token_decode=True)
    return dict(stages["decode"][1])


def _free_shapes(arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    """Which sizes of the arguments are free: samples and tokens. None: torch looks at every size of a cache."""
    free = torch.export.Dim.AUTO
    if "past_key_values" in arguments:
        return None
    shapes: dict[str, Any] = {}
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            continue
        # the last sizes of a picture are fixed, and so is all of a sound but its length
        shapes[name] = {0: free} if value.ndim > 2 else dict.fromkeys(range(value.ndim), free)
    return shapes


def _write_cache(cache: Any, folder: Path) -> None:
    """Write the sizes of the cache of every layer."""
    layers = []
    for layer in cache.layers:
        layers.append({"heads": layer.keys.shape[1], "key": layer.keys.shape[3], "value": layer.values.shape[3]})
    text = json.dumps({"layers": layers}, indent=1) + "\n"
    (folder / CACHE_FILE).write_text(text, encoding="utf-8")


def _open(backend: _Backend, folder: Path, options: OpenOptions) -> Runner:
    """Open what `_write` wrote."""
    from transformers.exporters import ExportedModel

    with quiet():
        exported = ExportedModel.from_pretrained(
            folder, device="cpu", local_files_only=True, **backend.opening(options.threads)
        )
    cache_file = folder / CACHE_FILE
    if cache_file.is_file():
        layers = read_json(cache_file.read_text(encoding="utf-8"))["layers"]
        return _WithCache(exported, layers)
    return _Single(exported)


class _Single:
    """A graph without a cache."""

    def __init__(self, exported: Any) -> None:
        self._exported = exported
        self._names = set(next(iter(exported.components.values())).metadata.kwargs)

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The outputs for a batch."""
        with quiet():
            # a copy: a runtime may write the outputs of the next call into the same memory
            return logits_of(self._exported(**_taken(batch, self._names))).clone()


def _taken(batch: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """The tensors of a batch that a graph takes. Token types that the batch does not give are 0."""
    arguments = {name: value for name, value in batch.items() if name in names}
    if "token_type_ids" in names and "token_type_ids" not in arguments:
        arguments["token_type_ids"] = torch.zeros_like(batch["input_ids"])
    return arguments


class _WithCache:
    """A graph of a decoder, with a cache."""

    def __init__(self, exported: Any, layers: list[dict[str, int]]) -> None:
        self._exported = exported
        self._layers = layers
        metadata = next(iter(exported.components.values())).metadata
        self._names = set(metadata.kwargs)
        _, keywords = treespec_loads(metadata.in_spec).children()
        self._spec = keywords.child(keywords.context.index("past_key_values"))

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The logits for whole texts."""
        ids = batch["input_ids"]
        mask = batch.get("attention_mask", torch.ones_like(ids))
        logits, _ = self._step(ids, mask, self._empty(len(ids)))
        return logits

    def generate(self, input_ids: Tensor, new_tokens: int) -> Tensor:
        """Write greedily: the text at once, and then a token at a time, with the cache."""
        mask = torch.ones_like(input_ids)
        cache = self._empty(len(input_ids))
        step = input_ids
        written = []
        for _ in range(new_tokens):
            logits, cache = self._step(step, mask, cache)
            step = logits[:, -1].argmax(-1, keepdim=True)
            written.append(step)
            mask = torch.cat((mask, torch.ones_like(step)), dim=1)
        return torch.cat(written, dim=1)

    def _step(self, ids: Tensor, mask: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Read tokens behind those of a cache."""
        positions = positions_of(mask)[:, -ids.shape[1] :]
        arguments = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "past_key_values": cache}
        given = {name: value for name, value in arguments.items() if name in self._names}
        with quiet():
            outputs = self._exported(**given)
        return logits_of(outputs).clone(), outputs["past_key_values"]

    def _empty(self, samples: int) -> Any:
        """A cache that holds no token, built as the one that the graph was traced with."""
        leaves = []
        for sizes in self._layers:
            for part in ("key", "value"):
                shape = (samples, sizes["heads"], 0, sizes[part])
                leaves.append(torch.zeros(shape, dtype=torch.float32, device="cpu"))
        return tree_unflatten(leaves, self._spec)


def _refusal(model: PreTrainedModel) -> str | None:
    """Why a model cannot be exported by transformers' exporters here."""
    if model.config.is_encoder_decoder:
        return (
            f"{type(model).__name__} is an encoder-decoder, whose cache has two parts. hfprune exports encoders, and "
            "decoders alone"
        )
    if predicts_next_token(model) and _has_window(model):
        return (
            f"layers of {type(model).__name__} look at a sliding window, and their cache counts tokens in a way that "
            "the graph cannot be given. For texts that are shorter than the window, the model computes the same "
            "without one, if its config may have none: set config.sliding_window = None before it is loaded"
        )
    return None


def _has_window(model: PreTrainedModel) -> bool:
    """Whether layers of a decoder keep the last tokens of a text only."""
    kinds = getattr(model.config, "layer_types", None)
    if kinds:
        return "sliding_attention" in kinds
    # Mistral, Phi-3 and Starcoder 2 have a window in every layer, or in none
    return bool(getattr(model.config, "sliding_window", None))


def _refusal_of_executorch(model: PreTrainedModel) -> str | None:
    """Why a model cannot be exported to ExecuTorch here."""
    if not takes_texts(model):
        return f"{type(model).__name__} takes {model.main_input_name}; only models of texts were tried in ExecuTorch"
    return _refusal(model)


def _no_quantizer(options: WriteOptions) -> Any:
    """For targets without quantisation, which is refused before."""
    raise ExportError(f"quantize={options.quantization!r} is not to be had here.")


def _onnx_quantizer(options: WriteOptions) -> Any:  # noqa: ARG001 (there is one quantisation)
    """int8 weights; activations are quantised when the model runs."""
    from transformers.exporters import OnnxRuntimeDynamicConfig, OnnxRuntimeQuantizer

    return OnnxRuntimeQuantizer(OnnxRuntimeDynamicConfig())


def _openvino_quantizer(options: WriteOptions) -> Any:
    """int8 weights alone, or int8 weights and activations, whose ranges are measured on data."""
    from transformers.exporters import NNCFOpenVINOQuantizer, NNCFQuantizationConfig, NNCFWeightCompressionConfig

    if options.quantization == "int8":
        return NNCFOpenVINOQuantizer(NNCFWeightCompressionConfig())
    if not options.calibration:
        raise ExportError(
            f"quantize={options.quantization!r} measures the ranges of activations on data, and none was given: give "
            "data, or take int8, which quantises the weights alone."
        )
    calibration = [_taken(batch, options.batch) for batch in options.calibration]
    return NNCFOpenVINOQuantizer(NNCFQuantizationConfig(), calibration_dataset=calibration)


def opening_of_onnx(threads: int | None) -> dict[str, Any]:
    """Options of a session of ONNX Runtime.

    Args:
        threads: How many threads compute; None: as many as it likes.

    Returns:
        `session_options`.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # warnings about its own optimisations; errors are raised
    options.log_severity_level = 3
    # threads that wait in a loop for the next call would take the cores from the model that is compared or timed beside
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if threads is not None:
        options.intra_op_num_threads = threads
    return {"session_options": options}


def opening_of_openvino(threads: int | None) -> dict[str, Any]:
    """Options of a compiled model of OpenVINO.

    Args:
        threads: How many threads compute; None: as many as it likes.

    Returns:
        `config`.
    """
    # its default is bfloat16 where the processor has it, which changes outputs by a hundredth
    config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    if threads is not None:
        config["INFERENCE_NUM_THREADS"] = threads
    return {"config": config}


def _opening_of_torch(threads: int | None) -> dict[str, Any]:
    if threads is not None:
        torch.set_num_threads(threads)
    return {}


def _opening_of_executorch(threads: int | None) -> dict[str, Any]:
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool

    if threads is not None:
        # unsafe while a model runs; here none does
        _unsafe_reset_threadpool(threads)
    return {}


_ONNX = _Backend(
    exporter="OnnxExporter",
    config="OnnxConfig",
    options={},
    quantizer=_onnx_quantizer,
    opening=opening_of_onnx,
)
_OPENVINO = _Backend(
    exporter="OpenVINOExporter",
    config="OpenVINOConfig",
    # a cache inside of the model cannot be given from outside, and OpenVINO's runner in transformers gives it
    options={"stateful": False},
    quantizer=_openvino_quantizer,
    opening=opening_of_openvino,
)
_EXECUTORCH = _Backend(
    exporter="ExecutorchExporter",
    config="ExecutorchConfig",
    options={"backend": "xnnpack"},
    quantizer=_no_quantizer,
    opening=_opening_of_executorch,
)
_TORCH = _Backend(
    exporter="DynamoExporter",
    config="DynamoConfig",
    options={},
    quantizer=_no_quantizer,
    opening=_opening_of_torch,
)


def _write_onnx(model: PreTrainedModel, folder: Path, options: WriteOptions) -> None:
    _write(_ONNX, model, folder, options)


def _open_onnx(folder: Path, options: OpenOptions) -> Runner:
    return _open(_ONNX, folder, options)


def _write_openvino(model: PreTrainedModel, folder: Path, options: WriteOptions) -> None:
    _write(_OPENVINO, model, folder, options)


def _open_openvino(folder: Path, options: OpenOptions) -> Runner:
    return _open(_OPENVINO, folder, options)


def _write_executorch(model: PreTrainedModel, folder: Path, options: WriteOptions) -> None:
    if predicts_next_token(model):
        write_decoder(model, folder)
    else:
        _write(_EXECUTORCH, model, folder, options)


def _open_executorch(folder: Path, options: OpenOptions) -> Runner:
    if (folder / DECODER_FILE).is_file():
        _opening_of_executorch(options.threads)
        return DecoderRunner(folder)
    return _open(_EXECUTORCH, folder, options)


def _write_torch(model: PreTrainedModel, folder: Path, options: WriteOptions) -> None:
    _write(_TORCH, model, folder, options)


def _open_torch(folder: Path, options: OpenOptions) -> Runner:
    return _open(_TORCH, folder, options)


register_target(
    Target(
        name="onnx",
        extra="onnx",
        modules=("transformers.exporters", "onnx", "onnxscript", "onnxruntime"),
        packages=("onnx", "onnxscript", "onnxruntime"),
        quantizations={"int8": "int8 weights; activations are quantised as the model runs (ONNX Runtime, dynamic)"},
        tolerance={None: EXACT, "int8": _EIGHT_BITS},
        write=_write_onnx,
        open=_open_onnx,
        refusal=_refusal,
    )
)
register_target(
    Target(
        name="openvino",
        extra="openvino",
        modules=("transformers.exporters", "openvino", "nncf"),
        packages=("openvino", "nncf"),
        quantizations={
            "int8": "int8 weights; activations stay float32 (NNCF)",
            "int8-calibrated": "int8 weights and activations, with ranges measured on the data (NNCF)",
        },
        calibrated=("int8-calibrated",),
        tolerance={None: EXACT, "int8": _EIGHT_BITS, "int8-calibrated": _EIGHT_BITS},
        write=_write_openvino,
        open=_open_openvino,
        refusal=_refusal,
    )
)
register_target(
    Target(
        name="executorch",
        extra="executorch",
        modules=("transformers.exporters", "executorch"),
        packages=("executorch",),
        tolerance={None: EXACT},
        write=_write_executorch,
        open=_open_executorch,
        refusal=_refusal_of_executorch,
    )
)
register_target(
    Target(
        name="torch",
        extra="export",
        modules=("transformers.exporters",),
        tolerance={None: EXACT},
        write=_write_torch,
        open=_open_torch,
        refusal=_refusal,
    )
)
