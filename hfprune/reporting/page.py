"""A checkpoint on one page of HTML: what it keeps, what it costs, how it was made.

The page needs no network and runs no code: its style and its pictures are inside the file, and a policy in its head
forbids everything else.
"""

import base64
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, Template

from hfprune.errors import CheckpointError
from hfprune.planning.plan import PruningPlan
from hfprune.publishing.card import Row, comparison_rows, published_stage, task_of, title_of
from hfprune.publishing.contents import PLAN_FILE
from hfprune.publishing.exports import export_rows, exports_of_weights
from hfprune.publishing.record import PruningRecord, record_in
from hfprune.publishing.verification import verify, what_was_checked
from hfprune.showing.files import write_whole
from hfprune.showing.picture import can_draw, drawn
from hfprune.showing.units import place_of, plural_of
from hfprune.sweeping.curve import Sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The themes that a picture is drawn in; the browser takes the one that the reader prefers.
_THEMES = ("light", "dark")
#: The rows of costs that stand at the head of the page; the others stand in the table only.
_MAIN_COSTS = ("parameters", "MACs", "latency")


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A number of the head of the page.

    Attributes:
        name: What is measured.
        value: Its value for the published model.
        note: The value of the dense model, or the change.
    """

    name: str
    value: str
    note: str


@dataclass(frozen=True, kw_only=True)
class Kept:
    """How much of one block stays.

    Attributes:
        layer: The number of the layer, as text.
        kept: Units that stay.
        units: Units of the dense model.
    """

    layer: str
    kept: int
    units: int

    @property
    def percent(self) -> float:
        """The share that stays, in percent."""
        return 100 * self.kept / self.units


def write_report(folder: str | Path, path: str | Path, *, sweep: str | Path | None = None) -> Path:
    """Write the page about a checkpoint.

    Args:
        folder: The checkpoint, as `hfprune.save` wrote it.
        path: The HTML file. An old one is replaced.
        sweep: A file of `Sweep.save`; its curve then stands on the page.

    Returns:
        The file.

    Raises:
        CheckpointError: The folder is no checkpoint of hfprune, or `verify` finds something wrong in it.
        ValueError: The file of the sweep is none, or of another model.

    Examples:
        >>> import hfprune
        >>> from hfprune.reporting import write_report
        >>> small = hfprune.prune(dense, dataset, config, collator=collator)
        >>> folder = hfprune.save(small, "small")
        >>> page = write_report(folder, "report.html").read_text()
        >>> "Where units were removed" in page
        True
    """
    page = draw_report(folder, sweep=sweep)
    return write_whole(Path(path), page.encode())


def draw_report(folder: str | Path, *, sweep: str | Path | None = None) -> str:
    """The page about a checkpoint, as text.

    Args:
        folder: The checkpoint, as `hfprune.save` wrote it.
        sweep: A file of `Sweep.save`; its curve then stands on the page.

    Returns:
        HTML.

    Raises:
        CheckpointError: The folder is no checkpoint of hfprune, or `verify` finds something wrong in it.
        ValueError: The file of the sweep is none, or of another model.

    Examples:
        >>> import hfprune
        >>> from hfprune.reporting import draw_report
        >>> small = hfprune.prune(dense, dataset, config, collator=collator)
        >>> folder = hfprune.save(small, "small")
        >>> draw_report(folder).startswith("<!doctype html>")
        True
    """
    folder = Path(folder)
    # before the checkpoint is read, which takes longer
    curve = None
    if sweep is not None:
        curve = Sweep.from_json(Path(sweep).read_text(encoding="utf-8"))
    problems = verify(folder)
    if problems:
        raise CheckpointError(f"{folder}: {problems[0]}. A report is drawn of a sound checkpoint only.")
    record = record_in(folder)
    plan = PruningPlan.from_json((folder / PLAN_FILE).read_text(encoding="utf-8"))
    stage = published_stage(record)
    rows = comparison_rows(record, stage)
    if curve is not None:
        _check_same_model(curve, record)
    return _template().render(
        name=title_of(record, folder.resolve().name),
        record=record,
        checked=what_was_checked(folder),
        auto_class=task_of(record.model_class)[1],
        is_portable=not (folder / "modeling_pruned.py").is_file(),
        mac_sparsity=plan.sparsity("macs"),
        param_sparsity=plan.sparsity("params"),
        tiles=_tiles(rows, record.metrics.get("dense", {})),
        rows=rows,
        stage=stage,
        families=_families(plan),
        curve=_curve(curve) if curve is not None else None,
        latencies=_latencies(record),
        exports=export_rows(exports_of_weights(record.exports, record.files)),
        rounds=record.rounds,
        settings=_settings(record.config),
        recovery=_settings(record.recovery),
        versions=record.versions,
    )


def _check_same_model(sweep: Sweep, record: PruningRecord) -> None:
    """Refuse the sweep of another model, as far as the numbers of parameters tell."""
    swept = sweep.dense.size.params
    sizes = record.sizes.values()
    known = [size["params"] for size in sizes]
    if known and swept not in known:
        raise ValueError(
            f"the sweep began with a model of {swept:,} parameters, and the checkpoint was cut from one of "
            f"{known[0]:,}: name a sweep of the same model, or leave it out."
        )


def _tiles(rows: list[Row], metrics: Collection[str]) -> list[Tile]:
    """The first metric and the main costs, as the head of the page shows them."""
    tiles = []
    for position, (name, dense, published, change) in enumerate(rows):
        # how it was measured stands in the tables below
        short = name.partition(" (")[0]
        if short in _MAIN_COSTS or (position == 0 and name in metrics):
            tiles.append(Tile(name=short, value=published, note=f"{change.partition(';')[0]} (dense: {dense})"))
    return tiles


def _families(plan: PruningPlan) -> dict[str, list[Kept]]:
    """By the kind of block, how many units of each layer stay."""
    families: dict[str, list[Kept]] = {}
    for name, block in plan.blocks.items():
        place = place_of(name)
        title = f"{place.family}: {plural_of(block.unit_name)}"
        kept = Kept(layer=place.layer or "all", kept=len(block.kept), units=block.units)
        families.setdefault(title, []).append(kept)
    return families


def _latencies(record: PruningRecord) -> list[Mapping[str, Any]]:
    """The latencies of the dense and of the pruned model, with the name of the stage."""
    return [{"stage": stage, **values} for stage, values in record.latencies.items() if values]


def _settings(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Settings in words; those that are empty say nothing."""
    return [(name, str(value)) for name, value in values.items() if value not in (None, "", [], {})]


def _curve(sweep: Sweep) -> dict[str, Any]:
    """The picture of a sweep in both themes, if matplotlib is installed, and its table."""
    pictures = {}
    if can_draw():
        pictures = {theme: _as_address(sweep.plot(theme=theme)) for theme in _THEMES}  # type: ignore[arg-type]
    return {"table": sweep.table(), "pictures": pictures}


def _as_address(figure: "Figure") -> str:
    """A figure as an address that holds the picture itself."""
    content = base64.b64encode(drawn(figure, ".svg")).decode()
    return f"data:image/svg+xml;base64,{content}"


@cache
def _template() -> Template:
    """The template of the page. Every text that it is filled with is escaped."""
    path = resources.files("hfprune.reporting").joinpath("page.html")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(path.read_text(encoding="utf-8"))
