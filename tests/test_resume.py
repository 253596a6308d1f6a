"""Runs that go on: before there is a checkpoint, with other settings; what rounds see, and what is best."""

import shutil
from pathlib import Path

import pytest
from transformers import Trainer

import hfprune
from hfprune.errors import HfpruneError
from hfprune.jobs.tasks import CausalTextArguments, causal_language_modelling
from hfprune.recovery.trainer import RecoveryTrainer
from tests.support.runs import causal_home, classify, run_here, text_home


@pytest.fixture
def home(tmp_path):
    return text_home(tmp_path)


class KilledError(Exception):
    pass


@pytest.mark.parametrize("trainings", [0, 1])
def test_a_run_that_ended_before_its_first_checkpoint_goes_on(home, monkeypatch, trainings):
    """In the dense fine-tuning, and in recovery: what was done stays done."""
    train, done = Trainer.train, []

    def dies(self, *args, **kwargs):
        if len(done) == trainings:
            raise KilledError
        done.append(self.args.output_dir)
        return train(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "train", dies)
    with pytest.raises(KilledError):
        classify(home, dense_epochs=1)
    assert (home / "out" / "dense").is_dir() == bool(trainings)
    monkeypatch.setattr(Trainer, "train", train)
    outcome = classify(home, dense_epochs=1, resume_from_checkpoint="true")
    assert hfprune.load(outcome.folder).pruning_record.recovery["steps"] == 16


def test_a_run_that_ended_while_the_dense_model_was_saved_goes_on(home, monkeypatch):
    save = Trainer.save_model

    def dies(self, folder, **kwargs):
        if "dense_training" in folder:  # a checkpoint of its training
            return save(self, folder, **kwargs)
        Path(folder).mkdir(parents=True)
        (Path(folder) / "config.json").write_text("{")
        raise KilledError

    monkeypatch.setattr(Trainer, "save_model", dies)
    with pytest.raises(KilledError):
        classify(home, dense_epochs=1)
    monkeypatch.setattr(Trainer, "save_model", save)
    outcome = classify(home, dense_epochs=1, resume_from_checkpoint="true")
    assert (home / "out" / "dense" / "model.safetensors").is_file()
    assert hfprune.load(outcome.folder).pruning_record.recovery["steps"] == 16


def test_the_dense_fine_tuning_goes_on_at_its_checkpoint(home, monkeypatch):
    save, steps = Trainer._save_checkpoint, []

    def dies(self, *args, **kwargs):
        save(self, *args, **kwargs)
        if self.state.global_step == 8:
            raise KilledError

    monkeypatch.setattr(Trainer, "_save_checkpoint", dies)
    with pytest.raises(KilledError):
        classify(home, dense_epochs=2)
    monkeypatch.setattr(Trainer, "_save_checkpoint", save)
    step = Trainer.training_step
    monkeypatch.setattr(
        Trainer, "training_step", lambda self, *a, **k: steps.append(self.args.output_dir) or step(self, *a, **k)
    )
    classify(home, dense_epochs=2, resume_from_checkpoint="true")
    assert sum(folder.endswith("dense_training") for folder in steps) == 8


def test_a_checkpoint_that_was_not_written_to_its_end_is_passed_over(home, monkeypatch):
    save, steps = Trainer._save_optimizer_and_scheduler, []

    def dies(self, folder):
        if folder.endswith("checkpoint-16"):
            raise KilledError
        save(self, folder)

    monkeypatch.setattr(Trainer, "_save_optimizer_and_scheduler", dies)
    with pytest.raises(KilledError):
        classify(home, num_train_epochs=2)
    monkeypatch.setattr(Trainer, "_save_optimizer_and_scheduler", save)
    assert (home / "out" / "checkpoint-16" / "model.safetensors").is_file()
    for other in ("checkpoint-old-500", "checkpoint-best"):
        shutil.copytree(home / "out" / "checkpoint-8", home / "out" / other)
    step = Trainer.training_step
    monkeypatch.setattr(Trainer, "training_step", lambda self, *a, **k: steps.append(1) or step(self, *a, **k))
    classify(home, num_train_epochs=2, resume_from_checkpoint="true")
    assert len(steps) == 8


def test_it_goes_on_with_the_same_settings_only(home):
    classify(home)
    with pytest.raises(HfpruneError, match=r"sparsity=0.4 \(now 0.7\), scorer='l1' \(now 'l2'\). Resume with the same"):
        classify(home, sparsity=0.7, scorer="l2", resume_from_checkpoint="true")


def test_rounds_see_other_parts_of_the_data(home, monkeypatch):
    seen, step = {}, RecoveryTrainer.training_step

    def recorded(self, model, inputs, *args, **kwargs):
        seen.setdefault(self.args.output_dir, []).extend(map(tuple, inputs["input_ids"].tolist()))
        return step(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(RecoveryTrainer, "training_step", recorded)
    classify(home, method="rounds", schedule="geometric", rounds=2, num_train_epochs=1)
    first, second = (set(rows) for rows in seen.values())
    assert len(first - second) > 2


def test_the_best_perplexity_is_the_lowest(tmp_path, monkeypatch):
    trainers, train = [], Trainer.train
    monkeypatch.setattr(Trainer, "train", lambda self, *a, **k: trainers.append(self) or train(self, *a, **k))
    best = {"load_best_model_at_end": True, "metric_for_best_model": "perplexity", "eval_strategy": "epoch"}
    home = causal_home(tmp_path)
    run_here(
        causal_language_modelling,
        CausalTextArguments,
        home,
        **{**best, "train_file": str(home / "data.txt"), "num_train_epochs": 3, "early_stopping_patience": 3},
    )
    found = [entry["eval_perplexity"] for entry in trainers[-1].state.log_history if "eval_perplexity" in entry]
    assert len(found) == 3
    assert trainers[-1].state.best_metric == min(found) < max(found)
