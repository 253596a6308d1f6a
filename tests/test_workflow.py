"""What all scripts share: regression and pairs, another teacher, early stopping, reports, resuming, pushing."""

import json
import sys
from dataclasses import dataclass, field

import pytest
from huggingface_hub.errors import LocalTokenNotFoundError
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import Trainer

import hfprune
from hfprune.errors import HfpruneError
from hfprune.jobs import methods, tasks
from hfprune.jobs.methods import register_method
from hfprune.jobs.tasks import (
    DataArguments,
    MaskedTextArguments,
    ModelArguments,
    TextArguments,
    TokenArguments,
    get_task,
    known_tasks,
    masked_language_modelling,
    parse,
    register_task,
    registry,
    text_classification,
    token_classification,
)
from hfprune.jobs.tasks.registry import import_task_files
from hfprune.publishing import hub, push
from hfprune.recovery.trainer import RecoveryTrainer
from tests.support.runs import classify, mlm_home, run_here, save, settings, text_home, token_home, write
from tests.support.tiny import tiny_model
from tests.support.tiny_data import WORDS

LABELS = {"num_labels": 3, "id2label": {0: "what", 1: "where", 2: "who"}}


@pytest.fixture
def home(tmp_path):
    return text_home(tmp_path)


def test_regression_on_pairs(home):
    save(tiny_model("bert", num_labels=1), home / "dense")
    words = [(WORDS[i % 12], WORDS[(i * 5 + i // 12) % 12]) for i in range(144)]
    rows = [f"{a},{b},{WORDS.index(a) / 12 - WORDS.index(b) / 12:.3f}" for a, b in words]
    (home / "data.csv").write_text("first,second,score\n" + "\n".join(rows) + "\n")
    columns = {"text_column": "first", "pair_column": "second", "label_column": "score"}
    rates = {"dense_epochs": 20, "dense_learning_rate": 0.005, "num_train_epochs": 4}
    outcome = classify(home, **columns, **rates, metrics=["pearson", "spearman"], scorer="fisher")
    assert outcome.results["dense_pearson"] > 0.6  # it is the difference of both words
    assert outcome.results["recovered_pearson"] > 0.6
    model = hfprune.load(outcome.folder)
    assert (model.config.num_labels, model.config.problem_type) == (1, "regression")
    assert set(model.pruning_record.metrics["pruned"]) == {"pearson", "spearman"}


class TestTeacher:
    def teachers_of(self, monkeypatch):
        seen = []
        before = RecoveryTrainer.__init__

        def init(self, model, args, *, teacher=None, **kwargs):
            seen.append(teacher)
            before(self, model, args, teacher=teacher, **kwargs)

        monkeypatch.setattr(RecoveryTrainer, "__init__", init)
        return seen

    def test_another_one(self, home, monkeypatch):
        seen = self.teachers_of(monkeypatch)
        save(tiny_model("distilbert", **LABELS), home / "teacher")
        outcome = classify(home, teacher_model=str(home / "teacher"), hidden_states_weight=0)
        assert [type(model).__name__ for model in seen[1:]] == ["DistilBertForSequenceClassification"]
        assert hfprune.load(outcome.folder).pruning_record.recovery["teacher_model"] == "teacher"

    def test_the_dense_one_by_default(self, home, monkeypatch):
        seen = self.teachers_of(monkeypatch)
        outcome = classify(home, num_train_epochs=1)
        assert [type(model).__name__ for model in seen] == ["NoneType", "BertForSequenceClassification"]
        assert "teacher_model" not in hfprune.load(outcome.folder).pruning_record.recovery

    def test_other_labels(self, home):
        save(tiny_model("bert", **{**LABELS, "id2label": {0: "who", 1: "where", 2: "what"}}), home / "teacher")
        with pytest.raises(HfpruneError, match="has the labels who, where, what, the model has what, where, who"):
            classify(home, teacher_model=str(home / "teacher"))
        save(tiny_model("bert", num_labels=4), home / "teacher")
        with pytest.raises(HfpruneError, match="has the labels LABEL_0, .* the model has what, where, who"):
            classify(home, teacher_model=str(home / "teacher"))
        assert not (home / "out" / "pruned").exists()

    def test_another_vocabulary(self, home):
        save(tiny_model("bert", **LABELS), home / "teacher")
        file = home / "teacher" / "tokenizer.json"
        file.write_text(file.read_text().replace('"dog"', '"wolf"'))
        with pytest.raises(HfpruneError, match="has another vocabulary than the model"):
            classify(home, teacher_model=str(home / "teacher"))
        tiny_model("bert", **LABELS, vocab_size=65).save_pretrained(home / "bare")
        with pytest.raises(HfpruneError, match="has another vocabulary than the model"):
            classify(home, teacher_model=str(home / "bare"))

    def test_other_layers_cannot_give_hidden_states(self, home):
        save(tiny_model("bert", **LABELS, num_hidden_layers=3), home / "teacher")
        with pytest.raises(ValueError, match="hidden states do not match.*Set hidden_states_weight=0"):
            classify(home, teacher_model=str(home / "teacher"))


BEST = {"load_best_model_at_end": True, "metric_for_best_model": "accuracy", "eval_strategy": "epoch"}


class TestEarlyStopping:
    def test_it_stops(self, home):
        outcome = classify(home, **BEST, early_stopping_patience=2, num_train_epochs=9, learning_rate=0)
        recovery = hfprune.load(outcome.folder).pruning_record.recovery
        assert recovery["steps"] == 3 * 8  # nothing is better than after the first epoch
        assert recovery["early_stopping_patience"] == 2

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({}, "early_stopping_patience=2 needs to know what is better.*set load_best_model_at_end"),
            ({**BEST, "early_stopping_patience": 0}, "must be at least 1 evaluation, got 0"),
            ({**BEST, "metric_for_best_model": "f1"}, "metric_for_best_model='f1' is not measured.*: loss, accuracy"),
        ],
    )
    def test_what_is_missing_is_said_before_anything_is_trained(self, home, changes, message):
        with pytest.raises(HfpruneError, match=message):
            classify(home, dense_epochs=1, **{"early_stopping_patience": 2, **changes})
        assert not (home / "out" / "dense_training").exists()


def test_tensorboard_gets_sparsity_and_metrics(home, monkeypatch):
    monkeypatch.chdir(home)
    report = {"report_to": "tensorboard", "eval_strategy": "steps", "eval_steps": 4, "logging_steps": 4}
    outcome = classify(home, **report)
    values = {}
    for file in (home / "out" / "runs").rglob("events*"):
        events = EventAccumulator(str(file)).Reload()
        values |= {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert values["train/mac_sparsity"] == [pytest.approx(outcome.results["mac_sparsity"])]
    assert values["train/param_sparsity"] == [pytest.approx(outcome.results["param_sparsity"])]
    for stage in ("dense", "pruned", "recovered"):
        assert values[f"train/{stage}_accuracy"] == [pytest.approx(outcome.results[f"{stage}_accuracy"])]
    assert len(values["eval/loss"]) == 4
    assert len(values["train/loss_logits"]) == 4
    assert not (home / "runs").exists()


@pytest.mark.parametrize(
    ("load_task", "arguments", "make_home", "file"),
    [
        (token_classification, TokenArguments, token_home, "data.jsonl"),
        (masked_language_modelling, MaskedTextArguments, mlm_home, "data.txt"),
    ],
)
@pytest.mark.parametrize("checkpoint", ["first", "true"])
def test_a_resumed_run_ends_like_one_in_one_go(tmp_path, load_task, arguments, make_home, file, checkpoint):
    """The text-classification script is killed and resumed in test_scripts."""
    home = make_home(tmp_path)
    values = {"train_file": str(home / file), "num_train_epochs": 3}
    whole = run_here(load_task, arguments, home, **values)
    before = hfprune.load(whole.folder)
    folders = sorted((home / "out").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    values["resume_from_checkpoint"] = str(folders[0]) if checkpoint == "first" else checkpoint
    again = run_here(load_task, arguments, home, **values)
    after = hfprune.load(again.folder)
    assert after.pruning_plan == before.pruning_plan
    assert after.pruning_record.recovery["steps"] == before.pruning_record.recovery["steps"]
    assert after.pruning_record.metrics == before.pruning_record.metrics
    with pytest.raises(HfpruneError, match="holds an earlier run"):
        run_here(load_task, arguments, home, **{**values, "resume_from_checkpoint": "false"})


class FakeApi:
    calls = ()

    def __init__(self, token=None):
        self.token = token

    def whoami(self):
        FakeApi.calls += (("whoami", self.token),)

    def create_repo(self, name, **options):
        FakeApi.calls += (("create_repo", name, options),)
        return type("Url", (str,), {"repo_id": f"me/{name}"})(f"https://hub/me/{name}")

    def create_branch(self, name, **options):
        FakeApi.calls += (("create_branch", name, options),)

    def list_repo_files(self, name, **options):
        return [".gitattributes"]

    def create_commit(self, name, operations, **options):
        FakeApi.calls += (("create_commit", name, {operation.path_in_repo for operation in operations}, options),)
        return type("Commit", (), {"commit_url": f"https://hub/{name}/commit/1"})


class TestPush:
    @pytest.fixture(autouse=True)
    def _fake(self, monkeypatch):
        def refuse(*args, **kwargs):
            raise AssertionError("Trainer pushes what is not finished")

        monkeypatch.setattr(FakeApi, "calls", ())
        monkeypatch.setattr(hub, "HfApi", FakeApi)
        monkeypatch.setattr(push, "HfApi", FakeApi)
        for name in ("init_hf_repo", "push_to_hub", "_push_from_checkpoint"):
            monkeypatch.setattr(Trainer, name, refuse)

    def test_the_finished_folder_is_pushed_once(self, home):
        classify(home, push_to_hub=True, hub_token="secret", num_train_epochs=1, hub_private_repo=True)
        login, made, uploaded = FakeApi.calls
        assert login == ("whoami", "secret")
        assert made == ("create_repo", "out", {"private": True, "exist_ok": True})
        name, repo, files, options = uploaded
        assert (name, repo) == ("create_commit", "me/out")
        assert {"README.md", "config.json", "model.safetensors", "pruning_plan.json", "tokenizer.json"} <= files
        assert "modeling_pruned.py" in files
        assert options["revision"] is None
        assert "secret" not in (home / "out" / "model" / "pruning_record.json").read_text()

    def test_name_and_branch(self, home):
        names = {"hub_model_id": "small", "hub_revision": "try"}
        classify(home, push_to_hub=True, num_train_epochs=0, **names)
        assert [call[0] for call in FakeApi.calls] == ["whoami", "create_repo", "create_branch", "create_commit"]
        assert FakeApi.calls[2] == ("create_branch", "me/small", {"branch": "try", "exist_ok": True})
        assert FakeApi.calls[3][3]["revision"] == "try"

    def test_without_a_login_nothing_begins(self, home, monkeypatch):
        def whoami(self):
            raise LocalTokenNotFoundError("no token.")

        monkeypatch.setattr(FakeApi, "whoami", whoami)
        with pytest.raises(HfpruneError, match="the Hub does not let us in: no token. Log in with `hf auth login`"):
            classify(home, push_to_hub=True)
        assert not (home / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "own"),
    [
        (TextArguments, ["--pair_column", "--label_column"]),
        (TokenArguments, ["--token_column", "--tag_column"]),
        (MaskedTextArguments, ["--text_column", "--mask_probability"]),
    ],
)
def test_help_names_every_choice(arguments, own, capsys):
    with pytest.raises(SystemExit):
        parse(arguments, "What it does.", ["--help"])
    shown = capsys.readouterr().out
    shared = [
        "--teacher_model",
        "--resume_from_checkpoint",
        "--push_to_hub",
        "--early_stopping_patience",
        "--report_to",
    ]
    for name in [*own, *shared, "--sparsity", "--logits_weight", "--eval_steps", "--train_file"]:
        assert name in shown


def test_files_may_be_json(home):
    values = {"model_name_or_path": "m", "output_dir": str(home / "out"), "sparsity": 0.3, "seed": 7, "use_cpu": True}
    (home / "settings.json").write_text(json.dumps(values))
    arguments = parse(TextArguments, None, [str(home / "settings.json")])
    assert (arguments.pruning.sparsity, arguments.pruning.seed, arguments.training.seed) == (0.3, 7, 7)


class TestMethods:
    def test_gradual(self, home):
        outcome = classify(home, method="gradual", gradual_every=2, num_train_epochs=3, sparsity=0.5)
        model = hfprune.load(outcome.folder)
        record = model.pruning_record
        assert model.pruning_plan.sparsity("macs") >= 0.5
        assert set(record.metrics) == {"dense", "recovered"}
        assert record.config["scorer"] == "gradual"
        assert record.recovery["method"] == "gradual"
        assert outcome.results["recovered_accuracy"] == record.metrics["recovered"]["accuracy"]

    def test_rounds(self, home):
        outcome = classify(home, method="rounds", schedule="geometric", num_train_epochs=3, sparsity=0.6)
        model = hfprune.load(outcome.folder)
        record = model.pruning_record
        assert len(record.rounds) == 3
        assert record.recovery["steps"] == 3 * 8  # an epoch of 64 rows each
        kept = [1 - hfprune.load(home / "out" / "rounds" / str(n)).pruning_plan.sparsity("macs") for n in (1, 2, 3)]
        assert kept == sorted(kept, reverse=True)
        last = hfprune.load(home / "out" / "rounds" / "3").state_dict()
        assert all((tensor == last[name]).all() for name, tensor in model.state_dict().items())

    def test_adapters(self, home):
        outcome = classify(home, lora_rank=2)
        assert hfprune.load(outcome.folder).pruning_record.recovery["lora_rank"] == 2

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"method": "after"}, "unknown method 'after'. Known: before, rounds, gradual."),
            ({"method": "gradual", "num_train_epochs": 0}, "method=gradual trains, but num_train_epochs=0"),
            ({"method": "rounds", "resume_from_checkpoint": "x"}, "a run in rounds cannot be resumed"),
            ({"method": "gradual", "lora_rank": 2}, "needs whole weights"),
            ({"method": "gradual", "gradual_end": 60}, "start and end are fractions of the training steps"),
        ],
    )
    def test_mistakes(self, home, changes, message):
        with pytest.raises((HfpruneError, ValueError), match=message):
            classify(home, **changes)
        assert not (home / "out" / "pruned").exists()


