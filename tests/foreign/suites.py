"""Run test suites of other projects against pruned models, and compare what happens with the dense ones.

The suites are not part of this repository. A runner is given a folder with their source (`--suite-dir`), starts their
tests in another process with a plugin of `tests/foreign/plugins/` that puts pruned models in the place of dense ones,
and then once more without it. A test that passes on the dense model and not on the pruned one needs a reason in
`explained.toml`.
"""

import fnmatch
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent
EXPLAINED = FOLDER / "explained.toml"
#: Longer than any of the runs takes on two busy cores.
TIMEOUT_SECONDS = 3600
#: What a reason in `explained.toml` can be of.
KINDS = {
    "meaningless": "the test states what is true of dense models only",
    "refused": "hfprune refuses it on purpose",
    "limit": "not supported; the page on limits says so",
    "fault": "a fault of hfprune that is not mended yet",
    "random": "the test fails at random, on the dense model too",
}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one test: `passed`, `failed` or `skipped`, and the first line of why."""

    outcome: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Why tests may fail on pruned models: patterns for suite, model and test, and an expression for the error."""

    suite: str
    model: str
    test: str
    error: str
    kind: str
    reason: str

    def covers(self, failure: "Failure") -> bool:
        """Whether a failure is of this kind."""
        values = ((self.suite, failure.suite), (self.model, failure.model), (self.test, failure.test))
        named = all(fnmatch.fnmatchcase(value, pattern) for pattern, value in values)
        return named and re.search(self.error, failure.detail) is not None


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A test that does not do on the pruned model what it does on the dense one."""

    suite: str
    model: str
    test: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class Run:
    """One suite on one pruned model.

    Attributes:
        suite: The name of the suite.
        model: The model type.
        passed: Tests that pass on the pruned model.
        skipped: Tests that are skipped on both: they need an accelerator, a network, or another model.
        dense: Tests that fail on the dense model in the same way.
        explained: Failures with the explanation of each.
        unexplained: Failures without.
    """

    suite: str
    model: str
    passed: int
    skipped: int
    dense: list[Failure]
    explained: list[tuple[Failure, Explanation]]
    unexplained: list[Failure]


def explanations() -> list[Explanation]:
    """The reasons of `explained.toml`."""
    entries = tomllib.loads(EXPLAINED.read_text(encoding="utf-8"))["explained"]
    return [Explanation(**{"model": "*", "error": "", **entry}) for entry in entries]


def pytest_outcomes(
    folder: Path, tests: Sequence[str], *, plugins: Sequence[str], variables: Mapping[str, str]
) -> dict[str, Outcome]:
    """Run tests of another project in a process of their own.

    Args:
        folder: Where to start pytest.
        tests: Its arguments: files, and what to select.
        plugins: Modules of `tests/foreign/plugins/`.
        variables: Of the environment, beyond those that are set.

    Returns:
        By test.

    Raises:
        RuntimeError: pytest ended before it ran the tests.
    """
    with tempfile.TemporaryDirectory() as written:
        outcomes = Path(written) / "outcomes.json"
        paths = [str(FOLDER / "plugins"), str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "FOREIGN_OUTCOMES": str(outcomes),
            **variables,
        }
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:warnings"]
        for plugin in ("foreign_outcomes", *plugins):
            command += ["-p", plugin]
        done = subprocess.run(
            [*command, *tests],
            cwd=folder,
            env=environment,
            timeout=TIMEOUT_SECONDS,
            capture_output=True,
            text=True,
            check=False,
        )
        if not outcomes.exists():
            raise RuntimeError(f"pytest ended with {done.returncode} in {folder}:\n{done.stdout[-4000:]}{done.stderr}")
        found = json.loads(outcomes.read_text(encoding="utf-8"))
    if not found:
        raise RuntimeError(f"no test was selected by {list(tests)} in {folder}")
    return {test: Outcome(**value) for test, value in found.items()}


def on_both(
    suite: str,
    model: str,
    folder: Path,
    tests: Sequence[str],
    *,
    plugins: Sequence[str],
    pruned: Mapping[str, str],
    dense: Mapping[str, str],
    settings: Sequence[str] = (),
) -> Run:
    """Run tests on a pruned model, and those that do not pass on the dense one too.

    Args:
        suite: The name of the suite.
        model: The model type.
        folder: Where to start pytest.
        tests: Its arguments.
        plugins: Modules of `tests/foreign/plugins/`.
        pruned: Variables of the environment that let the tests find pruned models.
        dense: Those that let them find dense models.
        settings: Arguments of both runs.

    Returns:
        What became of them.
    """
    on_pruned = pytest_outcomes(folder, [*settings, *tests], plugins=plugins, variables=pruned)
    rest = [test for test, outcome in on_pruned.items() if outcome.outcome != "passed"]
    on_dense: dict[str, Outcome] = {}
    if rest:
        with tempfile.TemporaryDirectory() as written:
            # there may be too many for a command line
            listed = Path(written) / "tests"
            listed.write_text("\n".join(rest), encoding="utf-8")
            on_dense = pytest_outcomes(folder, [*settings, f"@{listed}"], plugins=plugins, variables=dense)
    return compared(suite, model, dense=on_dense, pruned=on_pruned)


def compared(suite: str, model: str, *, dense: Mapping[str, Outcome], pruned: Mapping[str, Outcome]) -> Run:
    """What the outcomes on a pruned model say, next to those on the dense one.

    Args:
        suite: The name of the suite.
        model: The model type.
        dense: Outcomes on the dense model, by test, of those that do not pass on the pruned one.
        pruned: Outcomes on the pruned model.

    Returns:
        The run.

    Examples:
        >>> passed, failed = Outcome(outcome="passed", detail=""), Outcome(outcome="failed", detail="ValueError: no")
        >>> run = compared("x", "bert", dense={"b": passed}, pruned={"a": passed, "b": failed})
        >>> run.passed, [failure.test for failure in run.unexplained]
        (1, ['b'])
    """
    passed = 0
    skipped = 0
    on_dense: list[Failure] = []
    explained: list[tuple[Failure, Explanation]] = []
    unexplained: list[Failure] = []
    reasons = explanations()
    for test, after in sorted(pruned.items()):
        before = dense.get(test, Outcome(outcome="missing", detail="it did not run"))
        failure = Failure(suite=suite, model=model, test=test.rpartition("::")[2], detail=after.detail)
        if after.outcome == "passed":
            passed += 1
        elif after.outcome == before.outcome == "skipped":
            skipped += 1
        elif after.outcome == before.outcome == "failed" and _error(before) == _error(after):
            on_dense.append(failure)
        else:
            covering = next((reason for reason in reasons if reason.covers(failure)), None)
            if covering is None:
                unexplained.append(failure)
            else:
                explained.append((failure, covering))
    return Run(
        suite=suite,
        model=model,
        passed=passed,
        skipped=skipped,
        dense=on_dense,
        explained=explained,
        unexplained=unexplained,
    )


def _error(outcome: Outcome) -> str:
    """The class of an error."""
    return outcome.detail.partition(":")[0]


def as_json(run: Run) -> dict:
    """A run for the file of results: counts, and one line for every kind of failure."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for failure in run.dense:
        reasons.setdefault(("dense", _dense_reason(failure)), []).append(failure.test)
    for failure, explanation in run.explained:
        reasons.setdefault((explanation.kind, explanation.reason), []).append(failure.test)
    for failure in run.unexplained:
        reasons.setdefault(("unexplained", failure.detail), []).append(failure.test)
    failures = [{"kind": kind, "reason": reason, "tests": tests} for (kind, reason), tests in reasons.items()]
    return {
        "suite": run.suite,
        "model": run.model,
        "passed": run.passed,
        "skipped": run.skipped,
        "failed": len(run.dense) + len(run.explained) + len(run.unexplained),
        "failures": failures,
    }


def _dense_reason(failure: Failure) -> str:
    return f"fails on the dense model too: {failure.detail}"


def write(run: Run, path: Path) -> None:
    """Put a run into a file of results, in the place of an earlier one of the same suite and model.

    Args:
        run: The run.
        path: The file; it need not exist.
    """
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []
    runs = [other for other in runs if (other["suite"], other["model"]) != (run.suite, run.model)]
    runs.append(as_json(run))
    runs.sort(key=lambda other: (other["suite"], other["model"]))
    path.write_text(json.dumps({"runs": runs}, indent=1) + "\n", encoding="utf-8")
