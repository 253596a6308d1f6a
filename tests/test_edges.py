"""What users bring that is not the plain case: other heads, other labels, changed models, half-finished records."""

import json
import pickle
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoConfig

import hfprune
from hfprune import PruningConfig, RecoveryArguments, RecoveryTrainer
from hfprune.data.classification import load_text_dataset
from hfprune.data.labels import align_labels
from hfprune.errors import CalibrationError, CheckpointError, HfpruneError, StructureError
from hfprune.jobs.run import clear_earlier_run
from hfprune.measuring.metrics import compute_metrics_for
from hfprune.measuring.size import measure_size
from hfprune.publishing.report import command_line
from hfprune.publishing.verification import verify
from hfprune.scoring import calibration_batches
from hfprune.structure.examples import check_length
from hfprune.structure.predictions import predicts_next_token
from tests.support.plans import uneven_plan
from tests.support.tiny import tiny_batch, tiny_model

SHORT = {"sequence_length": 8}


class TestLabels:
    def csv(self, folder, rows):
        path = folder / "data.csv"
        path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
        return load_text_dataset(files={"train": str(path)})

    def test_a_fine_tuned_model_numbers_the_classes(self, tmp_path):
        data = self.csv(tmp_path, [(f"text {i}", ["who", "what", "where"][i % 3]) for i in range(60)])
        config = AutoConfig.for_model("bert", id2label={0: "who", 1: "what", 2: "where"})
        aligned = align_labels(data, config)["train"]
        assert {int(row["text"].split()[1]) % 3 for row in aligned if row["label"] == 0} == {0}
        with pytest.raises(ValueError, match="the model knows the classes a, b, c, the data has what, where, who"):
            align_labels(data, AutoConfig.for_model("bert", id2label={0: "a", 1: "b", 2: "c"}))
        unnamed = AutoConfig.for_model("bert", num_labels=3)
        with pytest.raises(ValueError, match="which is which cannot be told"):
            align_labels(data, unnamed)
        with pytest.raises(ValueError, match="the labels are numbers such as 0.5, but the model has 3 classes"):
            align_labels(self.csv(tmp_path, [(f"text {i}", i / 2) for i in range(20)]), unnamed)

    @pytest.mark.parametrize("values", [(1, 2, 3), (10, 2, 5), ("True", "False", "True")])
    def test_other_numbers_are_numbered_from_0(self, values, tmp_path):
        data = self.csv(tmp_path, [(f"text {i}", values[i % 3]) for i in range(60)])
        found = set(data["train"]["label"])
        assert found == set(range(len(set(values))))
        assert data["train"].features["label"].names == [str(v) for v in sorted(set(values))]

    def test_mappings_are_refused(self, tmp_path):
        path = tmp_path / "data.jsonl"
        path.write_text("".join(json.dumps({"text": "a", "label": {"id": 0}}) + "\n" for _ in range(20)))
        with pytest.raises(ValueError, match="expected one class or one number a sample"):
            load_text_dataset(files={"train": str(path)})

    def test_class_metrics_do_not_fit_numbers(self):
        with pytest.raises(ValueError, match="'accuracy' does not fit a regression; these do: pearson, spearman"):
            compute_metrics_for(["accuracy"], regression=True)
        with pytest.raises(ValueError, match="'pearson' does not fit a classification"):
            compute_metrics_for(["pearson"])


