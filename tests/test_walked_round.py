"""Ways round the checks of a checkpoint: through the journal of a save, the Hub, the commands, and sizes."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

import hfprune
from hfprune.cli.app import app
from hfprune.errors import CheckpointError
from hfprune.jobs.tasks import (
    ModelArguments,
    TextArguments,
    TokenArguments,
    text_classification,
    token_classification,
)
from hfprune.publishing.contents import sha256
from hfprune.publishing.record import PruningRecord
from hfprune.publishing.sources import check_source, is_pruned
from hfprune.publishing.verification import verify
from tests.support.plans import removed_plan, uneven_plan
from tests.support.tiny import tiny_model
from tests.support.tiny_data import tiny_texts, tiny_tokenizer

FOREIGN = "\nimport os\nos.system('true')\n"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A function from a model type to the folder of a checkpoint, which must not be changed."""
    folders = {}

    def checkpoint(model_type, **fields):
        key = (model_type, *fields.items())
        if key not in folders:
            model = tiny_model(model_type, **fields)
            path = tmp_path_factory.mktemp(model_type) / "small"
            folders[key] = hfprune.save(hfprune.apply_plan(model, uneven_plan(model)), path)
        return folders[key]

    return checkpoint


@pytest.fixture
def folder(checkpoints, tmp_path):
    return shutil.copytree(checkpoints("bert"), tmp_path / "small")


def resealed(folder):
    """Give a record the digests of the files that are there now, as somebody who changed them would."""
    path = folder / "pruning_record.json"
    record = PruningRecord.from_json(path.read_text())
    digests = {name: sha256(folder / name) for name in record.files}
    path.write_text(replace(record, files=digests).to_json())


