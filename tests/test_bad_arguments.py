"""Every public function, every argument: a wrong value is refused before any work, by a sentence that names it."""

import inspect
import math
import re

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from torch import nn
from typer.testing import CliRunner

import hfprune
from hfprune import PruningConfig, PruningPlan
from hfprune.cli.app import app
from hfprune.data import labels as data_labels
from hfprune.data import load_splits, load_text_dataset, load_texts, resolve_model, tokenize
from hfprune.data.corpus import load_documents, pack
from hfprune.measuring.latency import measure_latencies, measure_latency
from hfprune.measuring.size import count_macs, measure_size
from hfprune.planning import BlockPlan, allocate, register_allocator, register_budget, sparsities
from hfprune.pruning.prune import batches_for
from hfprune.pruning.steps import sparsity_of
from hfprune.publishing.legacy import load_legacy
from hfprune.publishing.verification import verify
from hfprune.recovery.losses import get_loss, register_loss, register_penalty
from hfprune.scoring import (
    calibration_batches,
    get_scorer,
    one_shot_form,
    register_scorer,
    register_statistic,
    scorers_in,
)
from hfprune.structure import anatomy_of, find_blocks, gate_gradients, keep_units, register_architecture
from hfprune.structure.architectures import register_finder
from hfprune.sweeping import correctness
from tests.support.tiny import tiny_batch, tiny_model
from tests.support.tiny_data import tiny_tokenizer

# kinds of wrong values
NOT_WHOLE = [1.5, "1", True, math.nan, [1], torch.tensor(1.5)]
COUNT = [*NOT_WHOLE, 0, -1, None]
COUNT_OR_NONE = [*NOT_WHOLE, 0, -1]
FROM_ZERO = [*NOT_WHOLE, -1, None]
SEED = [*NOT_WHOLE, -1, None, 2**32]
FLAG = ["no", 1, 0, None, [], "False"]
NAME = ["", None, 3, ["l2"], b"l2"]
UNIT = ["querry", "Group", 1, True, ["group"], ""]
FUNCTION = ["accuracy", 0.5, {}]
CONFIG = [{"sparsity": 0.5}, 0.5, "0.5", PruningConfig, [], 0]
FRACTION = [50, 1.0, -0.1, math.nan, math.inf, "0.5", True, [0.5], None]
WEIGHT = [-1, math.nan, math.inf, "1", None, True, [1.0]]
PATH = [3, None, ["a"], 0.5]
TEXTS = ["text", 3, None, [1], [None]]


class Values:
    """Good values of arguments, made once."""

    def __init__(self):
        self.model = tiny_model("bert", num_labels=3)
        self.batches = [tiny_batch()]
        self.blocks = find_blocks(self.model)
        self.scores = hfprune.score(self.model, self.batches, scorer="l2")
        self.config = PruningConfig(sequence_length=8)
        self.tokenizer = tiny_tokenizer()
        self.data = Dataset.from_dict({"text": ["a cat", "a dog"], "label": [0, 1]})
        self.splits = DatasetDict(train=self.data)
        self.plan = hfprune.plan(self.model, self.scores, self.config)
        self.small = hfprune.apply_plan(self.model, self.plan)


def evaluate(model):
    raise AssertionError("evaluate was called")


@pytest.fixture(scope="module")
def values():
    return Values()