class TestFilesAndChanges:
    def test_arguments_after_a_file_change_it(self, tmp_path):
        path = write(tmp_path, settings(tmp_path, sparsity=0.4))
        changes = ["--sparsity", "0.7", "--learning_rate=1e-4", "--bf16", "--exclude", "*.0.attention", "b.*"]
        training, _, data, config, _ = parse(TextArguments, None, [str(path), *changes, "--dataset_config", "no"])
        assert (config.sparsity, training.learning_rate, training.bf16) == (0.7, 1e-4, True)
        assert config.exclude == ["*.0.attention", "b.*"]
        assert data.dataset_config == "no"
        assert training.num_train_epochs == 2, "what the file says"

    def test_json_files(self, tmp_path):
        values = settings(
            tmp_path, learning_rate=5e-05, exclude=["a.*"], warmup_steps=None, load_best_model_at_end=False
        )
        (tmp_path / "settings.json").write_text(json.dumps(values, indent="\t"))
        training, _, _, config, _ = parse(TextArguments, None, [str(tmp_path / "settings.json")])
        assert (training.learning_rate, config.exclude) == (5e-05, ["a.*"])

    def test_an_unknown_name(self, tmp_path):
        path = write(tmp_path, settings(tmp_path))
        with pytest.raises(ValueError, match="sparsiti"):
            parse(TextArguments, None, [str(path), "--sparsiti", "0.7"])

    def test_an_empty_file(self, tmp_path):
        (tmp_path / "settings.yaml").write_text("")
        with pytest.raises(ValueError, match="must hold names and values"):
            parse(TextArguments, None, [str(tmp_path / "settings.yaml")])


