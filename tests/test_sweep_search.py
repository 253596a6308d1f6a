"""What a sweep shows: its curve and knee, what is within a limit; prune_within(), and the commands."""

import builtins
import json
from dataclasses import replace

import pytest
import torch
from transformers import DataCollatorWithPadding
from typer.testing import CliRunner

import hfprune
from hfprune import Sweep
from hfprune.cli.app import app
from hfprune.errors import BudgetError, MissingDependencyError
from hfprune.sweeping import correctness, points, search
from tests.support.sweeps import BATCHES, SHORT, answers, curve, output_sum, point
from tests.support.tiny import tiny_batch, tiny_model
from tests.support.tiny_data import tiny_texts, tiny_tokenized, tiny_tokenizer


class TestCurve:
    def test_the_knee_by_hand(self):
        # The chord falls from 0.9 to 0.1 over 0.8: one point of metric a point of sparsity. Heights above it:
        # 0, 0.19, 0.36, 0.3, 0.
        found = curve(point(0, 0.9), point(0.2, 0.89), point(0.4, 0.86), point(0.6, 0.6), point(0.8, 0.1))
        assert found.knee is found.points[2]
        shorter = replace(found, points=found.points[:3])
        assert shorter.knee is shorter.points[1], "it depends on where the sweep ends"

    @pytest.mark.parametrize("metrics", [[0.9, 0.9, 0.9], [0.9, 0.5, 0.1], [0.9, 0.2, 0.1], [0.9], [0.9, 0.3]])
    def test_no_knee_where_no_point_is_above_the_chord(self, metrics):
        assert curve(*(point(i / 4, value) for i, value in enumerate(metrics))).knee is None

    def test_the_interval_by_hand(self):
        # 98 samples: lost on 6, won on 1. With one made-up sample of each: mean (7 − 2) / 100, var 0.09 − 0.05².
        dense, pruned = answers(97, 1), (0.0,) * 6 + (1.0,) * 92
        drop = points.paired_drop(dense, pruned, confidence=0.95)
        assert drop.mean == pytest.approx(5 / 98)
        assert drop.upper == pytest.approx(0.05 + 1.6448536 * (0.0875 / 100) ** 0.5)
        assert drop.samples == 98
        wider = points.paired_drop(dense, pruned, confidence=0.99)
        assert wider.upper == pytest.approx(0.05 + 2.3263479 * (0.0875 / 100) ** 0.5)

    def test_only_samples_that_differ_widen_it(self):
        changed = points.paired_drop(answers(500, 500), answers(500, 500)[::-1])
        same = points.paired_drop(answers(500, 500), answers(500, 500))
        assert changed.mean == same.mean == 0
        assert same.upper == pytest.approx(1.6448536 * (2 / 1002) ** 0.5 / 1002**0.5)
        assert changed.upper > 10 * same.upper

    def test_values_that_are_no_answers_get_the_plain_interval(self):
        drop = points.paired_drop([4.0, 6.0], [1.0, 1.0])  # differences 3 and 5: mean 4, variance 1
        t = 6.3137515  # of one degree of freedom, at 0.95
        assert (drop.mean, drop.upper) == (4.0, pytest.approx(4 + t * (2 / 2) ** 0.5))
        with pytest.raises(ValueError, match="two or more, got 1 and 1 values"):
            points.paired_drop([-1.0], [-1.2])

    def test_answers_on_another_scale(self):
        found = points.paired_drop([0, 100] * 10, [0, 100] * 10)
        assert found.upper == pytest.approx(100 * points.paired_drop([0, 1] * 10, [0, 1] * 10).upper)

    def test_within(self):
        dense = answers(1000, 0)
        found = curve(
            point(0, per_sample=dense),
            point(0.2, per_sample=answers(999, 1)),
            point(0.4, per_sample=answers(996, 4)),  # seen 0.004, at most 0.0084
            point(0.6, per_sample=answers(994, 6)),  # seen 0.006, at most 0.0113
            point(0.8, per_sample=answers(900, 100)),
        )
        assert found.within(0.01).sparsity == 0.4
        assert found.within(0.012).sparsity == 0.6
        assert found.within(0.01, confidence=0.8).sparsity == 0.6
        assert found.within(0.2).sparsity == 0.8
        assert found.within(0.0025) is None

    def test_within_is_refused_where_nothing_can_be_shown(self):
        with pytest.raises(ValueError, match="one number a model, so no confidence interval.*sweeping.correctness"):
            curve(point(0, 0.9), point(0.5, 0.9)).within(0.01)
        few = curve(point(0, per_sample=answers(50, 0)), point(0.5, per_sample=answers(50, 0)))
        with pytest.raises(ValueError, match=r"50 samples cannot show a drop below 0.01.*0.0447 even.*at least (\d+)"):
            few.within(0.01)
        with pytest.raises(ValueError, match="max_drop must be positive, got 0"):
            few.within(0)
        with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\), got 95: write 0.95 for 95 %"):
            few.within(0.1, confidence=95)
        with pytest.raises(ValueError, match="same samples for both models, two or more, got 50 and 2 values"):
            curve(few.dense, point(0.5, per_sample=(1.0, 0.0))).within(0.5)

    def test_the_number_of_samples_that_is_advised_is_enough(self):
        few = curve(point(0, per_sample=answers(50, 0)), point(0.5, per_sample=answers(50, 0)))
        with pytest.raises(ValueError, match="at least") as caught:
            few.within(0.01)
        advised = int(str(caught.value).split("at least ")[1].split(",")[0])
        assert advised < 300
        same = point(0.5, per_sample=answers(advised, 0))
        assert curve(replace(same, sparsity=0.0), same).within(0.01) is same

    def test_the_table_names_what_every_number_is_of(self):
        dense = point(0, per_sample=answers(990, 10), latency_ms=10.0)
        small = point(0.5, per_sample=answers(980, 20), latency_ms=5.0)
        smaller = point(0.8, per_sample=answers(500, 500), latency_ms=2.0)
        text = str(replace(curve(dense, small, smaller), scoring_seconds=2.0))
        head, first, second, third, *notes = text.splitlines()
        assert " ".join(head.split()) == (
            "sparsity MACs kept params kept parameters accuracy drop at most latency, ms speed-up seconds"
        )
        assert first.split() == ["0.00", "100.0%", "100.0%", "1,500", "0.9900", "0.0000", "10.0", "1.00×", "1.5"]
        assert second.split()[:6] == ["0.50", "50.0%", "50.0%", "1,000", "0.9800", "0.0100"]
        assert second.split()[6:] == ["0.0156", "5.0", "2.00×", "1.5", "←", "knee"]
        assert "← knee" not in third
        told = "\n".join(notes)
        assert "of its 1,000 prunable ones for a sequence of 8 tokens; params kept: of its 1,000 prunable ones" in told
        assert "mean over 1,000 samples, the same in every row" in told
        assert "paired one-sided 95% interval" in told
        assert "median of 3 runs each, in turn; cpu, float32, 1 threads, batch 2, 8 tokens" in told
        assert "one scoring pass before, 2.0; scorer: fisher" in told
        plain = curve(point(0, 0.9), point(0.5, 0.8)).table()
        assert "at most" not in plain
        assert "latency" not in plain
        assert "of unknown samples" in plain

    def test_the_picture(self, tmp_path):
        found = curve(point(0, 0.9, latency_ms=10), point(0.4, 0.88, latency_ms=7), point(0.8, 0.5, latency_ms=3))
        assert len(found.plot(tmp_path / "new" / "sweep.png").axes) == 2
        one = (tmp_path / "new" / "sweep.png").read_bytes()
        assert one.startswith(b"\x89PNG")
        untimed = replace(found, points=tuple(replace(p, latency=None, speedup=None) for p in found.points))
        untimed.plot(tmp_path / "other.png")
        other = (tmp_path / "other.png").read_bytes()
        width, narrower = (int.from_bytes(png[16:20]) for png in (one, other))
        assert (width, narrower) == (1440, 720), "a panel each for MACs and latency"

    def test_without_matplotlib(self, tmp_path, monkeypatch):
        real = builtins.__import__

        def missing(name, *arguments, **named):
            if name.startswith("matplotlib"):
                raise ImportError(name)
            return real(name, *arguments, **named)

        monkeypatch.setattr(builtins, "__import__", missing)
        with pytest.raises(MissingDependencyError, match="not installed: pip install matplotlib"):
            curve(point(0), point(0.5)).plot(tmp_path / "sweep.png")
        assert not (tmp_path / "sweep.png").exists()