#: Name, function, good arguments (from `Values`), and bad values by name of the argument.
TABLE = [
    (
        hfprune.score,
        lambda v: {"model": v.model, "batches": v.batches},
        {"scorer": NAME, "seed": SEED, "attention_unit": UNIT, "gradient_checkpointing": FLAG},
    ),
    (
        hfprune.plan,
        lambda v: {"model": v.model, "scores": v.scores},
        {
            "config": CONFIG,
            "scores": [None, {}, 3],
            "sparsity": ["0.5", 50, math.nan, True, [0.5, math.nan], ["0.2", "0.5"], [], [0.2, 1.5]],
        },
    ),
    (hfprune.trade_off, lambda v: {"model": v.model, "scores": v.scores}, {"config": CONFIG, "scores": [None, {}]}),
    (hfprune.apply_plan, lambda v: {"model": v.model}, {"plan": [None, {}, "plan.json", 0.5]}),
    (
        hfprune.prune,
        lambda v: {"model": v.model, "data": v.batches},
        {"config": CONFIG, "collator": FUNCTION, "recover": FUNCTION, "sparsity": [0.5, "0.5", {}, [0.5]]},
    ),
    (
        batches_for,
        lambda v: {"model": v.model, "data": v.batches, "config": v.config},
        {"config": [*CONFIG, None], "collator": FUNCTION},
    ),
    (sparsity_of, lambda v: {"model": v.model}, {"config": [*CONFIG, None]}),
    (
        hfprune.reconstruct,
        lambda v: {"pruned": v.small, "dense": v.model, "batches": v.batches},
        {"folder": [3, ["a"], 0.5], "device": ["gpu", "cudda:0", ["cpu"], 0.5]},
    ),
    (
        hfprune.sweep,
        lambda v: {"model": v.model, "data": v.batches, "sparsities": [0.5], "evaluate": evaluate},
        {
            "config": [*CONFIG],
            "sparsities": ["0.5", 0.5, None, [], ["0.5"], [math.nan], [50]],
            "evaluate": [*FUNCTION, None],
            "recover": FUNCTION,
            "collator": FUNCTION,
            "latency_batch_size": COUNT_OR_NONE,
            "latency_runs": COUNT,
            "metric": NAME,
            "save_to": [3, 0.5, "."],
        },
    ),
    (
        hfprune.prune_within,
        lambda v: {"model": v.model, "data": v.batches, "max_drop": 0.01, "evaluate": evaluate},
        {
            "config": CONFIG,
            "max_drop": [math.nan, math.inf, "0.01", None, True],
            "evaluate": [*FUNCTION, None],
            "confidence": [0, 1, 95, math.nan, "0.95", None, True],
            "step": [0, 1, -0.1, 1e-7, 5, math.nan, "0.05", None, True],
            "recover": FUNCTION,
            "collator": FUNCTION,
            "metric": NAME,
        },
    ),
    (correctness, lambda v: {"data": v.data}, {"collator": FUNCTION, "batch_size": COUNT}),
    (
        calibration_batches,
        lambda v: {"data": v.batches, "model": v.model},
        {"samples": COUNT, "batch_size": COUNT, "batch_tokens": COUNT, "seed": SEED, "collator": FUNCTION},
    ),
    (get_scorer, lambda _: {}, {"name": [*NAME, "l3"]}),
    (scorers_in, lambda _: {}, {"scorer": [*NAME, "l3"]}),
    (one_shot_form, lambda _: {}, {"scorer": [*NAME, "l3"]}),
    (register_scorer, lambda _: {"name": "mine"}, {"name": NAME, "reads": NAME, "labels": ["datta", None, 3]}),
    (register_statistic, lambda _: {}, {"name": NAME}),
    (register_allocator, lambda _: {"name": "mine"}, {"name": NAME, "ignores_scores": FLAG, "block_by_block": FLAG}),
    (register_budget, lambda _: {"name": "mine"}, {"name": NAME, "recorded_as": ["unit_param", None, 3]}),
    (register_loss, lambda _: {}, {"name": NAME}),
    (register_penalty, lambda _: {}, {"name": NAME}),
    (get_loss, lambda _: {}, {"name": [*NAME, "no such loss"]}),
    (register_finder, lambda _: {}, {"name": NAME}),
    (
        register_architecture,
        lambda _: {"model_type": "mine", "architecture": None},
        {"model_type": NAME, "architecture": [None, {}, 3]},
    ),
    (anatomy_of, lambda v: {"model": v.model}, {"attention_unit": UNIT}),
    (find_blocks, lambda v: {"model": v.model}, {"attention_unit": UNIT}),
    (gate_gradients, lambda v: {"model": v.model, "blocks": v.blocks, "batch": v.batches[0]}, {"loss": FUNCTION}),
    (
        keep_units,
        lambda v: {"model": v.model, "blocks": v.blocks},
        {
            "kept": [
                {"typo": [0]},
                {"encoder.layer.0.ffn": [0.5]},
                {"encoder.layer.0.ffn": [0, 0]},
                {"encoder.layer.0.ffn": [1, 0]},
                {"encoder.layer.0.ffn": [-1]},
                {"encoder.layer.0.ffn": [40]},
                {"encoder.layer.0.ffn": [True]},
                {"encoder.layer.0.ffn": ["0"]},
            ]
        },
    ),
    (
        measure_size,
        lambda v: {"model": v.model, "sequence_length": 8},
        {"sequence_length": COUNT, "attention_unit": UNIT},
    ),
    (count_macs, lambda v: {"model": v.model}, {"sequence_length": COUNT}),
    (
        measure_latency,
        lambda v: {"model": v.model, "sequence_length": 8},
        {"batch_size": COUNT, "sequence_length": COUNT, "runs": COUNT, "warmup": FROM_ZERO},
    ),
    (
        measure_latencies,
        lambda v: {"models": [v.model], "sequence_length": 8, "batch_size": 2},
        {"batch_size": COUNT, "sequence_length": COUNT, "runs": COUNT, "warmup": FROM_ZERO},
    ),
    (
        hfprune.perplexity,
        lambda v: {"model": v.model, "tokenizer": v.tokenizer, "texts": ["a cat"]},
        {"window": COUNT, "stride": COUNT_OR_NONE, "batch_size": COUNT},
    ),
    (
        sparsities,
        lambda _: {"schedule": "geometric", "start": 0.0, "target": 0.5},
        {
            "schedule": ["geometrik", None, 3],
            "start": FRACTION,
            "target": [50, 1.1, *FRACTION[2:]],
            "rounds": COUNT_OR_NONE,
            "keeps": [0, *FRACTION],
        },
    ),
    (
        allocate,
        lambda v: {
            "blocks": v.blocks,
            "scores": v.scores,
            "limit": 10**9,
            "budget": "params",
            "sequence_length": 8,
            "model_type": "bert",
        },
        {
            # None means that no unit is removed but those that patterns name
            "limit": [value for value in FROM_ZERO if value is not None],
            "budget": ["flops", None, 3, []],
            "sequence_length": COUNT,
            "model_type": NAME,
            "allocation": [*NAME, "globall"],
            "min_units": FROM_ZERO,
            "round_to": COUNT,
            "exclude": TEXTS,
            "stock_widths": FLAG,
            "seed": SEED,
        },
    ),
    (
        PruningPlan.keep,
        lambda v: {"blocks": v.blocks, "kept": {}, "model_type": "bert", "sequence_length": 8},
        {
            "kept": [{"typo": [0]}, [0], None, "encoder"],
            "model_type": NAME,
            "sequence_length": COUNT,
        },
    ),
    (hfprune.save, lambda v: {"model": v.small}, {"path": PATH}),
    (hfprune.save, lambda v: {"model": v.small, "path": "small"}, {"overwrite": FLAG}),
    (hfprune.load, lambda _: {"path": "no such folder"}, {"path": PATH, "verify": FLAG}),
    (
        load_legacy,
        lambda _: {"folder": "no such folder"},
        {"folder": PATH, "sequence_length": COUNT, "pickled": FLAG},
    ),
    (verify, lambda _: {}, {"folder": PATH}),
    (
        hfprune.push_to_hub,
        lambda v: {"model": v.small, "repo_id": "me/small"},
        {
            "repo_id": NAME,
            "private": ["no", 1],
            "revision": ["", 3],
            "create_pr": FLAG,
            "commit_message": NAME,
        },
    ),
    (
        hfprune.add_teacher_logits,
        lambda v: {"data": v.data, "teacher": v.model},
        {
            "collator": FUNCTION,
            "batch_size": COUNT,
            "top_k": NOT_WHOLE,
            "temperature": [0, -1, math.nan, math.inf, "1", None, True],
        },
    ),
    (
        hfprune.self_generated,
        lambda v: {"model": v.model, "tokenizer": v.tokenizer, "samples": 1, "tokens": 1},
        {"samples": COUNT, "tokens": COUNT, "batch_size": COUNT, "seed": SEED},
    ),
    (
        hfprune.prune_vocabulary,
        lambda v: {"model": v.model, "tokenizer": v.tokenizer, "texts": ["a cat"]},
        {"keep": TEXTS, "min_count": COUNT, "pad_to_multiple_of": COUNT_OR_NONE},
    ),
    (pack, lambda v: {"data": v.splits, "tokenizer": v.tokenizer}, {"text_column": NAME, "max_length": COUNT}),
    (pack, lambda v: {"data": v.splits, "tokenizer": v.tokenizer}, {"whole": FLAG}),
    (
        tokenize,
        lambda v: {"data": v.splits, "tokenizer": v.tokenizer},
        {"text_column": NAME, "pair_column": ["", 3, ["a"]], "label_column": ["", 3, ["a"]], "max_length": COUNT},
    ),
    (load_documents, lambda _: {"name": "no such data"}, {"text_column": NAME, "seed": SEED}),
    (
        load_splits,
        lambda _: {"name": "no such data", "columns": ["text"]},
        {"columns": TEXTS, "seed": SEED, "reuse_validation": FLAG},
    ),
    (
        load_text_dataset,
        lambda _: {"name": "no such data"},
        {"label_column": NAME, "seed": SEED, "reuse_validation": FLAG},
    ),
    (load_texts, lambda _: {"name_or_file": "x.csv"}, {"name_or_file": NAME, "columns": TEXTS, "documents": FLAG}),
    (resolve_model, lambda _: {}, {"name_or_path": NAME}),
    (data_labels.align_labels, lambda v: {"data": v.splits, "config": v.model.config}, {"label_column": NAME}),
    (
        hfprune.GradualPruning,
        lambda _: {},
        {
            "config": CONFIG,
            "schedule": [*NAME, "cubik"],
            "start": [-0.1, 1.5, math.nan, "0", None, True],
            "end": [0.0, 1.5, math.nan, "0.6", None, True],
            "every": COUNT,
        },
    ),
    (
        hfprune.RecoveryArguments,
        lambda _: {"output_dir": "out", "report_to": "none", "use_cpu": True},
        {
            **dict.fromkeys(["task_weight", "logits_weight", "hidden_states_weight"], WEIGHT),
            **dict.fromkeys(["attention_outputs_weight", "unit_l1", "unit_l2", "unit_group_lasso"], WEIGHT),
            **{key: [0, *WEIGHT] for key in ["temperature", "base_model_lr_factor", "lr_step_factor"]},
            **{key: [1.0, *WEIGHT] for key in ["token_dropout", "lora_dropout"]},
            **dict.fromkeys(["teacher_top_k", "lora_rank"], FROM_ZERO),
            "lora_alpha": [*NOT_WHOLE, None],
            "trainable": [3, None, [1]],
            "disable_dropout": FLAG,
            "freeze_embeddings": FLAG,
            "lr_steps": [0.5, "0.5", [math.nan], ["0.5"], [2.0], [0.7, 0.5], None],
            "loss_weights": [3, {"no such loss": 1.0}, [1.0]],
        },
    ),
    (
        PruningConfig,
        lambda _: {},
        {
            "sparsity": FRACTION,
            "budget": ["flops", None, 3, []],
            "sequence_length": COUNT,
            "scorer": NAME,
            "attention_unit": [*UNIT, None],
            "allocation": NAME,
            "schedule": NAME,
            "rounds": COUNT_OR_NONE,
            "reconstruct": FLAG,
            "calibration_samples": COUNT,
            "calibration_batch_size": COUNT,
            "calibration_batch_tokens": COUNT,
            "calibration_checkpointing": FLAG,
            "min_units": FROM_ZERO,
            "round_to": COUNT_OR_NONE,
            "exclude": TEXTS,
            "portable": FLAG,
            "seed": SEED,
        },
    ),
]


