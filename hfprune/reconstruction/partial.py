"""What `reconstruct` leaves in a folder, layer by layer, so that a run that was cut short goes on from there."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from hfprune.distributed import count_processes, is_main_process
from hfprune.errors import CheckpointError
from hfprune.structure.batches import Batch
from hfprune.structure.store import sha256_of, write_tensors


@dataclass(frozen=True, kw_only=True)
class Repair:
    """What reconstruction did to one consumer.

    Attributes:
        block: The block's name.
        target: What was aimed at: `residual_stream`, or the consumer's own `output`.
        ridge: The ridge that was chosen, as a multiple of the mean diagonal of the Gram matrix.
        error_before: Squared distance to the dense model at the target, mean over calibration tokens.
        error_after: The same with the new weights.
    """

    block: str
    target: str
    ridge: float
    error_before: float
    error_after: float


class PartialRun:
    """The layers that are repaired, in a folder: a safetensors file each, written as a whole by the main process.

    Args:
        folder: The folder; None keeps nothing.
        pruned: The pruned model, as it is before repair.
        dense: The dense model.
        batches: The calibration batches of all processes.

    Raises:
        CheckpointError: The folder has layers of other models, other batches, or another number of processes.
    """

    def __init__(
        self, folder: Path | None, pruned: PreTrainedModel, dense: PreTrainedModel, batches: Sequence[Batch]
    ) -> None:
        self._folder = folder
        if folder is None:
            return
        found = {
            "pruned": sha256_of(pruned.state_dict()),
            "dense": sha256_of(dense.state_dict()),
            "batches": sha256_of({f"{i}.{name}": value for i, b in enumerate(batches) for name, value in b.items()}),
            "processes": count_processes(),
        }
        about = folder / "run.json"
        if about.is_file():
            before = json.loads(about.read_text(encoding="utf-8"))
            unlike = [name for name in found if before.get(name) != found[name]]
            if unlike:
                raise CheckpointError(
                    f"{folder} has a reconstruction with other {' and '.join(unlike)}: {before.get(unlike[0])!r} and "
                    f"now {found[unlike[0]]!r}. Pass what that run was called with, another folder, or delete this one."
                )
        elif is_main_process():
            folder.mkdir(parents=True, exist_ok=True)
            draft = folder / ".run.json"
            draft.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            draft.replace(about)

    def done(self) -> list[tuple[dict[str, Tensor], list[Repair]]]:
        """For every layer that is repaired, in order: its new parameters by path, and what was done."""
        layers: list[tuple[dict[str, Tensor], list[Repair]]] = []
        while self._folder is not None and (path := self._file(len(layers))).is_file():
            with safe_open(path, "pt") as file:
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
                repairs = [Repair(**entry) for entry in json.loads(file.metadata()["repairs"])]
            layers.append((weights, repairs))
        return layers

    def add(self, number: int, weights: Mapping[str, Tensor], repairs: Sequence[Repair]) -> None:
        """Layer `number` is repaired."""
        if self._folder is not None and is_main_process():
            about = {"repairs": json.dumps([asdict(repair) for repair in repairs])}
            write_tensors(self._file(number), weights, about)

    def _file(self, number: int) -> Path:
        assert self._folder is not None
        return self._folder / f"repaired-{number}.safetensors"