class TestHeads:
    def test_spans_are_not_drawn_over_padding(self, tmp_path):
        model = tiny_model("bert", "AutoModelForQuestionAnswering")
        short = tiny_batch()
        pad = {"input_ids": 1, "attention_mask": 0}
        long = {k: nn.functional.pad(v, (0, 20), value=pad[k]) for k, v in short.items()}
        scores = []
        for batch in (short, long):
            # a span is drawn for every copy of a text
            copies = [{name: value.repeat(100, 1) for name, value in batch.items()}] * 3
            scores.append(hfprune.score(model, copies)["encoder.layer.0.attention"])
        torch.testing.assert_close(scores[0], scores[1], rtol=0.3, atol=0.0)
        trainer = RecoveryTrainer(
            model,
            RecoveryArguments(output_dir=str(tmp_path), use_cpu=True),
            teacher=tiny_model("bert", "AutoModelForQuestionAnswering", seed=1),
        )
        spans = {"start_positions": torch.zeros(4).long(), "end_positions": torch.ones(4).long()}
        parts = []
        for batch in (short, long):
            with torch.no_grad():
                found = trainer._loss.terms(model, model, {**batch, **spans}, trainer.accelerator.autocast())
            parts.append([value for value, _ in found.terms["logits"]])
        torch.testing.assert_close(parts[0], parts[1], rtol=1e-3, atol=1e-5)

    def test_language_model_heads_without_a_loss_type_shift_their_labels(self):
        assert predicts_next_token(tiny_model("gpt2", "AutoModelForCausalLM"))
        assert predicts_next_token(tiny_model("llama", "AutoModelForCausalLM"))
        assert not predicts_next_token(tiny_model("bert", "AutoModelForMaskedLM"))
        assert not predicts_next_token(tiny_model("llama"))

    def test_a_labelled_pass_leaves_the_config_alone(self):
        model = tiny_model("bert", num_labels=3)
        assert model.config.problem_type is None
        hfprune.score(model, [{**tiny_batch(), "labels": torch.ones(4, 3)}], scorer="fisher")
        assert model.config.problem_type is None

    def test_multiple_choice_is_measured_and_pruned(self):
        model = tiny_model("bert", "AutoModelForMultipleChoice")
        batch = {k: v.reshape(2, 2, -1) for k, v in tiny_batch().items()}
        small = hfprune.prune(model, [batch], PruningConfig(sparsity=0.4, **SHORT))
        assert small(**batch).logits.shape == (2, 2)
        assert measure_size(small, sequence_length=8).macs > 0

    def test_positions_behind_the_padding(self):
        check_length(tiny_model("roberta"), 158)
        with pytest.raises(ValueError, match="sequence_length=159 is more than the model's 158 positions"):
            check_length(tiny_model("roberta"), 159)


class TestChangedModels:
    def test_weights_that_are_not_tied_stay_apart(self, tmp_path):
        model = tiny_model("llama", "AutoModelForCausalLM", tie_word_embeddings=True)
        model.lm_head.weight = nn.Parameter(torch.randn_like(model.lm_head.weight))
        batch = tiny_batch("llama")
        plan = uneven_plan(model)
        whole = {name: list(range(block.units)) for name, block in plan.blocks.items()}
        copy = hfprune.structure.keep_units(model, whole, blocks=hfprune.structure.find_blocks(model))
        assert torch.equal(copy(**batch).logits, model(**batch).logits)

    def test_tied_weights_stay_tied(self, tmp_path):
        model = tiny_model("llama", "AutoModelForCausalLM", tie_word_embeddings=True)
        small = hfprune.apply_plan(model, uneven_plan(model))
        assert small.lm_head.weight is small.model.embed_tokens.weight
        hfprune.save(small, tmp_path / "small")
        again = hfprune.load(tmp_path / "small")
        assert again.lm_head.weight is again.model.embed_tokens.weight

    def test_a_replaced_classifier_is_explained(self):
        model = tiny_model("bert")
        model.classifier = nn.Sequential(nn.Linear(32, 8), nn.Linear(8, 2))
        with pytest.raises(StructureError, match="has parameters that its config does not describe"):
            hfprune.apply_plan(model, uneven_plan(model))

    def test_a_spread_or_offloaded_model_is_refused(self):
        model = tiny_model("bert")
        plan = uneven_plan(model)
        model.bert.encoder.layer[1].to("meta")
        for step in (
            lambda: hfprune.apply_plan(model, plan),
            lambda: hfprune.score(model, [tiny_batch()]),
            lambda: hfprune.prune(model, [tiny_batch()], PruningConfig(**SHORT)),
        ):
            with pytest.raises(StructureError, match="weights are on cpu, meta.*Load it without device_map"):
                step()

    def test_a_pruned_mpnet_can_be_pickled(self):
        small = hfprune.apply_plan(tiny_model("mpnet"), uneven_plan(tiny_model("mpnet")))
        again = pickle.loads(pickle.dumps(small))
        assert torch.equal(again(**tiny_batch("mpnet")).logits, small(**tiny_batch("mpnet")).logits)