def _cases():
    for function, good, bad in TABLE:
        for argument, wrong in bad.items():
            name = getattr(function, "__qualname__", function.__name__)
            yield pytest.param(function, good, argument, wrong, id=f"{name}-{argument}")


@pytest.mark.parametrize(("function", "good", "argument", "wrong"), list(_cases()))
def test_a_wrong_value(function, good, argument, wrong, values, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    arguments = good(values)

    def work(*_, **__):
        raise AssertionError(f"{function.__name__} worked before it looked at {argument}")

    # no model runs, and nothing is written
    monkeypatch.setattr(nn.Linear, "forward", work)
    for value in wrong:
        with pytest.raises(ValueError, match=rf"\b{argument}\b|unknown|^sparsity") as refusal:
            function(**{**arguments, argument: value})
        message = str(refusal.value)
        # some of the value stands in the message, in the words of Python or as text
        parts = [repr(value)[:20], str(value)[:20], *_shown_parts(value)]
        assert any(part and part in message for part in parts) or value in ("", [], {}), message
    assert not list(tmp_path.iterdir())


def _shown_parts(value):
    """What a message may show of a value that holds others."""
    if isinstance(value, dict):
        return [str(item) for pair in value.items() for item in pair]
    if isinstance(value, list):
        return [repr(item) for item in value]
    return [f"{value:g}"] if isinstance(value, float) else []


def test_the_good_values_are_good(values):
    """Else the table above would prove nothing."""
    hfprune.score(values.model, values.batches, scorer="l2", seed=2**32 - 1, attention_unit="query")
    hfprune.plan(values.model, values.scores, None, sparsity=(0.2, 0.5))
    assert PruningConfig(round_to=np.int64(8), seed=np.int32(3), sparsity=np.float32(0.5)).to_dict()["round_to"] == 8
    assert PruningConfig(exclude=("*.0.ffn",)).exclude == ["*.0.ffn"]
    assert resolve_model("me/model") == "me/model"
    assert sparsities("geometric", start=0.0, target=0.5, rounds=2)


def test_every_checked_function_keeps_its_face():
    for function, _, bad in TABLE:
        parameters = inspect.signature(function).parameters
        assert set(bad) <= set(parameters)
        assert function.__doc__


class TestPlans:
    """Plans hold whole numbers, whoever makes them."""

    @pytest.mark.parametrize("kept", [(0.5,), (0, 1.0), ("0",), (True,), (math.nan,), (None,)])
    def test_indices(self, kept, values):
        fields = {"kind": "ffn", "units": 4, "unit_params": 9, "unit_macs": 64}
        with pytest.raises(ValueError, match="the plan of block 'a.ffn' must keep whole numbers, got"):
            PruningPlan(model_type="bert", sequence_length=8, blocks={"a.ffn": BlockPlan(kept=kept, **fields)})
        name = values.blocks[1].name
        with pytest.raises(ValueError, match=f"the plan of block '{name}' must keep whole numbers, got"):
            PruningPlan.keep(values.blocks, {name: kept}, model_type="bert", sequence_length=8)

    @pytest.mark.parametrize("kept", [np.array([0, 2]), torch.tensor([0, 2]), [np.int64(0), 2], range(0, 4, 2)])
    def test_whole_numbers_of_other_libraries(self, kept, values):
        name = values.blocks[1].name
        plan = PruningPlan.keep(values.blocks, {name: kept}, model_type="bert", sequence_length=8)
        assert plan.blocks[name].kept == (0, 2)
        assert PruningPlan.from_json(plan.to_json()) == plan
        assert hfprune.apply_plan(values.model, plan).pruning_plan == plan

    @pytest.mark.parametrize("kept", [[0, 0], [2, 1], [-1], [40]])
    def test_order_and_range(self, kept, values):
        with pytest.raises(ValueError, match="must keep increasing indices from 0 to 39, got"):
            PruningPlan.keep(values.blocks, {values.blocks[1].name: kept}, model_type="bert", sequence_length=8)

    @pytest.mark.parametrize("kept", [None, 3, "012"])
    def test_no_list_of_units(self, kept, values):
        name = values.blocks[1].name
        with pytest.raises(
            ValueError, match=f"block '{name}' must keep a list of the units that stay, got {kept!r}. Le"
        ):
            PruningPlan.keep(values.blocks, {name: kept}, model_type="bert", sequence_length=8)

    @pytest.mark.parametrize("value", ["x", None, True, [0.5]])
    def test_fractions_that_are_no_numbers(self, value, values):
        for call in (
            lambda sparsity: hfprune.plan(values.model, values.scores, sparsity=sparsity),
            lambda sparsity: hfprune.prune(
                values.model, values.batches, PruningConfig(sequence_length=7), sparsity=sparsity
            ),
        ):
            with pytest.raises(ValueError, match="sparsity of '\\*' must be a finite number, got"):
                call({"*": value})
            with pytest.raises(ValueError, match="a pattern of block names in sparsity must be a text.*, got 1"):
                call({1: 0.5})


class TestCalls:
    """Arguments that do not fit are refused by Python's own sentence, with the name of the function in it."""

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda values: hfprune.prune(values.model), r"^prune\(\) missing 1 required positional argument: 'data'"),
            (lambda values: verify(), r"^verify\(\) missing 1 required positional argument: 'folder'"),
            (lambda values: verify("a", "b"), r"^verify\(\) takes 1 positional argument but 2 were given"),
            (lambda values: hfprune.prune(values.model, [], sparsty=0.5), r"^prune\(\) got an unexpected.*'sparsty'"),
            (lambda values: hfprune.score(values.model, [], model=1), r"^score\(\) got multiple values.*'model'"),
        ],
        ids=["missing", "none", "too many", "misspelt", "twice"],
    )
    def test_it_names_the_function(self, call, message, values):
        with pytest.raises(TypeError, match=message) as caught:
            call(values)
        assert caught.value.__context__ is None


