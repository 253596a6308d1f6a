"""Pruning plans: which units stay in each block. A plan holds no tensors and can be written as JSON."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from hfprune.errors import PlanMismatchError
from hfprune.measuring.latency_table import PredictedLatency
from hfprune.planning.block_plan import BlockPlan, unit_in_json
from hfprune.planning.compare import ComparedBlock, Comparison
from hfprune.showing.picture import ThemeName, save_picture, theme_of
from hfprune.showing.tables import Table, bar_of, data_frame
from hfprune.showing.units import UnitRow, draw_kept, layer_number
from hfprune.structure.arguments import TEXT, finite, instance, whole
from hfprune.structure.blocks import Block, attention_unit_of, check_attention_unit, sequence_length_of
from hfprune.structure.json_text import read_json
from hfprune.structure.specs import AttentionUnit, Kind

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

FORMAT_VERSION = 1
#: A message shows at most so many indices.
_SHOWN_UNITS = 8


@dataclass(frozen=True, kw_only=True)
class PruningPlan:
    """Which units stay, block by block.

    Units are numbered as in the model that the plan is for. In a plan that is attached to a pruned model, or published,
    they are numbered as in the dense model: the model before any pruning.

    Attributes:
        model_type: The dense model's type.
        sequence_length: Tokens in a sequence, for the multiply-adds.
        blocks: The plan of each block by name, in the order in which the blocks run.
        predicted: What a latency table says of the pruned model, if the plan was made by one.

    Examples:
        >>> from hfprune.planning import BlockPlan, PruningPlan
        >>> block = BlockPlan(kind="ffn", units=4, kept=(0, 3), unit_params=9, unit_macs=64, unit="neuron")
        >>> plan = PruningPlan(model_type="bert", sequence_length=8, blocks={"encoder.layer.0.ffn": block})
        >>> plan.sparsity("params")
        0.5
        >>> print(plan)
        encoder.layer.0.ffn      2 of 4      ██████████░░░░░░░░░░
        removed 50.0% of prunable MACs (sequences of 8 tokens), 50.0% of prunable parameters; digest dcd8b30400da
        >>> PruningPlan.from_json(plan.to_json()) == plan
        True
    """

    model_type: str
    sequence_length: int
    blocks: Mapping[str, BlockPlan]
    # plans that keep the same units are equal, whoever predicts what
    predicted: PredictedLatency | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        blocks = {}
        for name, block in self.blocks.items():
            # NumPy's and torch's whole numbers are none to JSON
            whole_block = replace(block, kept=_whole_numbers(name, block.kept))
            _check_kept(name, whole_block)
            blocks[name] = whole_block
            if block.unit is None:
                blocks[name] = replace(whole_block, unit=unit_in_json(name, block.kind))
        object.__setattr__(self, "blocks", blocks)

    @classmethod
    def keep(
        cls, blocks: Sequence[Block], kept: Mapping[str, Sequence[int]], *, model_type: str, sequence_length: int
    ) -> "PruningPlan":
        """The plan that keeps these units. A block that `kept` does not name keeps all its units.

        The plan counts for `sequence_length` tokens, or for as many as the input of the model fixes.

        Args:
            blocks: The blocks of the model.
            kept: By block name, the increasing indices of the units that stay.
            model_type: The dense model's type.
            sequence_length: Tokens in a sequence, for the multiply-adds.

        Returns:
            The plan.

        Raises:
            ValueError: `kept` names no block of the model, or indices are no increasing whole numbers within the block.
        """
        TEXT.check("model_type", model_type)
        whole(least=1).check("sequence_length", sequence_length)
        sequence_length = sequence_length_of(blocks, sequence_length)
        names = [block.name for block in blocks]
        instance("a mapping from names of blocks to units", Mapping).check("kept", kept)
        for name in kept:
            if name not in names:
                raise ValueError(f"kept names {name!r}, which is no block of the model. Blocks: {', '.join(names)}.")
        plans = {}
        for block in blocks:
            plans[block.name] = BlockPlan(
                kind=block.kind,
                unit=block.unit,
                units=block.units,
                kept=_whole_numbers(block.name, kept.get(block.name, range(block.units))),
                unit_params=block.unit_params,
                unit_macs=block.unit_macs(sequence_length),
                unit_cache_bytes=block.unit_cache_bytes,
                heads=_recorded_heads(block),
            )
        return cls(model_type=model_type, sequence_length=sequence_length, blocks=plans)

    @property
    def kept(self) -> dict[str, tuple[int, ...]]:
        """The indices of the units that stay, by block name."""
        return {name: block.kept for name, block in self.blocks.items()}

    @property
    def units_before(self) -> dict[str, int]:
        """The number of units before pruning, by block name."""
        return {name: block.units for name, block in self.blocks.items()}

    @property
    def units_after(self) -> dict[str, int]:
        """The number of units that stay, by block name."""
        return {name: len(block.kept) for name, block in self.blocks.items()}

    @property
    def attention_unit(self) -> AttentionUnit:
        """The unit of attention with shared key/value heads: `group`, or `query` for single query heads."""
        return attention_unit_of(block.unit for block in self.blocks.values())

    @property
    def counts(self) -> dict[str, tuple[int, int]]:
        """The numbers of units after and before pruning, `(kept, before)` by block name."""
        return {name: (len(block.kept), block.units) for name, block in self.blocks.items()}

    def cost(self, budget: str) -> tuple[int, int]:
        """The cost of all units after and before pruning, `(kept, before)`, in a budget."""
        cost_kept = 0
        cost_before = 0
        for block in self.blocks.values():
            unit_cost = block.unit_cost(budget)
            cost_kept += len(block.kept) * unit_cost
            cost_before += block.units * unit_cost
        return cost_kept, cost_before

    def sparsity(self, budget: str = "macs") -> float:
        """The fraction of the prunable cost that is removed, in [0, 1]."""
        kept, before = self.cost(budget)
        # such as the key/value cache of an encoder
        if not before:
            return 0.0
        return 1 - kept / before

    @property
    def digest(self) -> str:
        """SHA-256 of the kept indices and the numbers of units: plans that keep the same have the same digest."""
        essence = {name: [block.units, list(block.kept)] for name, block in sorted(self.blocks.items())}
        text = json.dumps(essence, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def then(self, second: "PruningPlan") -> "PruningPlan":
        """Compose two plans: the result keeps the units that stay when this plan and then `second` are applied.

        Args:
            second: A plan for the model that this plan makes, with the units numbered as in that smaller model.

        Returns:
            A plan with the units numbered as in this plan.

        Raises:
            PlanMismatchError: `second` is not for the model that this plan makes.
        """
        check_match(second, self.units_after, attention_unit=self.attention_unit)
        blocks = {}
        for name, block in self.blocks.items():
            kept = tuple(block.kept[unit] for unit in second.blocks[name].kept)
            blocks[name] = replace(block, kept=kept)
        return replace(self, blocks=blocks, predicted=second.predicted)

    def to_json(self) -> str:
        """The plan as JSON. Each block has a line of its own, so that two plans can be compared with `diff`."""
        lines = []
        for name, block in self.blocks.items():
            lines.append(f"  {json.dumps(name)}: {json.dumps(block.to_fields())}")
        head: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "model_type": self.model_type,
            "sequence_length": self.sequence_length,
            "digest": self.digest,
        }
        heads = {name: block.heads for name, block in self.blocks.items() if block.heads is not None}
        if heads:
            # here and not in the blocks, where earlier versions of hfprune refuse fields that they do not know
            head["heads"] = heads
        if self.predicted is not None:
            head["predicted"] = asdict(self.predicted)
        # json.dumps has no layout with one line for each block, so the closing brace is cut off and written again below
        opening = json.dumps(head, indent=1)[:-2]
        return opening + ',\n "blocks": {\n' + ",\n".join(lines) + "\n }\n}\n"

    @classmethod
    def from_json(cls, text: str) -> "PruningPlan":
        """Read a plan that `to_json` wrote.

        Args:
            text: JSON.

        Returns:
            The plan.

        Raises:
            ValueError: The text is not a plan, has a newer format, or its digest does not match its content.
        """
        try:
            data = read_json(text)
        except ValueError as error:
            raise ValueError(f"not a pruning plan: {type(error).__name__}: {error}") from error
        try:
            version = data["format_version"]
            if version != FORMAT_VERSION:
                raise ValueError(
                    f"the pruning plan has format_version {version!r:.50}, this hfprune reads {FORMAT_VERSION}: "
                    "upgrade it (pip install -U hfprune)."
                )
            blocks = {}
            heads = data.get("heads", {})
            for name, fields in data["blocks"].items():
                blocks[name] = BlockPlan.from_fields(name, fields, heads=heads.get(name))
                _check_values(name, blocks[name], data["sequence_length"])
            plan = cls(
                model_type=data["model_type"],
                sequence_length=data["sequence_length"],
                blocks=blocks,
                predicted=_predicted(data.get("predicted")),
            )
        # files come from strangers, so every way in which their JSON can be wrong gets the same clear error
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"not a pruning plan: {type(error).__name__}: {error}") from error
        # a plan without a digest is one that was edited on purpose
        if data.get("digest", plan.digest) != plan.digest:
            raise ValueError(
                f"the pruning plan was changed: its digest says {data['digest'][:12]}..., its content gives "
                f"{plan.digest[:12]}... Restore the file, or delete the digest if the change was meant."
            )
        return plan

    def __str__(self) -> str:
        width = max(len(name) for name in self.blocks)
        lines = []
        for name, (kept, before) in self.counts.items():
            # a block that was removed by an earlier pruning had no units before this one
            lines.append(f"{name:<{width}}  {kept:>5} of {before:<5}  {bar_of(kept / max(before, 1))}")
        return "\n".join([*lines, self._summary()])

    def _repr_html_(self) -> str:
        rows = []
        for name, block in self.blocks.items():
            kept = len(block.kept)
            rows.append([name, block.unit_name, f"{kept:,}", f"{block.units:,}", bar_of(kept / max(block.units, 1))])
        return Table(head=("block", "unit", "kept", "of", "share"), rows=rows, notes=(self._summary(),)).html()

    def _summary(self) -> str:
        """What the plan removes of the whole model, in one line."""
        cache = ""
        if self.cost("kv_cache")[1]:
            cache = f", {self.sparsity('kv_cache'):.1%} of its key/value cache"
        predicted = ""
        if self.predicted is not None:
            predicted = f"; {self.predicted}"
        return (
            f"removed {self.sparsity('macs'):.1%} of prunable MACs (sequences of {self.sequence_length} tokens), "
            f"{self.sparsity('params'):.1%} of prunable parameters{cache}{predicted}; digest {self.digest[:12]}"
        )

    def to_pandas(self) -> "DataFrame":
        """The plan as a data frame, with a row for each block.

        Returns:
            Columns `block`, `layer` (its number), `kind`, `unit` (what one unit is), `units` (before pruning), `kept`
            (how many), `share` (of the units that is kept; NaN where there were none), and the numbers of
            `params_removed`, `macs_removed` (multiply-adds for one sequence) and `cache_bytes_removed` (for one token).

        Examples:
            >>> from hfprune.planning import BlockPlan, PruningPlan
            >>> block = BlockPlan(kind="ffn", units=4, kept=(0, 3), unit_params=9, unit_macs=64)
            >>> plan = PruningPlan(model_type="bert", sequence_length=8, blocks={"encoder.layer.0.ffn": block})
            >>> plan.to_pandas()[["layer", "unit", "units", "kept", "share", "params_removed"]].values.tolist()
            [[0, 'neuron', 4, 2, 0.5, 18]]
        """
        rows = []
        for name, block in self.blocks.items():
            kept = len(block.kept)
            removed = block.units - kept
            row = {
                "block": name,
                "layer": layer_number(name),
                "kind": block.kind,
                "unit": block.unit_name,
                "units": block.units,
                "kept": kept,
                # a block that was removed by an earlier pruning had no units before this one
                "share": kept / block.units if block.units else math.nan,
                "params_removed": removed * block.unit_params,
                "macs_removed": removed * block.unit_macs,
                "cache_bytes_removed": removed * block.unit_cache_bytes,
            }
            rows.append(row)
        return data_frame(rows)

    def plot(self, path: str | Path | None = None, *, theme: ThemeName = "light") -> "Figure":
        """Draw which units are kept: a panel for each kind of block, a row for each layer, neurons in runs.

        Args:
            path: A file to write the picture into, as PNG, SVG or PDF by its suffix; None: no file.
            theme: `light` or `dark`.

        Returns:
            The figure of matplotlib, which a notebook shows.

        Raises:
            MissingDependencyError: Matplotlib is not installed.
            ValueError: The file has another suffix, or the theme is unknown.

        Examples:
            >>> from hfprune.planning import BlockPlan, PruningPlan
            >>> block = BlockPlan(kind="ffn", units=4, kept=(0, 3), unit_params=9, unit_macs=64)
            >>> plan = PruningPlan(model_type="bert", sequence_length=8, blocks={"encoder.layer.0.ffn": block})
            >>> figure = plan.plot()
            >>> figure.axes[0].get_title()
            'feed-forward: neurons'
        """
        rows = []
        for name, block in self.blocks.items():
            kept = set(block.kept)
            values = [float(unit in kept) for unit in range(block.units)]
            rows.append(
                UnitRow(block=name, unit=block.unit_name, values=values, note=f"{len(kept):,} of {block.units:,}")
            )
        return save_picture(draw_kept(rows, theme_of(theme)), path)

    def compare(self, other: "PruningPlan") -> Comparison:
        """Which units this plan keeps and another plan for the same dense model does not, and the other way round.

        Args:
            other: The plan that is B in the comparison; this one is A.

        Returns:
            The comparison, which prints as a table.

        Raises:
            PlanMismatchError: The plans are not for the same dense model.

        Examples:
            >>> from dataclasses import replace
            >>> from hfprune.planning import BlockPlan, PruningPlan
            >>> block = BlockPlan(kind="ffn", units=4, kept=(0, 3), unit_params=9, unit_macs=64)
            >>> plan = PruningPlan(model_type="bert", sequence_length=8, blocks={"encoder.layer.0.ffn": block})
            >>> other = replace(plan, blocks={"encoder.layer.0.ffn": replace(block, kept=(0, 1))})
            >>> plan.compare(other).overlap
            0.3333333333333333
        """
        _check_same_model(self.units_before, other.units_before)
        blocks = {}
        for name, block in self.blocks.items():
            kept_by_other = other.blocks[name].kept
            blocks[name] = ComparedBlock(unit=block.unit_name, units=block.units, a=block.kept, b=kept_by_other)
        return Comparison(
            blocks=blocks,
            mac_sparsity=(self.sparsity("macs"), other.sparsity("macs")),
            param_sparsity=(self.sparsity("params"), other.sparsity("params")),
            digests=(self.digest, other.digest),
        )


def _predicted(fields: Any) -> PredictedLatency | None:
    """The prediction in a file, which comes from a stranger."""
    if fields is None:
        return None
    for name in ("pruned_ms", "dense_ms"):
        finite(above=0).check(f"the plan's {name}", fields[name])
    return PredictedLatency(pruned_ms=fields["pruned_ms"], dense_ms=fields["dense_ms"])


def _recorded_heads(block: Block) -> int | None:
    """Query heads in one unit, where it is not plain that there is one: without a cache, few models let heads share."""
    if block.heads > 1 or block.unit_cache_bytes:
        return block.heads
    return None


def _whole_numbers(name: str, kept: Sequence[int]) -> tuple[int, ...]:
    """Indices as Python's whole numbers; refuses numbers with a fraction, truth values and texts."""
    numbers: list[int] = []
    if isinstance(kept, (str, bytes)) or not isinstance(kept, Iterable):
        raise ValueError(
            f"the plan of block {name!r} must keep a list of the units that stay, got {kept!r:.50}. Leave the block "
            "out to keep all its units; [] removes them all."
        )
    for unit in kept:
        if isinstance(unit, bool) or not hasattr(unit, "__index__"):
            raise ValueError(f"the plan of block {name!r} must keep whole numbers, got {unit!r:.50} among the indices.")
        numbers.append(index(unit))
    return tuple(numbers)


