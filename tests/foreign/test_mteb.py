"""Every kind of text task of mteb, with the data that mteb ships for its own tests: `make suite-mteb`."""

import pytest

import hfprune
from tests.foreign.checkpoints import WIDER, uneven
from tests.foreign.suites import Outcome, compared
from tests.support.tiny import tiny_model
from tests.support.tiny_tokenizers import trained

pytestmark = [pytest.mark.slow, pytest.mark.suite_mteb]

MODELS = ("bert", "modernbert", "roberta")


def outcome_of(task, folder, mteb, sentence_transformers) -> Outcome:
    """What becomes of a task, with the model of a folder."""
    encoder = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    try:
        results = mteb.evaluate(encoder, task, cache=None, show_progress_bar=False)
        scores = [row["main_score"] for rows in results.task_results[0].scores.values() for row in rows]
    except Exception as error:  # noqa: BLE001 (it is the outcome)
        return Outcome(outcome="failed", detail=f"{type(error).__name__}: {error}"[:300])
    if not scores or any(score != score for score in scores):
        return Outcome(outcome="failed", detail=f"ValueError: the scores are {scores}")
    return Outcome(outcome="passed", detail="")


@pytest.mark.parametrize("model_type", MODELS)
def test_tasks(model_type, checked, tmp_path):
    mteb = pytest.importorskip("mteb")
    mocks = pytest.importorskip("mteb.mocks")
    sentence_transformers = pytest.importorskip("sentence_transformers")
    tokenizer = trained("word_piece")
    dense = tiny_model(model_type, "AutoModel", **WIDER)
    dense.save_pretrained(tmp_path / "dense")
    tokenizer.save_pretrained(tmp_path / "dense")
    hfprune.save(uneven(dense), tmp_path / "pruned", tokenizer=tokenizer)
    outcomes = {"dense": {}, "pruned": {}}
    for task in mocks.MOCK_TASK_TEST_GRID:
        if task.metadata.modalities != ["text"]:
            continue
        for name, found in outcomes.items():
            found[task.metadata.name] = outcome_of(task, tmp_path / name, mteb, sentence_transformers)
    checked(compared("mteb", model_type, **outcomes))
