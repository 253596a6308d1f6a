"""Scores: for each block, one number a unit. Higher is more worth keeping."""

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


@dataclass(frozen=True)
class Scores(Mapping[str, Tensor]):
    """Scores of the units of a model, by block name.

    Attributes:
        by_block: `(units,)` float32 on the CPU, by block name, in the numbering of the model that was scored.
        scorer: Which scorer gave them.
        samples: Over how many calibration samples.
    """

    by_block: Mapping[str, Tensor]
    scorer: str
    samples: int

    def __post_init__(self) -> None:
        for name, value in self.by_block.items():
            check_finite(name, value, "")

    def __getitem__(self, name: str) -> Tensor:
        return self.by_block[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_block)

    def __len__(self) -> int:
        return len(self.by_block)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file; of several processes the main one does."""
        metadata = {"hfprune": json.dumps({"scorer": self.scorer, "samples": self.samples})}
        if is_main_process():
            save_file({name: value.contiguous() for name, value in self.by_block.items()}, path, metadata=metadata)

    @classmethod
    def load(cls, path: str | Path) -> "Scores":
        """Read what `save` wrote."""
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["hfprune"])
            values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        return cls(by_block=values, **about)


def check_finite(block: str, values: Tensor, where: str) -> None:
    """Refuse values that are NaN or infinite.

    Args:
        block: The block's name.
        values: `(units,)` or `(samples, units)`.
        where: What to add about where they came from, such as ` in calibration batch 3`.

    Raises:
        NonFiniteScoreError: Some value is not finite; the message names the block and its units.
    """
    bad = ~torch.isfinite(values)
    if bad.any():
        units = torch.nonzero(bad.reshape(-1, values.shape[-1]).any(0)).flatten().tolist()
        shown = ", ".join(map(str, units[:8])) + (f" and {len(units) - 8} more" if len(units) > 8 else "")
        raise NonFiniteScoreError(
            f"scores of block {block!r} are not finite, at unit {shown}{where}. Nothing was pruned. Look for NaN "
            "weights or inputs, or for an overflow in float16: score in bfloat16 or float32."
        )