def _check_kept(name: str, block: BlockPlan) -> None:
    """Refuse indices that do not increase, or are out of range."""
    kept = block.kept
    increases = all(unit < following for unit, following in pairwise(kept))
    in_range = not kept or (kept[0] >= 0 and kept[-1] < block.units)
    if increases and in_range:
        return
    shown = str(list(kept[:_SHOWN_UNITS]))
    if len(kept) > _SHOWN_UNITS:
        shown += " ..."
    raise ValueError(
        f"the plan of block {name!r} must keep increasing indices from 0 to {block.units - 1}, got {shown}."
    )


def _check_values(name: str, block: BlockPlan, sequence_length: int) -> None:
    """Refuse a file whose numbers are not whole ones from 0, or whose block is of an unknown kind."""
    numbers = (block.units, block.unit_params, block.unit_macs, sequence_length, *block.kept)
    if block.heads is not None:
        numbers += (block.heads,)
    # by type: in JSON `true` is no number, but Python takes it for the int 1
    wrong = [number for number in numbers if type(number) is not int or number < 0]
    kinds = get_args(Kind)
    if wrong or block.kind not in kinds:
        raise ValueError(
            f"not a pruning plan: block {name!r:.100} must be of kind {' or '.join(kinds)}, got {block.kind!r:.50},"
            f" and its numbers whole ones from 0, got {wrong[:3]!r:.100}."
        )


