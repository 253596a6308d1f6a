"""Draw the figures of the site: `python docs/figures/draw.py`. A test fails when one is out of date.

Every figure is drawn twice, for light and for dark pages, as `NAME-light.svg` and `NAME-dark.svg`.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import measured
import schematic
from matplotlib.figure import Figure
from style import THEMES, Theme, settings, svg_of

#: By name of a figure, what draws it.
FIGURES: Mapping[str, Callable[[Theme], Figure]] = {
    "allocations-measured": measured.allocations_measured,
    "pipeline": schematic.pipeline,
    "reconstruction": schematic.reconstruction,
    "recovery-measured": measured.recovery_measured,
    "rounds": schematic.rounds,
    "rounds-measured": measured.rounds_measured,
    "scorers-measured": measured.scorers_measured,
    "surgery": schematic.surgery,
    "unit-groups": schematic.unit_groups,
    "unit-head": schematic.unit_head,
    "unit-neuron": schematic.unit_neuron,
}


def draw_all(folder: Path) -> None:
    """Draw every figure in every theme.

    Args:
        folder: Where the SVG files go.
    """
    for name, draw in FIGURES.items():
        for theme in THEMES:
            with settings(theme):
                text = svg_of(draw(theme))
            (folder / f"{name}-{theme.name}.svg").write_text(text, encoding="utf-8")


def main() -> None:
    """Read the folder from the command line, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent, help="Where the SVG files go.")
    draw_all(parser.parse_args().folder)


if __name__ == "__main__":
    main()
