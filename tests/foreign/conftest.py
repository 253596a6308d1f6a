"""What the tests that run other projects' suites are given."""

from pathlib import Path

import pytest

from tests.foreign.suites import write


@pytest.fixture
def suite_dir(request) -> Path:
    """The folder with the source of a suite."""
    given = request.config.getoption("--suite-dir")
    if given is None:
        pytest.skip("needs the source of another project: --suite-dir DIR, see CONTRIBUTING.md")
    return Path(given).resolve()


@pytest.fixture
def checked(request):
    """Write a run into the file of results, where one is asked for, and demand a reason for every failure."""
    results = request.config.getoption("--suite-results")

    def check(run) -> None:
        if results is not None:
            write(run, Path(results))
        assert run.passed + len(run.unexplained) > 0
        assert not run.unexplained

    return check