def _check_same_model(units_of_a: Mapping[str, int], units_of_b: Mapping[str, int]) -> None:
    """Refuse plans of models with other blocks, or with blocks of other sizes."""
    for name in [*units_of_a, *units_of_b]:
        first = units_of_a.get(name, "no")
        second = units_of_b.get(name, "no")
        if first != second:
            raise PlanMismatchError(
                f"the plans are not for the same dense model: {name!r} has {first} units in the first and "
                f"{second} in the second."
            )


def check_match(plan: PruningPlan, units: Mapping[str, int], *, attention_unit: AttentionUnit) -> None:
    """Refuse a plan that was made for other blocks.

    Args:
        plan: The plan.
        units: By block name, the number of units in the model.
        attention_unit: The unit of attention in the model.

    Raises:
        PlanMismatchError: Block names or numbers of units differ.
    """
    check_attention_unit(plan.attention_unit, attention_unit)
    if set(plan.blocks) != set(units):
        raise PlanMismatchError(
            f"the plan is for a {plan.model_type} model with {len(plan.blocks)} blocks, this model has {len(units)}: "
            f"{_differing_names(plan, units)}. Score this model and make a plan of its own."
        )
    for name, block in plan.blocks.items():
        units_here = units[name]
        if units_here == block.units:
            continue
        if units_here < block.units:
            cause = (
                f"The model is already pruned ({units_here} of {block.units}). Apply the plan to the dense model, or "
                "score this one again."
            )
        else:
            cause = "It is for a smaller model, or for this one after pruning: combine plans with first.then(second)."
        raise PlanMismatchError(
            f"block {name!r} has {units_here} units in this model, but the plan was made for {block.units}. {cause}"
        )


def _differing_names(plan: PruningPlan, units: Mapping[str, int]) -> str:
    """One block name that only the plan has, and one that only the model has, in words."""
    only_in_plan = sorted(set(plan.blocks) - set(units))
    only_in_model = sorted(set(units) - set(plan.blocks))
    parts = []
    if only_in_plan:
        parts.append(f"the model has no {only_in_plan[0]!r}")
    if only_in_model:
        parts.append(f"the plan lacks {only_in_model[0]!r}")
    return "; ".join(parts)
