"""Every code block of the site runs as it stands, on tiny models."""

from pathlib import Path

import pytest

from tests.support.pages import ROOT, blocks_of, furnish, lines_of, read_page, run_block, run_line, run_page
from tests.support.registries import restored

PAGES = [read_page(path) for path in sorted((ROOT / "docs").rglob("*.md"))]
WITH_CODE = [page for page in PAGES if page.blocks]
#: Pages whose Python needs a package that the tests do not install, and the test that runs it where it is installed.
ELSEWHERE = {"how-to/evaluate-with-lm-eval.md": "tests/test_language_models_page.py needs lm-eval"}


@pytest.fixture(scope="module")
def furnished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("furnished")
    furnish(folder)
    return folder


@pytest.fixture(autouse=True)
def _registries_as_before():
    """What a page registers is gone after it: other tests list what is known."""
    with restored():
        yield


@pytest.fixture
def home(furnished, tmp_path, monkeypatch):
    """A folder with the models and texts of the pages, as the current one."""
    for entry in furnished.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    return tmp_path


def name_of(page):
    return page.path.relative_to(ROOT / "docs").as_posix()


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_the_code_of_a_page_runs(page, home, request):
    for package in page.settings.get("packages", ()):
        pytest.importorskip(package)
    if name_of(page) in ELSEWHERE:
        # everything but the Python, which another test runs
        for block in page.blocks:
            if block.language != "python":
                run_block(block, {})
        return
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


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_runs_elsewhere_is_run_there(name):
    assert name in {name_of(page) for page in WITH_CODE}
    test = ROOT / ELSEWHERE[name].split()[0]
    assert Path(name).name in test.read_text(encoding="utf-8")


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
        "python -m zipfile --no",
    ):
        with pytest.raises(AssertionError):
            run_line(lines_of(line)[0])
