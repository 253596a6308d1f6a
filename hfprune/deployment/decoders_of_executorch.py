"""Decoders in ExecuTorch: one graph with its key/value cache inside, as ExecuTorch's own runners want it.

The graph takes tokens `(1, n)` and their positions `(n,)`, keeps their keys and values at these positions, and gives
the logits of the tokens. From position 0 on it reads a text (prefill); with the next position it reads the next token
(decode).
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfprune.deployment.quiet import quiet
from hfprune.errors import ExportError
from hfprune.structure.examples import longest_sequence

DECODER_FILE = "decoder.pte"
#: Tokens of a text and what is written behind it, and tokens that are read at once, where the model has as many
#: positions. ExecuTorch takes memory for all of them when it opens the file.
_CONTEXT = 1024
_AT_ONCE = 128
#: What the methods of the file that return these numbers are called, as ExecuTorch's runners ask for them.
_CONTEXT_METHOD = "get_max_context_len"
_AT_ONCE_METHOD = "get_max_seq_len"


def write_decoder(model: PreTrainedModel, folder: Path) -> None:
    """Write a decoder into a folder.

    Args:
        model: The model, in evaluation mode.
        folder: The folder.
    """
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from transformers.integrations.executorch import TorchExportableModuleForDecoderOnlyLM

    context = min(_CONTEXT, longest_sequence(model) or _CONTEXT)
    at_once = min(_AT_ONCE, context)
    tokens = torch.export.Dim("tokens", min=1, max=at_once)
    positions = torch.arange(2, dtype=torch.long, device="cpu")
    with quiet(), _static_cache(model, context), torch.no_grad():
        module = TorchExportableModuleForDecoderOnlyLM(model, batch_size=1, max_cache_len=context)
        program = module.export(
            input_ids=positions[None],
            cache_position=positions,
            dynamic_shapes={"input_ids": {1: tokens}, "cache_position": {0: tokens}},
            strict=True,
        )
        lowered = to_edge_transform_and_lower(
            program, partitioner=[XnnpackPartitioner()], constant_methods=_constants(model, context, at_once)
        )
        with (folder / DECODER_FILE).open("wb") as file:
            lowered.to_executorch().write_to_file(file)


def _constants(model: PreTrainedModel, context: int, at_once: int) -> dict[str, Any]:
    """What ExecuTorch's runners ask a file for."""
    ends = model.generation_config.eos_token_id
    if ends is None:
        ends = model.config.eos_token_id
    if not isinstance(ends, list):
        ends = [] if ends is None else [ends]
    return {
        _CONTEXT_METHOD: context,
        _AT_ONCE_METHOD: at_once,
        "get_vocab_size": model.config.vocab_size,
        "get_n_layers": model.config.num_hidden_layers,
        "get_bos_id": -1 if model.config.bos_token_id is None else model.config.bos_token_id,
        "get_eos_ids": ends,
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": False,
        "enable_dynamic_shape": True,
    }


@contextlib.contextmanager
def _static_cache(model: PreTrainedModel, context: int) -> Iterator[None]:
    """Say in a model's settings of generation that its cache has one size, which the exporter reads there."""
    settings = model.generation_config
    before = {name: getattr(settings, name) for name in ("cache_implementation", "cache_config", "use_cache")}
    settings.update(
        cache_implementation="static", cache_config={"batch_size": 1, "max_cache_len": context}, use_cache=True
    )
    try:
        yield
    finally:
        settings.update(**before)


class DecoderRunner:
    """A file of a decoder that is open in ExecuTorch.

    Args:
        folder: The folder of the export.
    """

    def __init__(self, folder: Path) -> None:
        from executorch.runtime import Runtime

        with quiet():
            self._program = Runtime.get().load_program(folder / DECODER_FILE)
            self._forward = self._program.load_method("forward")
            self._context = self._constant(_CONTEXT_METHOD)
            self._at_once = self._constant(_AT_ONCE_METHOD)

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The logits for whole texts, one after the other. Padding is left out, and gets zeros."""
        ids = batch["input_ids"]
        mask = batch.get("attention_mask", torch.ones_like(ids)).bool()
        rows = []
        for text, is_token in zip(ids, mask, strict=True):
            logits = self._read(text[is_token], start=0)
            row = torch.zeros(len(text), logits.shape[-1], dtype=logits.dtype, device="cpu")
            row[is_token] = logits
            rows.append(row)
        return torch.stack(rows)

    def generate(self, input_ids: Tensor, new_tokens: int) -> Tensor:
        """Write greedily: the text at once, and then a token at a time."""
        step = input_ids[0]
        start = 0
        written = []
        for _ in range(new_tokens):
            logits = self._read(step, start=start)
            start += len(step)
            step = logits[-1:].argmax(-1)
            written.append(step)
        return torch.cat(written)[None]

    def _constant(self, name: str) -> int:
        """A number that the file says."""
        return int(self._program.load_method(name).execute([])[0])

    def _read(self, ids: Tensor, *, start: int) -> Tensor:
        """Read tokens from a position on: `(tokens, words)`."""
        end = start + len(ids)
        if end > self._context:
            raise ExportError(f"this file of ExecuTorch takes texts of at most {self._context} tokens, got {end}.")
        logits = []
        for first in range(0, len(ids), self._at_once):
            part = ids[first : first + self._at_once]
            positions = torch.arange(start + first, start + first + len(part), dtype=torch.long, device="cpu")
            # a copy: the next call writes its outputs into the same memory
            logits.append(self._forward.execute([part[None], positions])[0][0].clone())
        return torch.cat(logits)