class TestTuples:
    """A model whose outputs have no names."""

    def test_they_are_refused_where_logits_are_needed(self, values, tmp_path):
        model = tiny_model("bert", num_labels=3, return_dict=False)
        args = hfprune.RecoveryArguments(str(tmp_path), use_cpu=True, report_to="none")
        for call in (
            lambda: hfprune.score(model, [tiny_batch()]),
            lambda: hfprune.score(values.model, [tiny_batch()], scorer="kl_fisher", teacher=model),
            lambda: hfprune.prune(model, [tiny_batch()], PruningConfig(sequence_length=7)),
            lambda: hfprune.RecoveryTrainer(model, args, train_dataset=[]),
            lambda: hfprune.RecoveryTrainer(values.model, args, teacher=model, train_dataset=[]),
            lambda: hfprune.add_teacher_logits(Dataset.from_list([{"input_ids": [5]}]), model),
        ):
            with pytest.raises(ValueError, match="has return_dict=False.*Set model.config.return_dict = True"):
                call()

    def test_scorers_of_weights_and_activations_do_without(self):
        config = PruningConfig(sequence_length=7, scorer="fluctuation")
        small = hfprune.prune(tiny_model("bert", num_labels=3, return_dict=False), [tiny_batch()], config)
        expected = hfprune.prune(tiny_model("bert", num_labels=3), [tiny_batch()], config)
        assert small.pruning_plan == expected.pruning_plan


