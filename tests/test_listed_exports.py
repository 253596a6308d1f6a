"""Exports in the record and the card of the checkpoint that they were made of."""

import json
import shutil
import threading

import pytest
import torch
from typer.testing import CliRunner

import hfprune
from hfprune.cli.app import app
from hfprune.deployment.folders import EXPORT_FILE
from hfprune.deployment.loading import tokenizer_of
from hfprune.errors import CheckpointError
from hfprune.publishing import replacement
from hfprune.publishing.exports import export_rows
from hfprune.publishing.listing import list_export, weights_of
from hfprune.publishing.verification import verify, was_checked
from hfprune.reporting import draw_report
from tests.support.plans import quick_checkpoint
from tests.support.registries import restored
from tests.support.tiny import tiny_model
from tests.support.tiny_data import tiny_tokenized, tiny_tokenizer
from tests.support.twins import twin_target


@pytest.fixture(autouse=True)
def _twin():
    with restored():
        twin_target()
        yield


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return quick_checkpoint(tmp_path_factory.mktemp("saved") / "small")


@pytest.fixture
def small(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "small")


def record_in(folder):
    return hfprune.PruningRecord.from_json((folder / "pruning_record.json").read_text())


def card_in(folder):
    return (folder / "README.md").read_text()


def entry_for(folder, **changes):
    """The entry of an export that nobody made."""
    difference = {"name": "the probe", "samples": 2, "tokens": 8, "largest": 0.1, "scale": 2.0, "typical": 0.03}
    entry = {
        "target": "onnx",
        "quantization": None,
        "weights": weights_of(folder),
        "size_bytes": 1_500_000,
        "differences": [{**difference, "agreement": 0.5}, {**difference, "samples": 6, "agreement": 1.0}],
        "text": None,
        "metrics": {"pytorch": {"accuracy": 0.91}, "exported": {"accuracy": 0.9}},
        "calibrated_on": None,
        "versions": {"torch": "2.13.0"},
    }
    return {**entry, **changes}


class TestRecordAndCard:
    def test_the_proof_is_in_both_and_the_checkpoint_is_sound(self, small, tmp_path):
        before = {path.name: path.stat().st_ino for path in small.iterdir()}
        assert verify(small) == []
        exported = hfprune.export(small, "twin", tmp_path / "out", data=tiny_tokenized(), record=True)
        assert exported.listed == ("record", "card")
        assert "listed in the record and the card" in str(exported)
        entry = record_in(small).exports["twin"]
        report = json.loads((tmp_path / "out" / EXPORT_FILE).read_text())
        assert entry["metrics"] == report["metrics"]
        assert entry["metrics"]["exported"].keys() == {"accuracy"}
        assert [found["name"] for found in entry["differences"]] == [found["name"] for found in report["differences"]]
        assert "listed" not in report
        assert "## Exports" in card_in(small)
        assert f"accuracy {entry['metrics']['exported']['accuracy']:.4f}, in PyTorch" in card_in(small)
        assert was_checked(small)
        assert verify(small) == []
        # nothing but the record and the card is another file now
        changed = {path.name for path in small.iterdir() if before.get(path.name) != path.stat().st_ino}
        assert changed == {"pruning_record.json", "README.md"}
        assert sorted(path.name for path in small.parent.iterdir()) == ["out", "small"]

    def test_without_it_nothing_is_listed(self, small, tmp_path):
        before = card_in(small), record_in(small)
        assert hfprune.export(small, "twin", tmp_path / "out").listed == ()
        assert (card_in(small), record_in(small)) == before

    def test_every_kind_once(self, small, tmp_path):
        for quantize in (None, "int8", None):
            hfprune.export(small, "twin", tmp_path / "out", quantize=quantize, record=True, overwrite=True)
        assert list(record_in(small).exports) == ["twin", "twin int8"]
        assert card_in(small).count("\n| twin") == 2

    def test_a_card_that_was_edited_stays(self, small, tmp_path):
        edited = card_in(small) + "\nMy own words.\n"
        (small / "README.md").write_text(edited)
        exported = hfprune.export(small, "twin", tmp_path / "out", record=True)
        assert exported.listed == ("record",)
        assert "its card was edited" in str(exported)
        assert card_in(small) == edited
        assert list(record_in(small).exports) == ["twin"]

    def test_the_report_has_them(self, small):
        assert "<h2>Exports</h2>" not in draw_report(small)
        list_export(small, entry_for(small, target="a&b"))
        page = draw_report(small)
        assert "<h2>Exports</h2>" in page
        assert "a&amp;b" in page
        assert "accuracy 0.9000, in PyTorch 0.9100" in page

    def test_the_rows(self, small):
        text = {"tokens": 16, "equal": 12}
        metrics = {"pytorch": {"f1": None}, "exported": {"f1": 0.5}}
        entry = entry_for(small, quantization="int8", text=text, metrics=metrics)
        assert export_rows({"onnx int8": entry}) == [
            ("onnx int8", "1.5 MB", "8", "1.0e-01 of 2", "3 %", "87.5 %", "greedy text: 12 of 16 tokens as in PyTorch")
        ]

    def test_the_command(self, small, tmp_path):
        done = CliRunner().invoke(
            app, ["export", str(small), "--to", "twin", "--output", str(tmp_path / "out"), "--record"]
        )
        assert done.exit_code == 0, done.output
        assert "listed in the record and the card" in done.output
        assert list(record_in(small).exports) == ["twin"]


