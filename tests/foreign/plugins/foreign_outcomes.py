"""A plugin for pytest in another project: what became of every test, as one JSON file."""

import json
import os
from pathlib import Path

#: Where the outcomes are written.
FILE = "FOREIGN_OUTCOMES"
#: The words for outcomes, the worst first.
WORST = ("failed", "skipped", "passed")


class Outcomes:
    """By test: the worst outcome of its phases and subtests, and what it says of it."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}
        self.details: dict[str, str] = {}

    def add(self, test: str, outcome: str, detail: str) -> None:
        before = self.outcomes.get(test, "passed")
        worst = min(before, outcome, key=WORST.index)
        self.outcomes[test] = worst
        # the first that went wrong says most
        is_news = worst != before or test not in self.details
        if is_news and detail:
            self.details[test] = detail

    def pytest_runtest_logreport(self, report) -> None:
        self.add(report.nodeid, report.outcome, _detail(report))

    def pytest_collectreport(self, report) -> None:
        # a module that cannot be imported has no tests, and must not look like one that passes
        if report.failed:
            self.add(report.nodeid, "failed", _last_line(str(report.longrepr)))

    def pytest_sessionfinish(self) -> None:
        tests = {}
        for test, outcome in self.outcomes.items():
            tests[test] = {"outcome": outcome, "detail": self.details.get(test, "")}
        Path(os.environ[FILE]).write_text(json.dumps(tests, indent=1), encoding="utf-8")


def _detail(report) -> str:
    """Why a test failed or was skipped, in one line."""
    if report.skipped:
        # a place and a reason
        return str(report.longrepr[-1]) if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not report.failed:
        return ""
    crash = getattr(report.longrepr, "reprcrash", None)
    message = crash.message if crash is not None else str(report.longrepr)
    return next((line for line in message.splitlines() if line.strip()), "")[:300]


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def pytest_configure(config) -> None:
    """Register the plugin, where a file is asked for."""
    if FILE in os.environ:
        config.pluginmanager.register(Outcomes(), "foreign-outcomes")
