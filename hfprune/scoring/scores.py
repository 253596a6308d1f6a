"""Scores: one number for every unit of every block. A higher score means that a unit is more worth keeping."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from hfprune.distributed import is_main_process
from hfprune.errors import NonFiniteScoreError

#: A message names at most so many units.
_SHOWN_UNITS = 8


@dataclass(frozen=True)
class Scores(Mapping[str, Tensor]):
    """Scores of the units of a model: a read-only mapping by block name.

    >>> scores = Scores(by_block={"layer.0.ffn": torch.tensor([0.5, 2.0])}, scorer="l2", samples=64)
    >>> scores["layer.0.ffn"]
    tensor([0.5000, 2.0000])

    Attributes:
        by_block: By block name, `(units,)` float32 on the CPU. Units are numbered as in the model that was scored.
        scorer: The name of the scorer.
        samples: The number of calibration samples.
    """

    by_block: Mapping[str, Tensor]
    scorer: str
    samples: int

    def __post_init__(self) -> None:
        for name, values in self.by_block.items():
            check_finite(name, values, "")

    def __getitem__(self, name: str) -> Tensor:
        return self.by_block[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_block)

    def __len__(self) -> int:
        return len(self.by_block)

    def save(self, path: str | Path) -> None:
        """Write the scores to a safetensors file. Of several processes only the main one writes."""
        if not is_main_process():
            return
        about = json.dumps({"scorer": self.scorer, "samples": self.samples})
        tensors = {name: values.contiguous() for name, values in self.by_block.items()}
        save_file(tensors, path, metadata={"hfprune": about})

    @classmethod
    def load(cls, path: str | Path) -> "Scores":
        """Read a file that `save` wrote."""
        by_block = {}
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["hfprune"])
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                by_block[name] = file.get_tensor(name)
        return cls(by_block=by_block, **about)


def check_finite(block: str, values: Tensor, where: str) -> None:
    """Refuse values that are NaN or infinite.

    Args:
        block: The block's name.
        values: `(units,)` or `(samples, units)`.
        where: Where the values come from, for the message, such as ` in calibration batch 3`.

    Raises:
        NonFiniteScoreError: A value is not finite; the message names the block and its units.
    """
    is_bad = ~torch.isfinite(values)
    if not is_bad.any():
        return
    bad_units = torch.nonzero(is_bad.reshape(-1, values.shape[-1]).any(0)).flatten().tolist()
    shown = ", ".join(map(str, bad_units[:_SHOWN_UNITS]))
    if len(bad_units) > _SHOWN_UNITS:
        shown += f" and {len(bad_units) - _SHOWN_UNITS} more"
    raise NonFiniteScoreError(
        f"scores of block {block!r} are not finite, at unit {shown}{where}. Nothing was pruned. Look for NaN "
        "weights or inputs, or for an overflow in float16: score in bfloat16 or float32."
    )