class TestCorrectness:
    def test_it_is_one_bool_a_sample_in_one_order(self):
        data, model = tiny_tokenized(20), tiny_model("bert", num_labels=3).train()
        evaluate = correctness(data, collator=DataCollatorWithPadding(tiny_tokenizer()), batch_size=8)
        found = evaluate(model)
        assert model.training
        model.eval()
        rows = [{k: torch.tensor([v]) for k, v in row.items() if k != "labels"} for row in data]
        with torch.no_grad():
            guesses = [int(model(**row).logits.argmax()) for row in rows]
        right = [guess == label for guess, label in zip(guesses, data["labels"], strict=True)]
        assert sorted(found) == sorted(right)
        assert 0 < sum(found) < 20
        assert found == evaluate(model)

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            ({}, "one class a sample as labels, got none"),
            ({"labels": torch.zeros(4)}, r"got torch.float32 of shape \(4,\)"),
            ({"labels": torch.zeros(4, 7, dtype=torch.long)}, r"got torch.int64 of shape \(4, 7\)"),
        ],
    )
    def test_other_labels_are_refused(self, labels, message):
        with pytest.raises(ValueError, match=message):
            correctness([{**tiny_batch(), **labels}])(tiny_model("bert"))


class Staged:
    """An `evaluate` of 1,000 samples: the dense model is right on all, others wrong where a sparsity says."""

    def __init__(self, wrong):
        self.wrong, self.asked = wrong, []

    def __call__(self, model):
        plan = getattr(model, "pruning_plan", None)
        sparsity = 0.0 if plan is None else plan.sparsity("macs")
        self.asked.append(sparsity)
        wrong = self.wrong(sparsity)
        return answers(1000 - wrong, wrong)


