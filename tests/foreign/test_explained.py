"""What is kept of the runs: no failure without a reason, no reason of an unknown kind."""

import json

from tests.foreign.suites import KINDS, ROOT, explanations


def test_every_reason_is_of_a_known_kind():
    assert {entry.kind for entry in explanations()} <= set(KINDS)


def test_no_failure_is_unexplained():
    runs = json.loads((ROOT / "docs" / "results" / "foreign_suites.json").read_text(encoding="utf-8"))["runs"]
    kinds = {failure["kind"] for run in runs for failure in run["failures"]}
    assert kinds <= {"dense", *KINDS}
