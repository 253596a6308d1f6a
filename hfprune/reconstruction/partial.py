"""The folder of a reconstruction: it holds the layers that are done, so that an interrupted run can go on."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from hfprune.distributed import count_processes, is_main_process
from hfprune.errors import CheckpointError
from hfprune.scoring.calibration import digest_of_batches
from hfprune.structure.batches import Batch
from hfprune.structure.store import sha256_of, write_tensors


@dataclass(frozen=True, kw_only=True)
class Repair:
    """What reconstruction did to one consumer.

    Attributes:
        block: The block's name.
        target: What was to be reproduced: `residual_stream`, or the consumer's own `output`.
        ridge: The ridge that was chosen, as a multiple of the mean of the Gram matrix's diagonal.
        error_before: The squared distance to the dense model at the target, averaged over calibration tokens.
        error_after: The same distance with the new weights.
    """

    block: str
    target: str
    ridge: float
    error_before: float
    error_after: float


#: The new parameters of one layer by path, and what was done to its consumers.
RepairedLayer = tuple[dict[str, Tensor], list[Repair]]


class PartialRun:
    """The layers that are repaired, one safetensors file each. The main process writes every file as a whole.

    Args:
        folder: The folder; None keeps nothing.
        pruned: The pruned model, as it is before repair.
        dense: The dense model.
        batches: The calibration batches of all processes.

    Raises:
        CheckpointError: The folder holds layers of other models, of other batches, or of another number of processes.
    """

    def __init__(
        self, folder: Path | None, pruned: PreTrainedModel, dense: PreTrainedModel, batches: Sequence[Batch]
    ) -> None:
        self._folder = folder
        if folder is None:
            return
        inputs = {
            "pruned": sha256_of(pruned.state_dict()),
            "dense": sha256_of(dense.state_dict()),
            "batches": digest_of_batches(batches),
            # the order in which sums of several processes are added depends on how many there are
            "processes": count_processes(),
        }
        about = folder / "run.json"
        if about.is_file():
            _check_same_inputs(folder, json.loads(about.read_text(encoding="utf-8")), inputs)
        elif is_main_process():
            folder.mkdir(parents=True, exist_ok=True)
            # a process that ends here must not leave half a file
            draft = folder / ".run.json"
            draft.write_text(json.dumps(inputs, indent=1) + "\n", encoding="utf-8")
            draft.replace(about)

    def done(self) -> list[RepairedLayer]:
        """The layers that are repaired, in order."""
        layers: list[RepairedLayer] = []
        if self._folder is None:
            return layers
        path = self._file(0)
        while path.is_file():
            layers.append(_read_layer(path))
            path = self._file(len(layers))
        return layers

    def add(self, number: int, weights: Mapping[str, Tensor], repairs: Sequence[Repair]) -> None:
        """Keep layer `number`, which is now repaired."""
        if self._folder is None or not is_main_process():
            return
        about = json.dumps([asdict(repair) for repair in repairs])
        write_tensors(self._file(number), weights, {"repairs": about})

    def _file(self, number: int) -> Path:
        assert self._folder is not None
        return self._folder / f"repaired-{number}.safetensors"


def _check_same_inputs(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with a run that had other inputs."""
    differing = [name for name in now if before.get(name) != now[name]]
    if differing:
        first = differing[0]
        raise CheckpointError(
            f"{folder} has a reconstruction with other {' and '.join(differing)}: {before.get(first)!r} and "
            f"now {now[first]!r}. Pass what that run was called with, another folder, or delete this one."
        )


def _read_layer(path: Path) -> RepairedLayer:
    """Read a file that `PartialRun.add` wrote."""
    with safe_open(path, "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        entries = json.loads(file.metadata()["repairs"])
    return weights, [Repair(**entry) for entry in entries]
