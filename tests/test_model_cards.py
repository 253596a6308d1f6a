"""Every published card is what its record and plan draw."""

from pathlib import Path

import pytest

from hfprune import PruningPlan, PruningRecord
from hfprune.publishing.card import draw_card
from hfprune.publishing.charts import pictures_of

FOLDER = Path(__file__).parent.parent / "model_cards"
RECORDS = [path for path in sorted(FOLDER.glob("*.json")) if not path.name.endswith(".plan.json")]


def test_there_are_classifiers_at_two_sizes_and_a_portable_one():
    records = [PruningRecord.from_json(path.read_text()) for path in RECORDS]
    assert len(records) >= 3
    assert any(record.config["portable"] for record in records)
    speedups = [r.latencies["dense"]["median_ms"] / r.latencies["pruned"]["median_ms"] for r in records]
    assert min(speedups) < 2.5 < max(speedups)


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_the_card_is_drawn_from_its_record(path):
    record = PruningRecord.from_json(path.read_text())
    plan = PruningPlan.from_json(path.with_suffix(".plan.json").read_text())
    assert record.plan_digest == plan.digest
    card = path.with_suffix(".md").read_text()
    portable = "trust_remote_code" not in card
    assert draw_card(record, plan, portable=portable, location=path.stem, pictures=f"{path.stem}/") == card
    for name in pictures_of(record):
        assert (path.with_suffix("") / name).read_bytes().startswith(b"\x89PNG")