class TestRegistries:
    @pytest.fixture(autouse=True)
    def _only_here(self, monkeypatch):
        monkeypatch.setattr(registry, "_TASKS", dict(registry._TASKS))
        monkeypatch.setattr(methods, "_METHODS", dict(methods._METHODS))

    def test_a_task_that_is_registered_here(self, home):
        @dataclass
        class ShortTextArguments(TextArguments):
            words: int = field(default=2, metadata={"help": "Words of a text that count."})

        @register_task("short_text_classification", arguments=ShortTextArguments)
        def short_text_classification(model, data, *, seed):
            data.max_length = data.words + 2  # and [CLS] and [SEP]
            return text_classification(model, data, seed=seed)

        task = get_task("short_text_classification")
        assert task.arguments is ShortTextArguments
        assert "short_text_classification" in known_tasks()
        outcome = run_here(task.load, task.arguments, home, words=1, num_train_epochs=0)
        assert "pruned_accuracy" in outcome.results
        named = ModelArguments(model_name_or_path=str(home / "dense"))
        loaded = task.load(named, ShortTextArguments(train_file=str(home / "data.csv"), words=1), seed=0)
        assert {len(ids) for ids in loaded.data["test"]["input_ids"]} == {3}

    def test_a_new_task_needs_one_file(self, tmp_path, monkeypatch):
        (tmp_path / "echo.py").write_text(
            "from hfprune.jobs.tasks.registry import register_task\n\n\n"
            "@register_task('echo')\n"
            "def echo(model, data, *, seed):\n"
            "    return model, data, seed\n"
        )
        monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
        try:
            import_task_files(tasks.__name__, tasks.__path__)
            assert get_task("echo").load("model", "data", seed=3) == ("model", "data", 3)
            assert get_task("echo").arguments is DataArguments
        finally:
            sys.modules.pop("hfprune.jobs.tasks.echo", None)
            vars(tasks).pop("echo", None)

    def test_mistakes(self):
        with pytest.raises(ValueError, match="unknown task 'poetry'. Known: audio_classification, causal_language_m"):
            get_task("poetry")
        with pytest.raises(ValueError, match="a task named 'text_classification' is registered already"):
            register_task("text_classification")(lambda model, data, *, seed: None)
        with pytest.raises(ValueError, match="a method named 'before' is registered already"):
            register_method("before")(lambda job: None)

    def test_a_method_that_is_registered_here(self, home):
        def check(arguments):
            if arguments.pruning.portable:
                raise HfpruneError("method=never cannot be portable.")

        @register_method("never", must_train=False, check=check)
        def never(job):
            return methods.before(job)

        outcome = classify(home, method="never", num_train_epochs=1)
        assert hfprune.load(outcome.folder).pruning_record.recovery["method"] == "never"
        with pytest.raises(HfpruneError, match="method=never cannot be portable"):
            classify(home, method="never", portable=True, overwrite=True)