def changed(folder, fields, file="config.json"):
    """Change fields of a file with settings, and seal the folder again."""
    path = folder / file
    settings = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(settings | fields))
    resealed(folder)
    return folder


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def names_in(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def planted(folder, source, journal=None):
    """Put a save that was never interrupted into a folder."""
    container = folder / ".aaaaaaaaaaaa.saving"
    names = names_in(source) if source else []
    container.mkdir()
    (container / "old").mkdir()
    if source:
        shutil.copytree(source, container / "new", ignore=shutil.ignore_patterns("*.saving"))
    else:
        (container / "new").mkdir()
    (container / "journal.json").write_text(json.dumps(journal or {"old": names, "new": names}))
    return container


class TestPlantedJournals:
    def refused(self, folder, message):
        before = {name: sha256(folder / name) for name in names_in(folder)}
        assert any("interrupted while it exchanged files" in problem for problem in verify(folder))
        with pytest.raises(CheckpointError, match=message) as refusal:
            hfprune.load(folder)
        assert "Nothing was moved" in str(refusal.value)
        assert "remove" in str(refusal.value)
        assert "writable" not in str(refusal.value)
        assert {name: sha256(folder / name) for name in names_in(folder)} == before

    def test_a_foreign_loader_is_not_moved_in(self, folder, tmp_path):
        evil = shutil.copytree(folder, tmp_path / "evil")
        with (evil / "modeling_pruned.py").open("a") as file:
            file.write(FOREIGN)
        resealed(evil)
        planted(folder, evil)
        self.refused(folder, "modeling_pruned.py is not the loader of this hfprune")

    def test_nothing_in_the_place_of_everything(self, folder):
        planted(folder, None, {"old": ["config.json"], "new": []})
        self.refused(folder, "is no whole checkpoint")

    def test_files_that_are_not_there_leave_the_old_ones(self, folder):
        names = names_in(folder)
        planted(folder, None, {"old": names, "new": names})
        self.refused(folder, "is no whole checkpoint")

    def test_a_file_that_is_to_stay_is_not_overwritten(self, folder):
        planted(folder, folder, {"old": [], "new": names_in(folder)})
        self.refused(folder, "would take the place of a file that is to stay")

    @pytest.mark.parametrize("name", ["..", ".", "", "a/b", ".0123456789ab.saving", 7, "a\0b"])
    def test_names_that_lead_elsewhere(self, name, folder):
        planted(folder, None, {"old": [name], "new": []})
        self.refused(folder, "it has names that are no names of files")

    @pytest.mark.parametrize("journal", [[], {"old": []}, {"old": "config.json", "new": "config.json"}])
    def test_what_is_no_journal(self, journal, folder):
        planted(folder, None)
        (folder / ".aaaaaaaaaaaa.saving" / "journal.json").write_text(json.dumps(journal))
        self.refused(folder, "is no journal of a save")

    def test_a_changed_weight_is_not_moved_in(self, folder, tmp_path):
        evil = shutil.copytree(folder, tmp_path / "evil")
        weights = bytearray((evil / "model.safetensors").read_bytes())
        weights[-1] ^= 1
        (evil / "model.safetensors").write_bytes(weights)
        planted(folder, evil)
        self.refused(folder, "model.safetensors is not the file that was saved")

    def test_save_moves_it_in_no_more_than_load(self, folder, checkpoints, tmp_path):
        evil = shutil.copytree(folder, tmp_path / "evil")
        (evil / "modeling_pruned.py").write_text(FOREIGN)
        resealed(evil)
        planted(folder, evil)
        with pytest.raises(CheckpointError, match="is not the loader"):
            hfprune.save(hfprune.load(checkpoints("bert")), folder, overwrite=True)
        assert FOREIGN not in (folder / "modeling_pruned.py").read_text()

    def test_beside_a_place_where_nothing_is(self, folder, tmp_path):
        """As after a kill between the two renamings of a whole folder."""
        container = tmp_path / ".other.aaaaaaaaaaaa.saving"
        (container / "old").mkdir(parents=True)
        evil = shutil.copytree(folder, container / "new")
        (evil / "modeling_pruned.py").write_text(FOREIGN)
        resealed(evil)
        with pytest.raises(CheckpointError, match="is not the loader"):
            hfprune.load(tmp_path / "other")
        assert not (tmp_path / "other").exists()


class TestSettingsThatLeadElsewhere:
    @pytest.fixture
    def no_kernel(self, monkeypatch):
        def load(*_, **__):
            raise AssertionError("a kernel was asked for")

        monkeypatch.setattr("transformers.integrations.hub_kernels.load_and_register_attn_kernel", load)
        monkeypatch.setattr("transformers.AutoConfig.from_pretrained", load)

    @pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
    @pytest.mark.parametrize("kernel", ["evil/kernel", "paged|evil/kernel", {"": "evil/kernel"}])
    def test_verify_asks_for_no_kernel(self, key, kernel, folder, no_kernel):
        changed(folder, {key: kernel})
        assert [problem for problem in verify(folder) if f"config.json sets {key}" in problem]

    @pytest.mark.parametrize(
        ("file", "fields"),
        [
            ("config.json", {"peft_type": "LORA", "base_model_name_or_path": "evil/repo"}),
            ("config.json", {"peft_type": "LORA"}),
            ("config.json", {"index_path": "evil/index"}),
            ("config.json", {"backbone": "evil/repo", "use_pretrained_backbone": True}),
            ("config.json", {"generator": {"pretrained_question_encoder_name_or_path": "evil/repo"}}),
            ("processor_config.json", {"audio_tokenizer": {"audio_tokenizer_name_or_path": "evil/repo"}}),
            ("processor_config.json", {"audio_tokenizer": {"repo_id": ["evil/repo"]}}),
        ],
    )
    def test_names_of_repositories(self, file, fields, folder, no_kernel):
        changed(folder, fields, file)
        assert any(f"{file} sets" in problem and "leads elsewhere" in problem for problem in verify(folder))
        with pytest.raises(CheckpointError, match="leads elsewhere"):
            hfprune.load(folder, verify=False)

    def test_where_a_model_came_from_is_no_place(self, folder):
        changed(
            folder,
            {
                "_name_or_path": "me/dense",
                "_model_name_or_path": "Of a GGUF",
                "drop_path": 0.1,
                "use_mem_eff_path": True,
                "path": None,
            },
        )
        assert verify(folder) == []


class TestNotesInTheConfig:
    """Numbers that no model is built by are the user's own."""

    @pytest.mark.parametrize("model_type", ["bert", "llama", "marian"])
    @pytest.mark.parametrize(
        "fields",
        [
            {"training_steps": 100_000, "dataset_hash": 2**40},
            {"task_specific_params": {"x": {"seed": 20261128}}},
            {"label2id": {"LABEL_0": 0, "LABEL_1": 1, "a": 100_001}},
            {"mask_value": -1e9},
            {"run": {"seeds": [2**40], "inner": {"steps": 10**9}}},
        ],
    )
    def test_they_are_saved_and_loaded(self, model_type, fields, checkpoints, tmp_path):
        model = hfprune.load(checkpoints(model_type))
        for name, value in fields.items():
            setattr(model.config, name, value)
        folder = hfprune.save(model, tmp_path / "again")
        assert verify(folder) == []
        # transformers sets `label2id` anew when it loads
        written = json.loads((folder / "config.json").read_text())
        assert fields.items() <= written.items()

    @pytest.mark.parametrize(
        ("model_type", "fields"),
        [
            ("bert", {"vocab_size": 10**7}),
            ("bert", {"num_labels": 10**7, "id2label": None}),
            ("bert", {"type_vocab_size": 10**7}),
            ("marian", {"d_model": 10**7}),
            ("marian", {"hidden_size": 10**7}),
            ("llama", {"text_config": {"vocab_size": 10**9}}),
            ("llama", {"decoder": {"model_type": "bert", "vocab_size": 10**9}}),
        ],
    )
    def test_sizes_of_the_class_are_bounded_as_before(self, model_type, fields, checkpoints, tmp_path):
        folder = changed(shutil.copytree(checkpoints(model_type), tmp_path / "small"), fields)
        with pytest.raises(CheckpointError, match="but no tensor of the weights is longer than"):
            hfprune.load(folder)


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("name", ["reconstruct", "portable", "calibration_checkpointing"])
def test_truth_values_of_numpy(name, value):
    config = hfprune.PruningConfig(**{name: np.bool_(value)})
    assert getattr(config, name) is value
    assert config == hfprune.PruningConfig(**{name: value})
    with pytest.raises(ValueError, match=f"{name} must be True or False"):
        hfprune.PruningConfig(**{name: int(value)})


class TestCommands:
    """A pruned checkpoint is checked as `load` does, before transformers reads its config or tokenizer."""

    @pytest.fixture
    def classifier(self, checkpoints, tmp_path):
        small = shutil.copytree(checkpoints("bert"), tmp_path / "classifier")
        tiny_tokenizer().save_pretrained(small)
        resealed(small)
        return small

    @pytest.fixture
    def data(self, tmp_path):
        rows = [f"{row['text']},LABEL_{row['label']}" for row in tiny_texts(30)]
        path = tmp_path / "data.csv"
        path.write_text("\n".join(["text,label", *rows]) + "\n")
        return path

    @pytest.fixture
    def nothing_is_read(self, monkeypatch):
        def refuse(*_, **__):
            raise AssertionError("the config or the tokenizer was read")

        monkeypatch.setattr("transformers.AutoConfig.from_pretrained", refuse)
        monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", refuse)

    def commands(self, folder, data, tmp_path):
        return {
            "evaluate": ["evaluate", folder, "--data", data],
            "prune": ["prune", folder, tmp_path / "out", "--data", data, "--sparsity", "0.2"],
            "inspect": ["inspect", folder],
        }

    @pytest.mark.parametrize("command", ["evaluate", "prune", "inspect"])
    @pytest.mark.parametrize("left", ["all", "record", "config"])
    def test_a_checkpoint_that_lost_its_plan(self, command, left, classifier, data, tmp_path, nothing_is_read):
        (classifier / "pruning_plan.json").unlink()
        if left == "config":
            (classifier / "pruning_record.json").unlink()
            (classifier / "pruning_probe.json").unlink()
        if left == "record":
            config = json.loads((classifier / "config.json").read_text())
            stock = {"model_type": "bert", "architectures": ["BertForSequenceClassification"], "pruning_config": None}
            (classifier / "config.json").write_text(json.dumps(config | stock))
        done = run(*self.commands(classifier, data, tmp_path)[command])
        assert done.exit_code == 1
        assert "pruning_plan.json" in done.output

    @pytest.mark.parametrize("command", ["evaluate", "prune", "inspect"])
    def test_cost_before_refusal(self, command, classifier, data, tmp_path, nothing_is_read):
        changed(classifier, {"num_labels": 10**7, "id2label": None})
        done = run(*self.commands(classifier, data, tmp_path)[command])
        assert done.exit_code == 1
        assert "sets num_labels to 1e+07" in done.output

    @pytest.mark.parametrize("command", ["evaluate", "prune", "inspect"])
    @pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes")
    def test_a_pipe_is_named(self, command, name, classifier, data, tmp_path, nothing_is_read):
        (classifier / name).unlink()
        os.mkfifo(classifier / name)
        done = run(*self.commands(classifier, data, tmp_path)[command])
        assert done.exit_code == 1
        assert f"{name} is no regular file" in done.output

    @pytest.mark.parametrize("task", [text_classification, token_classification])
    def test_tasks_check_it_too(self, task, classifier, data, tmp_path, nothing_is_read):
        changed(classifier, {"num_labels": 10**7, "id2label": None})
        words = tmp_path / "words.jsonl"
        row = json.dumps({"tokens": ["a", "b"], "ner_tags": ["LABEL_0", "LABEL_1"]})
        words.write_text("\n".join([row] * 20))
        of_tokens = task is token_classification
        arguments = TokenArguments(train_file=str(words)) if of_tokens else TextArguments(train_file=str(data))
        with pytest.raises(CheckpointError, match="sets num_labels to 1e"):
            task(ModelArguments(str(classifier)), arguments, seed=0)

    def test_a_dense_model_is_the_users_own(self, tmp_path):
        tiny_model("bert").save_pretrained(tmp_path / "dense")
        assert not is_pruned(tmp_path / "dense")
        check_source(tmp_path / "dense")
        assert run("inspect", tmp_path / "dense").exit_code == 0


class TestSizesOfLayers:
    """`layers` of the table says what transformers allocates caches by."""

    def with_layers(self, source, folder, change):
        folder = shutil.copytree(source, folder)
        table = json.loads((folder / "config.json").read_text())["pruning_config"]
        return changed(folder, {"pruning_config": table | {"layers": change(table["layers"])}})

    @pytest.mark.parametrize("model_type", ["llama", "bert", "marian"])
    @pytest.mark.parametrize(
        "change",
        [
            lambda layers: [{"num_key_value_heads": 10**9}] * len(layers),
            lambda layers: [{"num_key_value_heads": 1, "hidden_size": 7}] * len(layers),
            lambda layers: [layer | {"head_dim": float(layer["head_dim"])} for layer in layers],
            lambda layers: [layer | {"num_key_value_heads": layer["num_key_value_heads"] + 1} for layer in layers],
            lambda layers: layers[:1],
            lambda layers: dict(enumerate(layers)),
            lambda layers: "many",
            lambda layers: [None] * len(layers),
        ],
    )
    def test_they_are_those_of_the_blocks(self, model_type, change, checkpoints, tmp_path):
        folder = self.with_layers(checkpoints(model_type), tmp_path / "small", change)
        with pytest.raises(
            CheckpointError, match="pruning_config (gives (a )?layer|must give the sizes)|per_layer_config gives"
        ):
            hfprune.load(folder)
        assert any("pruning_config" in problem for problem in verify(folder))

    @pytest.mark.parametrize("number", [10**5, 200])
    def test_a_long_list_builds_nothing(self, number, checkpoints, tmp_path, monkeypatch):
        folder = self.with_layers(checkpoints("llama"), tmp_path / "small", lambda layers: layers[:1] * number)
        monkeypatch.setattr("transformers.AutoConfig.from_pretrained", None)
        with pytest.raises(CheckpointError, match=rf"asks for {number} layers \(pruning_config.layers\), of "):
            hfprune.load(folder)

    @pytest.mark.parametrize(
        "patterns",
        [
            [[["global", "local"] * 500, 60_000]],
            [[["global"], 60_000]],
            [[["global", "local"], 30]] * 2,
            [[["global"], 1]] * 100,
        ],
    )
    def test_patterns_that_are_repeated(self, patterns, checkpoints, tmp_path, monkeypatch):
        folder = changed(shutil.copytree(checkpoints("gpt_neo"), tmp_path / "small"), {"attention_types": patterns})
        monkeypatch.setattr("transformers.AutoConfig.from_pretrained", None)
        with pytest.raises(CheckpointError, match=r"asks for \d+ layers \(attention_types\), of \d+ tensors"):
            hfprune.load(folder)

    @pytest.mark.parametrize("model_type", ["llama", "gpt_neo", "marian", "falcon", "t5"])
    @pytest.mark.parametrize("make", [uneven_plan, removed_plan])
    def test_what_was_saved_is_taken(self, model_type, make, tmp_path):
        model = tiny_model(model_type)
        folder = hfprune.save(hfprune.apply_plan(model, make(model)), tmp_path / "small")
        assert verify(folder) == []

    def test_query_heads_too(self, tmp_path):
        model = tiny_model("llama")
        small = hfprune.apply_plan(model, uneven_plan(model, attention_unit="query"))
        assert verify(hfprune.save(small, tmp_path / "small")) == []