class TestOfWhichWeights:
    def test_they_stay_as_long_as_the_weights_do(self, small, tmp_path):
        hfprune.export(small, "twin", tmp_path / "out", record=True)
        model = hfprune.load(small)
        hfprune.save(model, tmp_path / "same", tokenizer=tiny_tokenizer())
        assert record_in(tmp_path / "same").exports == record_in(small).exports
        assert "## Exports" in card_in(tmp_path / "same")
        with torch.no_grad():
            model.classifier.bias.add_(1)
        hfprune.save(model, tmp_path / "other")
        assert record_in(tmp_path / "other").exports == {}
        assert "Exports" not in card_in(tmp_path / "other")
        assert verify(tmp_path / "other") == []

    def test_what_trainer_writes_lists_none(self, small, tmp_path):
        list_export(small, entry_for(small))
        hfprune.load(small).save_pretrained(tmp_path / "trained")
        assert record_in(tmp_path / "trained").exports == {}

    def test_weights_that_changed_meanwhile(self, small):
        before = card_in(small), (small / "pruning_record.json").read_bytes()
        with pytest.raises(CheckpointError, match="got other weights while the export was made"):
            list_export(small, entry_for(small, weights="0" * 64))
        assert (card_in(small), (small / "pruning_record.json").read_bytes()) == before
        assert verify(small) == []


class TestRefused:
    @pytest.mark.parametrize("model", ["in memory", "on the Hub"])
    def test_what_is_no_folder(self, model, tmp_path):
        named = tiny_model("bert") if model == "in memory" else "me/small"
        with pytest.raises(ValueError, match=r"record=True \(--record\) writes into the folder of a checkpoint"):
            hfprune.export(named, "twin", tmp_path / "out", record=True)
        assert not (tmp_path / "out").exists()

    def test_a_dense_model(self, tmp_path):
        tiny_model("bert").save_pretrained(tmp_path / "dense")
        with pytest.raises(CheckpointError, match=r"has no pruning_record.json, so an export cannot be listed"):
            hfprune.export(tmp_path / "dense", "twin", tmp_path / "out", record=True)

    def test_a_record_without_digests(self, small, tmp_path):
        hfprune.load(small).save_pretrained(tmp_path / "trained")
        with pytest.raises(CheckpointError, match="Save the checkpoint again"):
            hfprune.export(tmp_path / "trained", "twin", tmp_path / "out", record=True)

    def test_the_working_directory(self, small, tmp_path, monkeypatch):
        (small / "logs").mkdir()
        monkeypatch.chdir(small / "logs")
        with pytest.raises(CheckpointError, match="Change to another folder first") as raised:
            hfprune.export(small, "twin", tmp_path / "out", record=True)
        assert f"The export itself is in {tmp_path / 'out'}." in raised.value.__notes__
        assert (tmp_path / "out" / EXPORT_FILE).is_file()


class TestInOneStep:
    def test_what_else_is_in_the_folder_stays(self, small):
        (small / ".git" / "refs").mkdir(parents=True)
        (small / ".git" / "HEAD").write_text("ref: refs/heads/main")
        (small / "latest").symlink_to("README.md")
        list_export(small, entry_for(small))
        assert (small / ".git" / "refs").is_dir()
        assert (small / ".git" / "HEAD").read_text() == "ref: refs/heads/main"
        assert (small / "latest").is_symlink()

    def test_in_the_checkpoint_itself(self, small, monkeypatch):
        monkeypatch.chdir(small)
        list_export(small, entry_for(small))
        assert list(record_in(small).exports) == ["onnx"]
        assert verify(small) == []

    def test_two_at_once(self, small):
        failed = []

        def list_one(number):
            try:
                list_export(small, entry_for(small, target=f"target {number}"))
            except Exception as error:  # noqa: BLE001 (a thread's error is seen nowhere else)
                failed.append(error)

        threads = [threading.Thread(target=list_one, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        assert sorted(record_in(small).exports) == [f"target {number}" for number in range(4)]
        assert verify(small) == []
        assert [path.name for path in small.parent.iterdir()] == ["small"]

    def test_a_failure_leaves_what_was_there(self, small, monkeypatch):
        before = card_in(small), record_in(small)

        def fail(*_):
            raise OSError("disk on fire")

        monkeypatch.setattr(replacement, "_exchange", fail)
        with pytest.raises(CheckpointError, match="disk on fire"):
            list_export(small, entry_for(small))
        assert (card_in(small), record_in(small)) == before
        assert verify(small) == []


class TestTokenizers:
    def test_one_of_a_vocabulary_alone(self, tmp_path):
        tiny_model("bert").config.save_pretrained(tmp_path)
        assert tokenizer_of(tmp_path) is None
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "who", "is"]
        (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
        assert tokenizer_of(tmp_path)("is who")["input_ids"] == [2, 6, 5, 3]

    def test_one_that_cannot_be_loaded(self, small):
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (small / name).unlink()
        (small / "vocab.txt").write_text("who")
        # the type of a pruned model does not say which tokenizer a vocabulary is of
        with pytest.raises(CheckpointError, match="the tokenizer of .* cannot be loaded: ValueError"):
            tokenizer_of(small)