class TestRecords:
    def test_pruning_what_has_a_plan_but_no_record(self, tmp_path):
        model = tiny_model("bert")
        dense = measure_size(model, sequence_length=8)
        once = hfprune.apply_plan(model, uneven_plan(model))
        hfprune.save(once, tmp_path / "once")
        for start in (once, hfprune.load(tmp_path / "once")):
            twice = hfprune.prune(start, [tiny_batch()], PruningConfig(sparsity=0.7, **SHORT))
            assert twice.pruning_record.sizes["dense"] == vars(dense)

    def test_another_sequence_length_compares_like_with_like(self):
        once = hfprune.prune(tiny_model("bert"), [tiny_batch()], PruningConfig(sparsity=0.3, **SHORT))
        twice = hfprune.prune(once, [tiny_batch()], PruningConfig(sparsity=0.6, sequence_length=64))
        dense, pruned = (twice.pruning_record.sizes[stage] for stage in ("dense", "pruned"))
        assert dense["sequence_length"] == pruned["sequence_length"] == 64
        assert 0.6 <= 1 - pruned["prunable_macs"] / dense["prunable_macs"] < 0.7

    def test_save_pretrained_alone_verifies(self, tmp_path):
        small = hfprune.prune(tiny_model("bert"), [tiny_batch()], PruningConfig(sparsity=0.3, **SHORT))
        hfprune.save(small, tmp_path / "a")
        again = hfprune.load(tmp_path / "a")
        with torch.no_grad():
            again.classifier.bias += 1
        again.save_pretrained(tmp_path / "b")
        assert verify(tmp_path / "b") == []

    def test_a_table_that_names_a_missing_module(self, tmp_path):
        small = hfprune.prune(tiny_model("bert"), [tiny_batch()], PruningConfig(sparsity=0.3, **SHORT))
        path = hfprune.save(small, tmp_path / "a") / "config.json"
        path.write_text(path.read_text().replace("encoder.layer.1.output.dense", "encoder.layer.9.output.dense"))
        changed, problem = verify(tmp_path / "a")
        assert changed == "config.json is not the file that was saved: its SHA-256 differs"
        assert "the shape of 'encoder.layer.9.output.dense', and the model has no such module" in problem

    def test_commands_are_quoted_and_carry_no_token(self, monkeypatch):
        monkeypatch.setattr(sys, "argv", ["x", "--hub_token", "hf_secret", "--a", "two words", "--token=hf_secret"])
        assert command_line("run") == "run --a 'two words'"
        monkeypatch.setattr(sys, "argv", ["x", "--calibration_batch_tokens", "256", "--tokenizer", "t"])
        assert command_line("run") == "run --calibration_batch_tokens 256 --tokenizer t"


