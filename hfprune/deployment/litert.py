"""The target LiteRT, the successor of TensorFlow Lite, for phones and small computers.

Its converter makes graphs of one size only. So the file has a graph for short and one for longer texts, which share
their weights; each takes one text, padded to its length.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfprune.deployment.examples import takes_texts
from hfprune.deployment.proof import values_in
from hfprune.deployment.quiet import quiet
from hfprune.deployment.targets import EXACT, OpenOptions, Runner, Target, Tolerance, WriteOptions, register_target
from hfprune.errors import ExportError
from hfprune.structure.examples import longest_sequence
from hfprune.structure.json_text import read_json
from hfprune.structure.predictions import predicts_next_token
from hfprune.structure.wrapping import argument_names

MODEL_FILE = "model.tflite"
#: Says how long the texts of the graphs are, and what stands behind a shorter one.
GRAPHS_FILE = "graphs.json"
#: Tokens of a short and of a longer text.
_LENGTHS = (32, 128)


class _Graph(nn.Module):
    """A model with arguments and an output that the converter takes: tensors, and one tensor.

    Args:
        model: The model, in evaluation mode.
        has_types: Whether it is given types of tokens.
    """

    def __init__(self, model: PreTrainedModel, *, has_types: bool) -> None:
        super().__init__()
        self.model = model
        self.has_types = has_types
        self.further = {"use_cache": False} if "use_cache" in argument_names(model) else {}

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """The predictions for `(1, tokens)` token ids."""
        types = {"token_type_ids": token_type_ids} if self.has_types else {}
        return values_in(self.model(input_ids=input_ids, attention_mask=attention_mask, **types, **self.further))


def _write(model: PreTrainedModel, folder: Path, options: WriteOptions) -> None:
    """Write a model into a folder."""
    import litert_torch

    has_types = "token_type_ids" in options.batch
    graph = _Graph(model, has_types=has_types).eval()
    lengths = _lengths_for(model)
    with quiet(errors_too=True):
        converter = litert_torch
        for length in lengths:
            example = _example(length, has_types=has_types)
            converter = converter.signature(_name_of(length), graph, sample_kwargs=example)
        converter.convert().export(str(folder / MODEL_FILE))
        if options.quantization is not None:
            _quantise(folder / MODEL_FILE)
        with torch.no_grad():
            has_tokens = graph(**_example(lengths[0], has_types=has_types)).ndim == 3
    padding = getattr(model.config, "pad_token_id", None) or 0
    text = json.dumps({"lengths": lengths, "padding": padding, "has_tokens": has_tokens}, indent=1) + "\n"
    (folder / GRAPHS_FILE).write_text(text, encoding="utf-8")


def _lengths_for(model: PreTrainedModel) -> list[int]:
    """How long the texts of the graphs are: no longer than the model has positions for."""
    longest = longest_sequence(model) or _LENGTHS[-1]
    return sorted({min(length, longest) for length in _LENGTHS})


def _example(length: int, *, has_types: bool) -> dict[str, Tensor]:
    """A padded text of a length; LiteRT's integers have 32 bits."""
    mask = torch.ones(1, length, dtype=torch.int32, device="cpu")
    mask[0, length // 2 :] = 0
    example = {"input_ids": torch.ones_like(mask), "attention_mask": mask}
    if has_types:
        example["token_type_ids"] = torch.zeros_like(mask)
    return example


def _name_of(length: int) -> str:
    """The name of the graph for texts of a length."""
    return f"tokens_{length}"


def _quantise(file: Path) -> None:
    """Give a file int8 weights; activations are quantised as the model runs."""
    from ai_edge_quantizer import quantizer, recipe

    quantised = quantizer.Quantizer(str(file), recipe.dynamic_wi8_afp32()).quantize()
    quantised.export_model(str(file), overwrite=True)


def _open(folder: Path, options: OpenOptions) -> Runner:
    """Open what `_write` wrote."""
    return _Runner(folder, options.threads)


class _Runner:
    """A file that is open in LiteRT.

    Args:
        folder: The folder of the export.
        threads: Threads; None: as many as the runtime likes.
    """

    def __init__(self, folder: Path, threads: int | None) -> None:
        from ai_edge_litert.interpreter import Interpreter

        said = read_json((folder / GRAPHS_FILE).read_text(encoding="utf-8"))
        self._lengths: Sequence[int] = said["lengths"]
        self._padding: int = said["padding"]
        self._has_tokens: bool = said["has_tokens"]
        with quiet(errors_too=True):
            interpreter = Interpreter(str(folder / MODEL_FILE), num_threads=threads)
            self._graphs = {length: interpreter.get_signature_runner(_name_of(length)) for length in self._lengths}
            self._names = set(interpreter.get_signature_list()[_name_of(self._lengths[0])]["inputs"])

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The outputs for a batch, one text after the other."""
        ids = batch["input_ids"]
        given = {"attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids), **batch}
        tokens = ids.shape[1]
        fitting = [length for length in self._lengths if length >= tokens]
        if not fitting:
            raise ExportError(f"a file of LiteRT takes texts of at most {self._lengths[-1]} tokens, got {tokens}.")
        outputs = []
        for row in range(len(ids)):
            texts = {name: given[name][row : row + 1] for name in self._names}
            outputs.append(self._one(texts, fitting[0]))
        return torch.cat(outputs)

    def _one(self, text: Mapping[str, Tensor], length: int) -> Tensor:
        """The outputs for one text, by the graph for a length."""
        tokens = text["input_ids"].shape[1]
        arguments = {}
        for name, values in text.items():
            filler = self._padding if name == "input_ids" else 0
            padded = nn.functional.pad(values, (0, length - tokens), value=filler)
            arguments[name] = padded.to(torch.int32).numpy()
        (values,) = self._graphs[length](**arguments).values()
        # a copy: the runtime writes the outputs of the next call into the same memory
        output = torch.from_numpy(values.copy()).float()
        return output[:, :tokens] if self._has_tokens else output


def _refusal(model: PreTrainedModel) -> str | None:
    """Why a model cannot be exported to LiteRT here."""
    name = type(model).__name__
    if model.config.is_encoder_decoder:
        return f"{name} is an encoder-decoder, and hfprune exports encoders of texts to LiteRT"
    if predicts_next_token(model):
        return f"{name} writes texts, and a cache in LiteRT was not tried. Take onnx, openvino, gguf or torch"
    if not takes_texts(model) or "MultipleChoice" in name:
        return f"{name} does not take single texts, and only models that do were tried in LiteRT"
    return None


register_target(
    Target(
        name="litert",
        extra="litert",
        modules=("litert_torch", "ai_edge_litert"),
        packages=("litert-torch", "ai-edge-litert"),
        quantizations={"int8": "int8 weights; activations are quantised as the model runs"},
        tolerance={
            None: EXACT,
            # int8 changes every output a little, and few of them much
            "int8": Tolerance(typical=0.25, agreement=0.8),
        },
        write=_write,
        open=_open,
        refusal=_refusal,
    )
)