class TestCommands:
    """Options out of range are refused in one line."""

    def run(self, *arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    @pytest.mark.parametrize("length", [0, -1])
    @pytest.mark.parametrize("command", [("inspect", "no such model"), ("import", "no such folder", "out")])
    def test_sequence_length(self, command, length, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        result = self.run(*command, "--sequence-length", length)
        assert result.exit_code == 1
        assert f"--sequence-length must be a whole number of at least 1, got {length}" in result.output
        assert result.output.count("\n") == 1

    @pytest.mark.parametrize("command", ["prune", "sweep", "evaluate"])
    def test_seed(self, command, tmp_path):
        hfprune_model = tmp_path / "model"
        model = tiny_model("bert", num_labels=3)
        model.save_pretrained(hfprune_model)
        tiny_tokenizer().save_pretrained(hfprune_model)
        output = [tmp_path / "out"] if command == "prune" else []
        result = self.run(command, hfprune_model, *output, "--data", "trec", "--seed", -1)
        assert result.exit_code == 1
        assert re.search(r"seed must be a whole number from 0 to \d+, got -1", result.output)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("command", "said"),
        [
            ("prune", "the data has no test split, and none can be cut from a train split of 1 row(s)"),
            ("sweep", "the data has 1 row(s), and none is left to measure on"),
        ],
    )
    def test_a_file_of_one_row(self, command, said, tmp_path):
        model = tiny_model("bert", num_labels=3)
        model.save_pretrained(tmp_path / "model")
        tiny_tokenizer().save_pretrained(tmp_path / "model")
        Dataset.from_dict({"text": ["a cat"], "label": [0]}).to_csv(tmp_path / "one.csv")
        output = [tmp_path / "out"] if command == "prune" else []
        result = self.run(command, tmp_path / "model", *output, "--data", tmp_path / "one.csv")
        assert result.exit_code == 1
        assert said in result.output

    def test_a_sweep_in_multiples(self, tmp_path):
        model = tiny_model("bert", num_labels=3)
        model.save_pretrained(tmp_path / "model")
        tiny_tokenizer().save_pretrained(tmp_path / "model")
        rows = {"text": ["a cat", "the dog", "a man"] * 10, "label": [0, 1, 2] * 10}
        Dataset.from_dict(rows).to_csv(tmp_path / "data.csv")
        result = self.run(
            *("sweep", tmp_path / "model", "--data", tmp_path / "data.csv", "--sparsity", 0.5, "--round-to", 8),
            *("--scorer", "l2", "--max-length", 8, "--calibration-samples", 24, "--output", tmp_path / "curve.json"),
        )
        assert result.exit_code == 0, result.output
        curve = hfprune.Sweep.from_json((tmp_path / "curve.json").read_text())
        assert curve.settings["round_to"] == 8
        refused = self.run("sweep", tmp_path / "model", "--data", tmp_path / "data.csv", "--round-to", 0)
        assert refused.exit_code == 1
        assert "round_to must be a whole number of at least 1, got 0" in refused.output


def test_a_search_in_tiny_steps_ends_at_once(values):
    """It planned for ten million candidates."""
    with pytest.raises(ValueError, match="step must be at least 0.001, got 1e-07"):
        hfprune.prune_within(values.model, values.batches, max_drop=0.1, evaluate=evaluate, step=1e-7)
