"""Scores: one number for every unit of every block. A higher score means that a unit is more worth keeping."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from hfprune.distributed import is_main_process
from hfprune.errors import NonFiniteScoreError
from hfprune.showing.picture import ThemeName, save_picture, theme_of
from hfprune.showing.tables import Table, data_frame
from hfprune.showing.units import UnitRow, draw_scores
from hfprune.structure.blocks import QUERIES
from hfprune.structure.specs import KIND_OF_NEURONS

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

#: A message names at most so many units.
_SHOWN_UNITS = 8


@dataclass(frozen=True)
class Scores(Mapping[str, Tensor]):
    """Scores of the units of a model: a read-only mapping by block name.

    Attributes:
        by_block: By block name, `(units,)` float32 on the CPU. Units are numbered as in the model that was scored.
        scorer: The name of the scorer.
        samples: The number of calibration samples.

    Examples:
        >>> import torch
        >>> from hfprune.scoring import Scores
        >>> scores = Scores(by_block={"layer.0.ffn": torch.tensor([0.5, 2.0])}, scorer="l2", samples=64)
        >>> scores["layer.0.ffn"]
        tensor([0.5000, 2.0000])
        >>> print(scores)
        block        units  least  median  largest
        layer.0.ffn      2    0.5    1.25        2
        scores by l2, of 64 calibration samples
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

    def __str__(self) -> str:
        return self._table().text()

    def _repr_html_(self) -> str:
        return self._table().html()

    def _table(self) -> Table:
        """A row for each block: how many units it has, and between which numbers their scores are."""
        rows = []
        for name, values in self.by_block.items():
            row = [name, f"{len(values):,}"]
            # all units of a block may be gone
            if len(values):
                numbers = (values.min(), values.double().quantile(0.5), values.max())
                row += [f"{float(number):.3g}" for number in numbers]
            rows.append(row + [""] * (5 - len(row)))
        return Table(head=("block", "units", "least", "median", "largest"), rows=rows, notes=(self._about(),))

    def _about(self) -> str:
        """Where the scores come from, in a line."""
        return f"scores by {self.scorer}, of {self.samples:,} calibration samples"

    def to_pandas(self) -> "DataFrame":
        """The scores as a data frame, with a row for each unit.

        Returns:
            Columns `block`, `unit` (its index in the block) and `score`.

        Examples:
            >>> import torch
            >>> from hfprune.scoring import Scores
            >>> scores = Scores(by_block={"layer.0.ffn": torch.tensor([0.5, 2.0])}, scorer="l2", samples=64)
            >>> scores.to_pandas().values.tolist()
            [['layer.0.ffn', 0, 0.5], ['layer.0.ffn', 1, 2.0]]
        """
        rows = []
        for name, values in self.by_block.items():
            for unit, score in enumerate(values.tolist()):
                rows.append({"block": name, "unit": unit, "score": score})
        return data_frame(rows)

    def plot(self, path: str | Path | None = None, *, theme: ThemeName = "light") -> "Figure":
        """Draw the scores: a panel for each kind of block, a row for each layer, neurons as means of runs.

        Args:
            path: A file to write the picture into, as PNG, SVG or PDF by its suffix; None: no file.
            theme: `light` or `dark`.

        Returns:
            The figure of matplotlib, which a notebook shows.

        Raises:
            MissingDependencyError: Matplotlib is not installed.
            ValueError: The file has another suffix, the theme is unknown, or no block has units.

        Examples:
            >>> import torch
            >>> from hfprune.scoring import Scores
            >>> scores = Scores(by_block={"layer.0.ffn": torch.tensor([0.5, 2.0])}, scorer="l2", samples=64)
            >>> figure = scores.plot()
            >>> figure.axes[0].get_title()
            'feed-forward: neurons'
        """
        rows = []
        for name, values in self.by_block.items():
            if len(values):
                rows.append(UnitRow(block=name, unit=_unit_of(name), values=values.tolist()))
        if not rows:
            raise ValueError("there are no scores to draw: no block has units left.")
        return save_picture(draw_scores(rows, self._about(), theme_of(theme)), path)

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


def _unit_of(block: str) -> str:
    """What one unit of a block is, in words, as far as the block's name says it.

    >>> _unit_of("layer.0.ffn"), _unit_of("layer.0.attention")
    ('neuron', 'head or key/value group')
    """
    kind = block.rpartition(".")[2]
    if kind == KIND_OF_NEURONS:
        return "neuron"
    return "query head" if kind == QUERIES else "head or key/value group"


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
