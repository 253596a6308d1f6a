"""Backends of latency tables that are other runtimes: the whole model becomes a file of theirs, and they are timed.

`hfprune.measuring.backends` has those of PyTorch and the registry. Importing this module, as `hfprune.deployment` and
the command line do, adds `onnx` and `openvino`.

As with `compile`, the sizes of the batch are fixed in the graph. Nothing is compared with PyTorch here: a table has
times, and `hfprune.export` proves a file.
"""

import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hfprune.deployment.by_transformers import opening_of_onnx, opening_of_openvino
from hfprune.deployment.quiet import quiet
from hfprune.deployment.targets import check_installed, get_target
from hfprune.measuring.backends import Run, register_backend
from hfprune.structure.batches import Batch
from hfprune.structure.predictions import predicts_next_token
from hfprune.structure.wrapping import argument_names, inner

#: Opens the files in a folder, and gives what runs them.
_Open = Callable[[Path, torch.dtype], Run]
#: For a model that is timed again and again, as the dense one beside every width, what ran it last and for which sizes.
_LAST: "weakref.WeakKeyDictionary[nn.Module, tuple[Any, Run]]" = weakref.WeakKeyDictionary()


@register_backend("onnx", packages=("onnx", "onnxscript", "onnxruntime"))
def onnx(model: nn.Module, batch: Batch) -> Run:
    """The model in ONNX Runtime, on as many threads of the CPU as PyTorch has."""
    return _in_runtime("onnx", inner(model), batch, _open_onnx)


@register_backend("openvino", packages=("openvino",))
def openvino(model: nn.Module, batch: Batch) -> Run:
    """The model in OpenVINO, on as many threads of the CPU as PyTorch has, in the type of its weights."""
    return _in_runtime("openvino", inner(model), batch, _open_openvino)


def _in_runtime(target: str, model: PreTrainedModel, batch: Batch, open_again: _Open) -> Run:
    """Write a model for batches of one size, and open it.

    Args:
        target: The name of the target, for what must be installed.
        model: The model, in evaluation mode.
        batch: A batch of the size that it will get.
        open_again: Opens what was written.

    Returns:
        What runs it.

    Raises:
        MissingDependencyError: A package is not installed.
        ValueError: The model is not on the CPU, or the runtime does not compute in its type there.
    """
    check_installed(get_target(target))
    if model.device.type != "cpu":
        raise ValueError(
            f"the backend {target} runs on the CPU here, and the model is on {model.device}. Move it: model.to('cpu')."
        )
    if target == "onnx" and model.dtype == torch.bfloat16:
        raise ValueError("ONNX Runtime does not compute in bfloat16 on the CPU. Take float32, or --backend openvino.")
    made_for = _sizes(target, model, batch)
    found = _LAST.get(model)
    if found is not None and found[0] == made_for:
        return found[1]
    with tempfile.TemporaryDirectory(prefix="hfprune-timed-") as folder, torch.inference_mode(mode=False):
        _write(target, model, Path(folder), batch)
        run = open_again(Path(folder), model.dtype)
    _LAST[model] = (made_for, run)
    return run


def _sizes(target: str, model: PreTrainedModel, batch: Batch) -> Any:
    """Everything that what was written depends on, but the values of the weights."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    arguments = {name: tuple(value.shape) for name, value in batch.items()}
    return target, torch.get_num_threads(), model.dtype, arguments, shapes


def _write(target: str, model: PreTrainedModel, folder: Path, batch: Batch) -> None:
    """Write a model for batches of one size."""
    import transformers.exporters as exporters

    names = {"onnx": ("OnnxExporter", "OnnxConfig"), "openvino": ("OpenVINOExporter", "OpenVINOConfig")}
    exporter, config = names[target]
    # the time of a text is that of one pass over it, which needs no cache
    arguments: dict[str, Any] = {name: value.clone() for name, value in batch.items()}
    if predicts_next_token(model) or "use_cache" in argument_names(model):
        arguments["use_cache"] = False
    with quiet():
        exported = getattr(exporters, exporter)().export(model, arguments, getattr(exporters, config)(dynamic=False))
        exported.config = None
        exported.save_pretrained(folder)


def _open_onnx(folder: Path, dtype: torch.dtype) -> Run:  # noqa: ARG001 (the graph has the type)
    """A session of ONNX Runtime."""
    import onnxruntime

    options = opening_of_onnx(torch.get_num_threads())
    session = onnxruntime.InferenceSession(
        folder / "model.onnx", options["session_options"], providers=["CPUExecutionProvider"]
    )
    taken = [argument.name for argument in session.get_inputs()]
    return lambda batch: session.run(None, {name: batch[name].numpy() for name in taken})


def _open_openvino(folder: Path, dtype: torch.dtype) -> Run:
    """A compiled model of OpenVINO."""
    import openvino

    options = opening_of_openvino(torch.get_num_threads())["config"]
    if dtype != torch.float32:
        options["INFERENCE_PRECISION_HINT"] = {torch.bfloat16: "bf16", torch.float16: "f16"}[dtype]
    compiled = openvino.Core().compile_model(folder / "openvino_model.xml", "CPU", options)
    taken = [argument.get_any_name() for argument in compiled.inputs]
    request = compiled.create_infer_request()
    return lambda batch: request.infer({name: batch[name].numpy() for name in taken}, share_inputs=True)
