"""The figures of the site are those that docs/figures/draw.py draws, and pages show each of them with its words."""

import re
import runpy
import sys
from itertools import product

import pytest

from tests.support.pages import ROOT

FIGURES = ROOT / "docs" / "figures"
#: Points; readers see figures at the width of a column.
SMALLEST = 9.0
_IMAGE = re.compile(r"!\[(?P<words>[^\]]*)\]\((?P<path>[^)#]+\.svg)(?P<theme>#only-\w+)?\)")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
#: A name that matplotlib makes from a digest of a shape: the last digit of a number changes it.
_DIGEST = re.compile(r"\b[mph][0-9a-f]{10}\b")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder with all figures, drawn now, and what drew them."""
    folder = tmp_path_factory.mktemp("figures")
    with pytest.MonkeyPatch.context() as patch:
        # the script imports its neighbours, as a script does
        patch.setattr(sys, "path", [str(FIGURES), *sys.path])
        script = runpy.run_path(str(FIGURES / "draw.py"))
        script["draw_all"](folder)
        for name in ("measured", "schematic", "style"):
            patch.delitem(sys.modules, name)
    return folder


def parts(svg):
    """The SVG without its numbers, and the numbers."""
    text = _DIGEST.sub("name", svg.read_text(encoding="utf-8"))
    return _NUMBER.sub("0", text), [float(number) for number in _NUMBER.findall(text)]


def test_figures_are_as_drawn(drawn):
    """Numbers may differ in their last digits, which processors round differently."""
    for path in sorted(drawn.iterdir()):
        name = path.name
        assert (FIGURES / name).is_file(), f"{name} is not committed: run `python docs/figures/draw.py`"
        frame, numbers = parts(FIGURES / name)
        frame_now, numbers_now = parts(drawn / name)
        assert frame == frame_now, f"{name} is out of date: run `python docs/figures/draw.py`"
        assert numbers == pytest.approx(numbers_now, abs=0.01), f"{name} is out of date: run docs/figures/draw.py"


def test_a_changed_number_is_seen(drawn, tmp_path):
    """The comparison is not so coarse that a point may move, or words may change."""
    original = drawn / "rounds-measured-light.svg"
    text = original.read_text(encoding="utf-8")
    moved = tmp_path / "moved.svg"
    moved.write_text(text.replace("L 504 ", "L 503.9 ", 1), encoding="utf-8")
    assert parts(moved)[0] == parts(original)[0]
    assert parts(moved)[1] != pytest.approx(parts(original)[1], abs=0.01)
    worded = tmp_path / "worded.svg"
    worded.write_text(text.replace("dense model", "other model", 1), encoding="utf-8")
    assert parts(worded)[0] != parts(original)[0]


def test_figures_are_legible_and_load_nothing(drawn):
    for path in drawn.iterdir():
        text = path.read_text(encoding="utf-8")
        sizes = [float(size) for size in re.findall(r"font-size: ([\d.]+)px", text)]
        sizes += [float(size) for size in re.findall(r"font: (?:\w+ )*?([\d.]+)px", text)]
        assert min(sizes) >= SMALLEST, path.name
        assert not re.search(r'href="(?!#)|url\((?!#)|<script', text), path.name


def test_every_figure_is_shown_in_both_themes_with_words(drawn):
    names_drawn = {path.name for path in drawn.iterdir()}
    shown = {}
    for page in (ROOT / "docs").rglob("*.md"):
        for image in _IMAGE.finditer(page.read_text(encoding="utf-8")):
            path = (page.parent / image["path"]).resolve()
            if path.parent != FIGURES:
                continue
            assert path.is_file(), f"{page.name} shows {path.name}, which is not there"
            theme = path.stem.rpartition("-")[2]
            assert image["theme"] == f"#only-{theme}", f"{page.name}: {path.name}"
            assert len(image["words"].split()) >= 8, f"{page.name}: {path.name} needs words for those who cannot see it"
            shown.setdefault(page, set()).add(path.stem)
    for page, stems in shown.items():
        names = {stem.rpartition("-")[0] for stem in stems}
        pairs = {f"{name}-{theme}" for name, theme in product(names, ("light", "dark"))}
        assert stems == pairs, page.name
    names_shown = {f"{stem}.svg" for stems in shown.values() for stem in stems}
    assert names_drawn <= names_shown
