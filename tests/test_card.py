"""The card: every code block runs as it stands; its pictures; and the record's documentation."""

import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import hfprune
from docs.draw import PAGES
from hfprune import PruningConfig, PruningRecord
from hfprune.cli.app import app
from hfprune.errors import PlanMismatchError
from hfprune.publishing import card
from hfprune.publishing.record import schema
from tests.support.hub import yaml_errors
from tests.support.tiny import tiny_batch, tiny_model
from tests.support.tiny_data import tiny_tokenizer

pytestmark = pytest.mark.pictures

ROOT = Path(__file__).parent.parent
QUICK = {"sequence_length": 8, "scorer": "l2", "reconstruct": False, "schedule": "one_shot"}
LATENCY = {
    "median_ms": 2.0,
    "device": "cpu",
    "dtype": "float32",
    "threads": 1,
    "batch_size": 2,
    "sequence_length": 8,
}


def checkpoint(path, *, sparsity=0.5, **options):
    labels = {"num_labels": 3, "id2label": {0: "what", 1: "where", 2: "who"}}
    model = tiny_model("bert", **labels)
    small = hfprune.prune(model, [tiny_batch()], PruningConfig(sparsity=sparsity, **QUICK, **options))
    small.pruning_record = small.pruning_record.with_(
        base_model="google-bert/bert-base-uncased",
        metrics={"dense": {"accuracy": 0.9, "f1": 0.8}, "pruned": {"accuracy": 0.8}, "recovered": {"accuracy": 0.89}},
        latencies={"dense": LATENCY, "pruned": {**LATENCY, "median_ms": 1.0}},
        datasets=["trec", "mine.csv"],
        command="python scripts/run_text_classification.py --sparsity 0.5",
    )
    return hfprune.save(small, path, tokenizer=tiny_tokenizer())


@pytest.mark.parametrize(
    ("model_class", "auto_class"),
    [
        ("T5ForConditionalGeneration", "AutoModelForSeq2SeqLM"),
        ("BartForConditionalGeneration", "AutoModelForSeq2SeqLM"),  # among the masked language models too
        ("MarianMTModel", "AutoModelForSeq2SeqLM"),
        ("WhisperForConditionalGeneration", "AutoModelForSpeechSeq2Seq"),
        ("Wav2Vec2ForCTC", "AutoModelForCTC"),
        ("ViTForImageClassification", "AutoModelForImageClassification"),
        ("BertForMaskedLM", "AutoModelForMaskedLM"),
    ],
)
def test_a_card_names_the_class_that_has_the_head(model_class, auto_class):
    assert card.task_of(model_class)[1] == auto_class


def code_blocks(text):
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize("portable", [False, True])
def test_every_code_block_runs_as_it_stands(portable, client, tmp_path):
    """Those that do not import hfprune where it cannot be imported."""
    folder = checkpoint(tmp_path / "small", sparsity=0.3, portable=portable)
    blocks = [block for block in code_blocks((folder / "README.md").read_text()) if "pipeline" not in block]
    assert len(blocks) == (2 if portable else 3)
    output = "\nimport torch\nsay(output=model(torch.arange(4, 14).reshape(2, 5)).logits.tolist())"
    said = [client(block + output, with_hfprune="import hfprune" in block)["output"] for block in blocks]
    with torch.no_grad():
        expected = hfprune.load(folder)(torch.arange(4, 14).reshape(2, 5)).logits
    assert all(torch.allclose(torch.tensor(one), expected, atol=1e-6) for one in said)
    assert ["hfprune" in block for block in blocks] == ([False, True] if portable else [True, True, False])