class TestPruneWithin:
    def search(self, evaluate, *, config=None, **changes):
        given = {"max_drop": 0.01, "step": 0.1, **changes}
        return hfprune.prune_within(tiny_model("bert"), BATCHES, config or SHORT, evaluate=evaluate, **given)

    @pytest.mark.parametrize("limit", [0.15, 0.45, 0.75])
    def test_it_finds_the_highest_sparsity_within(self, limit):
        evaluate = Staged(lambda sparsity: 0 if sparsity < limit else 50)
        small, tried = self.search(evaluate)
        wanted = round(limit - 0.05, 1)
        best = tried.within(0.01)
        assert best.sparsity == wanted
        assert best.plan_digest == small.pruning_plan.digest
        assert small.pruning_record.config["sparsity"] == wanted
        assert {wanted, round(wanted + 0.1, 1)} <= {p.sparsity for p in tried.points}, "the next one was tried, too"
        assert len(evaluate.asked) == len(tried.points) <= 5, "bisection: 9 candidates, at most 4 tries, and the dense"
        alone = hfprune.prune(tiny_model("bert"), BATCHES, replace(SHORT, sparsity=wanted))
        assert alone.pruning_plan == small.pruning_plan
        assert output_sum(alone) == output_sum(small)
        assert len(small.pruning_record.rounds) == len(alone.pruning_record.rounds)
        assert "scoring, surgery, repair" in tried.table()

    def test_everything_is_within(self):
        small, tried = self.search(Staged(lambda sparsity: 0), step=0.4)
        assert tried.within(0.01).sparsity == 0.8
        assert small.pruning_plan.sparsity("macs") >= 0.8

    def test_candidates_that_the_constraints_forbid_are_left_out(self):
        config = replace(SHORT, exclude=["*.attention", "*.0.ffn"])
        _, tried = self.search(Staged(lambda sparsity: 0), config=config, step=0.05)
        highest = tried.points[-1].sparsity
        assert 0.1 <= highest < 0.5
        with pytest.raises(BudgetError):
            hfprune.prune(tiny_model("bert"), BATCHES, replace(config, sparsity=highest + 0.05))
        with pytest.raises(BudgetError, match="no multiple of step=0.6 can be reached: "):
            self.search(Staged(lambda sparsity: 0), config=config, step=0.6)

    def test_candidates_are_recovered(self):
        def done(model):
            return float(model.classifier.bias[0].detach()) == 7

        def recover(small, dense):
            small.classifier.bias.data.fill_(7)

        def evaluate(model):
            return answers(1000, 0) if done(model) or not hasattr(model, "pruning_plan") else answers(0, 1000)

        small, tried = self.search(evaluate, recover=recover, step=0.4)
        assert done(small)
        assert tried.settings["recover"] is True

    def test_nothing_is_within(self):
        with pytest.raises(
            BudgetError,
            match=r"even sparsity 0.1 lets accuracy drop by 0.0200, at most 0.02\d\d with 95% confidence "
            r"\(1000 samples\), which is not below max_drop=0.01",
        ):
            self.search(Staged(lambda sparsity: 20 if sparsity else 0), metric="accuracy")

    @pytest.mark.parametrize(
        ("evaluate", "changes", "message"),
        [
            (output_sum, {}, "one number a model, so no confidence interval"),
            (lambda m: answers(50, 0), {}, "50 samples cannot show a drop below 0.01"),
            (Staged(lambda s: 0), {"max_drop": -1}, "max_drop must be positive, got -1"),
            (Staged(lambda s: 0), {"confidence": 95}, r"confidence must be in \(0, 1\), got 95"),
            (Staged(lambda s: 0), {"step": 5}, r"step must be in \(0, 1\), got 5"),
            (Staged(lambda s: 0), {"config": replace(SHORT, scorer="best")}, "unknown scorer 'best'"),
        ],
    )
    def test_mistakes_are_found_before_anything_is_pruned(self, evaluate, changes, message, monkeypatch):
        monkeypatch.setattr(search, "prune", lambda *a, **k: pytest.fail("pruned"))
        with pytest.raises(ValueError, match=message):
            self.search(evaluate, **changes)


