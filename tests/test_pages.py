"""Every code block of the site runs as it stands, on tiny models."""

import pytest

from tests.support.pages import ROOT, blocks_of, furnish, lines_of, read_page, run_block, run_line, run_page

PAGES = [read_page(path) for path in sorted((ROOT / "docs").rglob("*.md"))]
WITH_CODE = [page for page in PAGES if page.blocks]


@pytest.fixture(scope="module")
def furnished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("furnished")
    furnish(folder)
    return folder


@pytest.fixture
def home(furnished, tmp_path, monkeypatch):
    """A folder with the models and texts of the pages, as the current one."""
    for entry in furnished.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    return tmp_path


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.path.relative_to(ROOT / "docs")))
def test_the_code_of_a_page_runs(page, home, request):
    if page.settings.get("hub"):
        request.getfixturevalue("hub")
        code = f"""
from pathlib import Path
from tests.support.pages import read_page, run_page
run_page(read_page(Path({str(page.path)!r})))
"""
        request.getfixturevalue("client")(code)
    else:
        run_page(page)


def test_what_a_page_cannot_say(home):
    """The harness refuses what it could not check."""
    refused = {
        "py": "1",
        "python": "assert False",
        "json": "{",
        "bash": "curl example.org",
    }
    for language, code in refused.items():
        (block,) = blocks_of(f"```{language}\n{code}\n```\n")
        with pytest.raises((AssertionError, ValueError)):
            run_block(block, {})
    for line in (
        "hfprune prune",
        "make nothing",
        "pip install 'hfprune[nothing]'",
        "python benchmarks/scoring.py --no",
    ):
        with pytest.raises(AssertionError):
            run_line(lines_of(line)[0])
