"""Tensors by name, in memory or in the files of a folder, and digests of tensors."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel


class Store:
    """Tensors by name: in memory where they are, or each in a safetensors file of a folder.

    Attributes:
        folder: Where the files are; None for memory.

    Args:
        folder: Where to keep files; None keeps tensors in memory. The folder is made if it is not there, and files that
            it holds can be read.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._in_memory: dict[str, Tensor] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def __contains__(self, name: str) -> bool:
        if self.folder is None:
            return name in self._in_memory
        return self._file(name).is_file()

    def __getitem__(self, name: str) -> Tensor:
        if self.folder is None:
            return self._in_memory[name]
        return load_file(self._file(name))["value"]

    def __setitem__(self, name: str, value: Tensor) -> None:
        if self.folder is None:
            self._in_memory[name] = value
        else:
            write_tensors(self._file(name), {"value": value})

    def drop(self, name: str) -> None:
        """Forget a tensor, if it is there."""
        if self.folder is None:
            self._in_memory.pop(name, None)
        else:
            self._file(name).unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.safetensors"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file in one step: if the process is killed, the whole file is there or none of it.

    Args:
        path: The file; one that is there is replaced.
        tensors: By name.
        metadata: Goes into the file's header.
    """
    # another process may write the same file at the same time, so each has a draft of its own
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    on_cpu = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    save_file(on_cpu, draft, dict(metadata or {}))
    draft.replace(path)


def digest_of(model: PreTrainedModel) -> str:
    """SHA-256 of all that a model computes with: its weights, buffers and config.

    Args:
        model: The model.

    Returns:
        Hexadecimal.

    Raises:
        ValueError: Weights are not in memory.
    """
    tensors = dict(model.state_dict())
    not_in_memory = [name for name, value in tensors.items() if value.is_meta]
    if not_in_memory:
        raise ValueError(
            f"{not_in_memory[0]!r} of {type(model).__name__} is not in memory (offloaded by device_map, or on the meta "
            "device), and what the model says is kept under the digest of its weights. Load it without offloading."
        )
    # a name without a tensor adds the name itself
    return sha256_of({**tensors, model.config.to_json_string(use_diff=False): None})


def sha256_of(tensors: Mapping[str, Any]) -> str:
    """SHA-256 of tensors and their names, in the order of the names.

    Args:
        tensors: By name. Of a value that is no tensor, only the name counts.

    Returns:
        Hexadecimal.

    Examples:
        >>> sha256_of({"a": torch.zeros(2)}) == sha256_of({"a": torch.zeros(2), "b": None})
        False
    """
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(name.encode())
        if isinstance(value, Tensor):
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