class TestCommand:
    @pytest.fixture
    def home(self, tmp_path):
        model = tiny_model("bert", num_labels=3, id2label={0: "what", 1: "where", 2: "who"})
        model.save_pretrained(tmp_path / "dense")
        tiny_tokenizer().save_pretrained(tmp_path / "dense")
        names = ["who", "what", "where"]
        rows = [f"{row['text']},{names[row['label']]}" for row in tiny_texts(120)]
        (tmp_path / "data.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
        return tmp_path

    def cli(self, home, command, *arguments):
        options = ["--data", home / "data.csv", "--max-length", 16, "--calibration-samples", 16]
        return CliRunner().invoke(app, [str(a) for a in (command, home / "dense", *arguments, *options)])

    def test_sweep(self, home):
        files = ["--output", home / "sweep.json", "--plot", home / "sweep.png", "--latency-batch-size", 2]
        done = self.cli(
            home, "sweep", "--sparsity", 0.3, "--sparsity", 0.6, "--max-drop", 1.5, "--split", "validation", *files
        )
        assert done.exit_code == 0, done.output
        found = Sweep.from_json((home / "sweep.json").read_text())
        assert found.table() in done.stdout
        assert [p.sparsity for p in found.points] == [0.0, 0.3, 0.6]
        assert (found.metric, found.dense.samples) == ("accuracy", 11)
        assert "largest with a drop below 1.5 (95 % confidence): sparsity 0.6" in done.stdout
        assert (home / "sweep.png").read_bytes().startswith(b"\x89PNG")
        evaluated = self.cli_evaluate(home)
        assert found.dense.metric == pytest.approx(evaluated["accuracy"])

    def cli_evaluate(self, home):
        options = ["--data", home / "data.csv", "--max-length", 16, "--split", "validation"]
        done = CliRunner().invoke(app, [str(a) for a in ("evaluate", home / "dense", *options)])
        return json.loads(done.stdout)

    def test_prune_within_a_drop(self, home):
        done = self.cli(home, "prune", home / "small", "--max-drop", 2, "--schedule", "one_shot")
        assert done.exit_code == 0, done.output
        assert "mean over 104 samples" in done.stdout  # all that calibration does not take
        small = hfprune.load(home / "small")
        assert small.pruning_record.config["sparsity"] == 0.8

    @pytest.mark.parametrize(
        ("command", "extra", "message"),
        [
            ("sweep", ["--split", "dev"], "there is no split 'dev', only train, validation, test."),
            ("sweep", ["--sparsity", 50], "sparsity must be in [0, 1), got 50"),
            ("sweep", ["--plot", "sweep.jpg"], "a picture is saved as .png, .svg, .pdf, got 'sweep.jpg'"),
            ("prune", ["--sparsity", 0.5, "--max-drop", 0.1], "--max-drop has it found: give one of them"),
            ("prune", ["--max-drop", 0.01], "104 samples cannot show a drop below 0.01"),
            ("sweep", ["--max-drop", 0.01], "104 samples cannot show a drop below 0.01"),
        ],
    )
    def test_mistakes_are_one_line(self, home, command, extra, message):
        folder = [home / "small"] if command == "prune" else []
        done = self.cli(home, command, *folder, *extra)
        assert done.exit_code == 1
        assert message in done.stderr
        assert "Traceback" not in done.output
        assert not (home / "small").exists()
