"""Two plans for the same model, side by side."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfprune.showing.picture import ThemeName, save_picture, theme_of
from hfprune.showing.tables import Table, data_frame
from hfprune.showing.units import KeptByTwo, draw_kept_by_two, layer_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


@dataclass(frozen=True, kw_only=True)
class ComparedBlock:
    """The units of one block that two plans keep.

    Attributes:
        unit: What one unit is, in words, such as `head`.
        units: The number of units before pruning.
        a: The indices of the units that the first plan keeps.
        b: The indices of the units that the second plan keeps.
    """

    unit: str
    units: int
    a: tuple[int, ...]
    b: tuple[int, ...]

    @property
    def both(self) -> int:
        """How many units both plans keep."""
        return len(set(self.a) & set(self.b))

    @property
    def either(self) -> int:
        """How many units at least one plan keeps."""
        return len(set(self.a) | set(self.b))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How two plans for the same dense model differ: what `PruningPlan.compare` returns. A is the first plan.

    Attributes:
        blocks: What both plans keep, by block name.
        mac_sparsity: Of each plan, the fraction of the prunable multiply-adds that it removes.
        param_sparsity: Of each plan, the fraction of the prunable parameters that it removes.
        digests: Of each plan, the digest.

    Examples:
        >>> from hfprune.planning.compare import ComparedBlock, Comparison
        >>> block = ComparedBlock(unit="head", units=4, a=(0, 1, 2), b=(1, 2, 3))
        >>> found = Comparison(
        ...     blocks={"layer.0.attention": block},
        ...     mac_sparsity=(0.25, 0.25),
        ...     param_sparsity=(0.25, 0.25),
        ...     digests=("first", "second"),
        ... )
        >>> for line in str(found).splitlines()[:2]:
        ...     print(line)
                               of      A      B   both
        layer.0.attention       4      3      3      2  differs
        >>> found.overlap
        0.5
    """

    blocks: Mapping[str, ComparedBlock]
    mac_sparsity: tuple[float, float]
    param_sparsity: tuple[float, float]
    digests: tuple[str, str]

    @property
    def overlap(self) -> float:
        """Of the units that at least one plan keeps, the share that both keep (Jaccard), over all blocks."""
        kept_by_both = sum(block.both for block in self.blocks.values())
        kept_by_either = sum(block.either for block in self.blocks.values())
        # two plans that keep nothing are the same
        if not kept_by_either:
            return 1.0
        return kept_by_both / kept_by_either

    def to_dict(self) -> dict[str, Any]:
        """The comparison as plain values, which `hfprune diff --json` prints.

        Returns:
            `blocks`: for each block, the units `before`, those that `a` keeps, that `b` keeps, and that `both` keep.
            `overlap`, and `mac_sparsity`, `param_sparsity` and `digest` of both plans, under `a` and `b`.

        Examples:
            >>> from hfprune.planning.compare import ComparedBlock, Comparison
            >>> block = ComparedBlock(unit="head", units=2, a=(0,), b=(0, 1))
            >>> found = Comparison(
            ...     blocks={"a": block},
            ...     mac_sparsity=(0.5, 0.0),
            ...     param_sparsity=(0.5, 0.0),
            ...     digests=("x", "y"),
            ... )
            >>> found.to_dict()["blocks"]
            {'a': {'before': 2, 'a': 1, 'b': 2, 'both': 1}}
        """
        blocks = {}
        for name, block in self.blocks.items():
            blocks[name] = {"before": block.units, "a": len(block.a), "b": len(block.b), "both": block.both}
        return {
            "blocks": blocks,
            "overlap": self.overlap,
            "mac_sparsity": dict(zip("ab", self.mac_sparsity, strict=True)),
            "param_sparsity": dict(zip("ab", self.param_sparsity, strict=True)),
            "digest": dict(zip("ab", self.digests, strict=True)),
        }

    def to_pandas(self) -> "DataFrame":
        """The comparison as a data frame, with a row for each block.

        Returns:
            Columns `block`, `layer` (its number), `unit`, `units` (before pruning), `a` and `b` (how many units each
            plan keeps), `both`, `only_a`, `only_b` and `neither`.

        Examples:
            >>> from hfprune.planning.compare import ComparedBlock, Comparison
            >>> block = ComparedBlock(unit="head", units=2, a=(0,), b=(0, 1))
            >>> found = Comparison(
            ...     blocks={"layer.3.attention": block},
            ...     mac_sparsity=(0.5, 0.0),
            ...     param_sparsity=(0.5, 0.0),
            ...     digests=("x", "y"),
            ... )
            >>> found.to_pandas()[["layer", "both", "only_a", "only_b", "neither"]].values.tolist()
            [[3, 1, 0, 1, 0]]
        """
        rows = []
        for row in self._counts():
            counts = {
                "block": row.block,
                "layer": layer_number(row.block),
                "unit": row.unit,
                "units": row.units,
                "a": row.both + row.only_a,
                "b": row.both + row.only_b,
                "both": row.both,
                "only_a": row.only_a,
                "only_b": row.only_b,
                "neither": row.neither,
            }
            rows.append(counts)
        return data_frame(rows)

    def plot(self, path: str | Path | None = None, *, theme: ThemeName = "light") -> "Figure":
        """Draw, for every block, the shares of units that both plans keep, that only one keeps, and that none keeps.

        Args:
            path: A file to write the picture into, as PNG, SVG or PDF by its suffix; None: no file.
            theme: `light` or `dark`.

        Returns:
            The figure of matplotlib, which a notebook shows.

        Raises:
            MissingDependencyError: Matplotlib is not installed.
            ValueError: The file has another suffix, or the theme is unknown.

        Examples:
            >>> from hfprune.planning.compare import ComparedBlock, Comparison
            >>> block = ComparedBlock(unit="head", units=2, a=(0,), b=(0, 1))
            >>> found = Comparison(
            ...     blocks={"layer.3.attention": block},
            ...     mac_sparsity=(0.5, 0.0),
            ...     param_sparsity=(0.5, 0.0),
            ...     digests=("x", "y"),
            ... )
            >>> found.plot().axes[0].get_xlabel()
            "share of the block's heads, %"
        """
        return save_picture(draw_kept_by_two(self._counts(), theme_of(theme)), path)

    def _counts(self) -> list[KeptByTwo]:
        """The numbers of units of every block, by who keeps them."""
        rows = []
        for name, block in self.blocks.items():
            row = KeptByTwo(
                block=name,
                unit=block.unit,
                both=block.both,
                only_a=len(block.a) - block.both,
                only_b=len(block.b) - block.both,
                neither=block.units - block.either,
            )
            rows.append(row)
        return rows

    def _summary(self) -> str:
        """The whole model in one line."""
        summary = (
            f"of the units that either keeps, both keep {self.overlap:.1%}; removed of prunable MACs "
            f"{self.mac_sparsity[0]:.1%} and {self.mac_sparsity[1]:.1%}, of prunable parameters "
            f"{self.param_sparsity[0]:.1%} and {self.param_sparsity[1]:.1%}"
        )
        first, second = self.digests
        if first == second:
            summary += "; the plans are the same"
        return summary

    def __str__(self) -> str:
        width = max(len(name) for name in self.blocks)
        lines = [f"{'':<{width}}  {'of':>6} {'A':>6} {'B':>6} {'both':>6}"]
        for name, block in self.blocks.items():
            line = f"{name:<{width}}  {block.units:>6} {len(block.a):>6} {len(block.b):>6} {block.both:>6}"
            # equal counts may be counts of different units
            if block.a != block.b:
                line += "  differs"
            lines.append(line)
        return "\n".join([*lines, self._summary()])

    def _repr_html_(self) -> str:
        rows = []
        for row in self._counts():
            cells = (row.block, row.unit, row.units, row.both, row.only_a, row.only_b, row.neither)
            rows.append([str(cell) for cell in cells])
        head = ("block", "unit", "units", "kept by both", "only by A", "only by B", "by neither")
        return Table(head=head, rows=rows, notes=(self._summary(),)).html()