def test_the_card_of_a_published_model(tmp_path):
    folder = checkpoint(tmp_path / "small")
    text = (folder / "README.md").read_text()
    assert yaml_errors(text) == []
    assert "| accuracy | 0.9000 | 0.8900 | −0.0100; 0.8000 before recovery |" in text
    assert "| 2.0 ms | 1.0 ms | 2.00× faster |" in text
    assert text.index("accuracy_against_size.png") < text.index("## How to load it") < text.index("kept_units.png")
    head = text.split("---")[1]
    assert "base_model: google-bert/bert-base-uncased" in head
    assert "mine.csv" not in head, "no data set of the Hub"
    assert "accuracy of the dense model" in head
    for name in ("kept_units.png", "accuracy_against_size.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_card_has_no_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(card, "can_draw", lambda: False)
    folder = checkpoint(tmp_path / "small")
    assert not list(folder.glob("*.png"))
    assert ".png" not in (folder / "README.md").read_text()


def test_a_folder_with_an_odd_name(tmp_path):
    folder = checkpoint(tmp_path / 'my "model" (1)')
    assert 'from_pretrained("PATH")' in (folder / "README.md").read_text()


class TestMetadata:
    @pytest.mark.parametrize("page", PAGES, ids=str)
    def test_the_page_is_drawn_from_its_source(self, page):
        assert (ROOT / "docs" / page).read_text() == PAGES[page](), "run: python -m docs.draw"

    def test_every_field_of_a_record_is_in_the_schema(self):
        fields = set(PruningRecord.__dataclass_fields__) | {"format_version", "digest"}
        assert set(schema()["properties"]) == fields

    def test_what_prune_records(self, tmp_path):
        record = hfprune.load(checkpoint(tmp_path / "small")).pruning_record
        assert record.calibration["samples"] == 4
        assert record.calibration["tokens"] == int(tiny_batch()["attention_mask"].sum())
        assert len(record.calibration["digest"]) == 64
        assert record.blocks["encoder.layer.0.attention"]["before"] == 4
        assert PruningRecord.from_json(record.to_json()) == record

    def test_a_record_that_breaks_the_schema_is_not_saved(self, tmp_path):
        folder = checkpoint(tmp_path / "small")
        model = hfprune.load(folder)
        model.pruning_record = model.pruning_record.with_(datasets=["two words"])
        with pytest.raises(ValueError, match="not a valid pruning record: at datasets/0: 'two words' does not match"):
            hfprune.save(model, folder, overwrite=True)
        assert hfprune.load(folder).pruning_record.datasets == ["trec", "mine.csv"]


class TestDiff:
    def cli(self, *arguments):
        return CliRunner().invoke(app, list(map(str, arguments)))

    def test_two_checkpoints(self, tmp_path):
        a, b = checkpoint(tmp_path / "a", sparsity=0.3), checkpoint(tmp_path / "b", sparsity=0.6)
        shown = self.cli("diff", a, b)
        assert shown.exit_code == 0, shown.output
        assert "encoder.layer.0.ffn" in shown.output
        assert "differs" in shown.output
        same = self.cli("diff", a, a / "pruning_plan.json")
        assert "both keep 100.0%" in same.output
        assert same.output.strip().endswith("the plans are the same")
        assert '"overlap": 1.0' in self.cli("diff", a, a, "--json").output

    def test_counts(self, tmp_path):
        plans = [hfprune.load(checkpoint(tmp_path / str(s), sparsity=s)).pruning_plan for s in (0.3, 0.6)]
        found = plans[0].compare(plans[1]).to_dict()
        for name, counts in found["blocks"].items():
            first, second = (set(plan.blocks[name].kept) for plan in plans)
            assert (counts["a"], counts["b"], counts["both"]) == (len(first), len(second), len(first & second))

    def test_plans_of_different_models(self, tmp_path):
        a = hfprune.load(checkpoint(tmp_path / "a")).pruning_plan
        other = hfprune.prune(
            tiny_model("bert", intermediate_size=48), [tiny_batch()], PruningConfig(sparsity=0.3, **QUICK)
        )
        with pytest.raises(
            PlanMismatchError, match="'encoder.layer.0.ffn' has 40 units in the first and 48 in the sec"
        ):
            a.compare(other.pruning_plan)

    def test_no_plan(self, tmp_path):
        tiny_model("bert").save_pretrained(tmp_path / "dense")
        done = self.cli("diff", tmp_path / "dense", tmp_path / "dense")
        assert done.exit_code == 1
        assert "has no pruning_plan.json: it was not pruned by hfprune" in done.output
