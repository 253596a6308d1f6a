"""Which weight files a checkpoint has, and the shapes that their headers say. No tensor is read."""

import re
from pathlib import Path
from pickle import UnpicklingError

import torch
from huggingface_hub.constants import SAFETENSORS_INDEX_FILE, SAFETENSORS_SINGLE_FILE
from safetensors import SafetensorError, safe_open
from transformers.utils import WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from hfprune.errors import CheckpointError
from hfprune.structure.json_text import read_json

#: The name of a weight file, without a path to another folder.
_SAFE_FILE = re.compile(r"\w[\w.-]*\.safetensors")
_PICKLED_FILE = re.compile(r"\w[\w.-]*\.bin")

Shapes = dict[str, tuple[int, ...]]


def weight_files(folder: Path, *, pickled: bool = False) -> dict[Path, set[str] | None]:
    """The weight files that transformers will read, and the names of the tensors that the index takes from each.

    Args:
        folder: A checkpoint's folder.
        pickled: Whether the weights are pickled; else they are safetensors.

    Returns:
        By path, names of tensors. None stands for all tensors of the file.

    Raises:
        CheckpointError: There are no weights, or the index takes a tensor from a file outside of the folder, of another
            format, or that is not there.
    """
    single_file = folder / (WEIGHTS_NAME if pickled else SAFETENSORS_SINGLE_FILE)
    if single_file.is_file():
        return {single_file: None}
    index = folder / (WEIGHTS_INDEX_NAME if pickled else SAFETENSORS_INDEX_FILE)
    if not index.is_file():
        kind = WEIGHTS_NAME if pickled else ".safetensors files"
        raise CheckpointError(f"there are no {kind}: the weights are missing. Download or save it again")
    name_of_file = _PICKLED_FILE if pickled else _SAFE_FILE
    files: dict[Path, set[str] | None] = {}
    for tensor, name in _weight_map(index).items():
        # the name comes from a stranger: it must not lead out of the folder
        if not name_of_file.fullmatch(str(name)) or not (folder / name).is_file():
            raise CheckpointError(
                f"{index.name} takes {tensor} from {name!r:.100}, which is no weight file of this folder"
            )
        names_before = files.get(folder / name) or set()
        files[folder / name] = {*names_before, tensor}
    return files


def _weight_map(index: Path) -> dict[str, str]:
    """The names of files by tensor."""
    try:
        weight_map = read_json(index.read_text(encoding="utf-8"))["weight_map"]
        return dict(weight_map)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{index.name} is no index of weights ({error!r:.100}). Download or save it again"
        ) from error


def stored_shapes(folder: Path, *, pickled: bool = False) -> Shapes:
    """The shapes of the tensors in the files that transformers will read, and in no others.

    Args:
        folder: A checkpoint's folder.
        pickled: As for `weight_files`. Pickled weights are read as tensors without memory.

    Returns:
        Shapes by the name of the tensor.

    Raises:
        CheckpointError: As for `weight_files`, or a file is damaged.
    """
    shapes: Shapes = {}
    for path, indexed in weight_files(folder, pickled=pickled).items():
        in_file = _pickled_shapes(path) if pickled else _safe_shapes(path)
        for name, shape in in_file.items():
            if indexed is None or name in indexed:
                shapes[name] = shape
    return shapes


def _safe_shapes(path: Path) -> Shapes:
    """The shapes in the header of a safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path.name} is damaged or cut short ({path.stat().st_size} bytes): {error}. Download or save it again"
        ) from error


def _pickled_shapes(path: Path) -> Shapes:
    """The shapes in a file of pickled tensors; the file must hold nothing else."""
    try:
        state = torch.load(path, map_location="meta", weights_only=True)
        return {name: tuple(tensor.shape) for name, tensor in state.items()}
    except UnpicklingError as error:
        raise CheckpointError(f"{path.name} holds more than tensors and is not read: {error}") from error
    except Exception as error:
        raise CheckpointError(f"{path.name} is no file of tensors by name: {type(error).__name__}: {error}") from error