class TestFolders:
    def test_something_else_is_never_replaced(self, tmp_path):
        (tmp_path / "thesis").mkdir()
        (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
        small = hfprune.apply_plan(tiny_model("bert"), uneven_plan(tiny_model("bert")))
        with pytest.raises(CheckpointError, match="holds something else than a checkpoint; it is not replaced"):
            hfprune.save(small, tmp_path / "thesis", overwrite=True)
        assert (tmp_path / "thesis" / "thesis.tex").exists()

    def test_an_earlier_run_goes_only_when_told(self, tmp_path):
        for name in ("dense", "checkpoint-8", "mine"):
            (tmp_path / name).mkdir()
        with pytest.raises(HfpruneError, match=r"holds an earlier run \(dense, checkpoint-8\).*--overwrite"):
            clear_earlier_run(tmp_path, allowed=False)
        clear_earlier_run(tmp_path, allowed=True)
        assert [path.name for path in tmp_path.iterdir()] == ["mine"]

    def test_what_a_run_reads_is_not_removed(self, tmp_path):
        for name in ("dense", "rounds/2"):
            (tmp_path / name).mkdir(parents=True)
        for used in ("dense", "rounds/2"):
            with pytest.raises(HfpruneError, match="which --overwrite would remove.*Choose another output_dir"):
                clear_earlier_run(tmp_path, allowed=True, inputs=["some/name", str(tmp_path / used)])
        assert (tmp_path / "dense").is_dir()


class TestBatches:
    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (DataLoader([(1, 2)] * 600, batch_size=4, collate_fn=list), "a batch must be a dict of tensors, got list"),
            (
                DataLoader([{"input_ids": [1, 2]}] * 600, batch_size=4, collate_fn=lambda r: {"input_ids": [1]}),
                "input_ids in a batch is a list, not a tensor",
            ),
        ],
    )
    def test_a_loader_of_something_else(self, data, message):
        with pytest.raises(CalibrationError, match=message):
            calibration_batches(data, tiny_model("bert"))

    def test_score_wants_batches(self):
        with pytest.raises(CalibrationError, match="score takes a list of at least one batch"):
            hfprune.score(tiny_model("bert"), Dataset.from_dict({"input_ids": [[1]]}))

    @pytest.mark.parametrize("where", ["score", "trainer"])
    def test_head_mask_is_refused_everywhere(self, where, tmp_path):
        batch = {**tiny_batch(), "head_mask": torch.ones(2, 4), "labels": torch.zeros(4).long()}
        model = tiny_model("bert")
        trainer = RecoveryTrainer(model, RecoveryArguments(output_dir=str(tmp_path), use_cpu=True))
        call = (
            (lambda: hfprune.score(model, [batch])) if where == "score" else lambda: trainer.compute_loss(model, batch)
        )
        with pytest.raises(ValueError, match="transformers 5 swallows it without effect"):
            call()


class TestTrainerOptions:
    def test_options_without_effect_are_refused(self, tmp_path):
        args = RecoveryArguments(output_dir=str(tmp_path), use_cpu=True)
        with pytest.raises(ValueError, match="compute_loss_func is not used by RecoveryTrainer"):
            RecoveryTrainer(tiny_model("bert"), args, compute_loss_func=print)
        smooth = RecoveryArguments(output_dir=str(tmp_path), use_cpu=True, label_smoothing_factor=0.1)
        with pytest.raises(ValueError, match="label_smoothing_factor is not used"):
            RecoveryTrainer(tiny_model("bert"), smooth)

    def test_nothing_to_learn_from_is_said(self, tmp_path):
        trainer = RecoveryTrainer(tiny_model("bert"), RecoveryArguments(output_dir=str(tmp_path), use_cpu=True))
        with pytest.raises(ValueError, match="there is nothing to learn from: the batch has input_ids, attention_mask"):
            trainer.compute_loss(trainer.model.train(), tiny_batch())

    def test_a_micro_batch_without_labels_counts_nothing(self, tmp_path):
        model = tiny_model("bert", "AutoModelForTokenClassification")
        trainer = RecoveryTrainer(model, RecoveryArguments(output_dir=str(tmp_path), use_cpu=True))
        trainer.current_gradient_accumulation_steps = 2
        batch = {**tiny_batch(), "labels": torch.full((4, 7), -100)}
        assert trainer.compute_loss(model.train(), batch, num_items_in_batch=torch.tensor(5)) == 0


def test_splits_of_mnli():
    rows = Dataset.from_dict({"text": ["a"] * 4, "label": [0, 1, 0, 1]})
    from hfprune.data import loading as module

    original = module.datasets.load_dataset
    try:
        module.datasets.load_dataset = lambda *_: DatasetDict(train=rows, validation_matched=rows.select([0]))
        found = load_text_dataset("nyu-mll/glue", config_name="mnli")
    finally:
        module.datasets.load_dataset = original
    assert len(found["test"]) == 1
    assert np.isin(found["train"]["label"], [0, 1]).all()
