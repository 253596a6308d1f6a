"""Models as files of other runtimes: what is written, what is compared, and what is refused."""

import dataclasses
import json

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, DataCollatorWithPadding
from typer.testing import CliRunner

import hfprune
from hfprune.cli.app import app
from hfprune.deployment import Tolerance, get_target, known_targets, register_target
from hfprune.deployment.examples import held_out_batches, padded, trace_batch
from hfprune.deployment.folders import EXPORT_FILE
from hfprune.deployment.proof import Comparison, Reading, Spread, reading_of
from hfprune.errors import CheckpointError, ExportError, MissingDependencyError
from hfprune.publishing.probe import PROBE_FILE
from tests.support.plans import quick_checkpoint, uneven_plan
from tests.support.registries import restored
from tests.support.tiny import tiny_model
from tests.support.tiny_data import tiny_tokenized, tiny_tokenizer
from tests.support.twins import MasklessTwin, WritingTwin, twin_target


@pytest.fixture(autouse=True)
def _registries():
    with restored():
        yield


@pytest.fixture
def small():
    dense = tiny_model("bert", num_labels=3, id2label={0: "what", 1: "where", 2: "who"})
    return hfprune.apply_plan(dense, uneven_plan(dense))


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


class TestWhatIsWritten:
    def test_the_folder_has_the_dense_types_config_the_tokenizer_and_a_report(self, small, tmp_path):
        twin_target()
        exported = hfprune.export(small, "twin", tmp_path / "out", tokenizer=tiny_tokenizer())
        assert exported.path == (tmp_path / "out").resolve()
        config = AutoConfig.from_pretrained(tmp_path / "out")
        assert config.model_type == "bert"
        assert config.id2label == {0: "what", 1: "where", 2: "who"}
        assert config.architectures == ["BertForSequenceClassification"]
        written = json.loads((tmp_path / "out" / "config.json").read_text())
        assert not {"pruning_config", "auto_map", "transformers_weights"} & set(written)
        assert AutoTokenizer.from_pretrained(tmp_path / "out")("who is it")["input_ids"]
        report = json.loads((tmp_path / "out" / EXPORT_FILE).read_text())
        assert report["plan_digest"] == small.pruning_plan.digest
        assert report["target"] == "twin"
        assert report["versions"]["torch"] == torch.__version__
        assert report["differences"][0]["name"] == "the probe"
        assert report["size_bytes"] == (tmp_path / "out" / "weights.safetensors").stat().st_size
        assert left_in(tmp_path) == ["out"]

    def test_a_folder_is_loaded_with_its_tokenizer_and_its_probe(self, tmp_path):
        folder = quick_checkpoint(tmp_path / "small")
        written = twin_target()
        exported = hfprune.export(folder, "twin", tmp_path / "out")
        assert exported.model == "small"
        assert written["options"].tokenizer is not None
        assert (tmp_path / "out" / "tokenizer_config.json").is_file()

    def test_the_model_stays_as_it_is(self, small, tmp_path):
        small.to(torch.bfloat16).train()
        written = twin_target()
        hfprune.export(small, "twin", tmp_path / "out")
        assert small.dtype == torch.bfloat16
        assert small.training
        assert all(parameter.requires_grad for parameter in small.parameters())
        assert written["model"].dtype == torch.float32

    def test_what_is_there_is_replaced_only_if_it_is_an_export(self, small, tmp_path):
        twin_target()
        hfprune.export(small, "twin", tmp_path / "out")
        with pytest.raises(CheckpointError, match="exists and is not empty"):
            hfprune.export(small, "twin", tmp_path / "out")
        hfprune.export(small, "twin", tmp_path / "out", quantize="int8", overwrite=True)
        assert json.loads((tmp_path / "out" / EXPORT_FILE).read_text())["quantization"] == "int8"
        (tmp_path / "out" / "notes").mkdir()
        (tmp_path / "out" / "notes" / "thesis.txt").write_text("three years")
        (tmp_path / "out" / "Modelfile").write_text("FROM ./model.gguf")
        with pytest.raises(CheckpointError, match="files that the export did not write: Modelfile, notes/thesis.txt"):
            hfprune.export(small, "twin", tmp_path / "out", overwrite=True)
        assert (tmp_path / "out" / "notes" / "thesis.txt").is_file()
        (tmp_path / "work").mkdir()
        (tmp_path / "work" / "thesis.txt").write_text("three years")
        with pytest.raises(CheckpointError, match="something else than an export"):
            hfprune.export(small, "twin", tmp_path / "work", overwrite=True)
        assert left_in(tmp_path / "work") == ["thesis.txt"]
        (tmp_path / "work" / EXPORT_FILE).write_text("not JSON")
        with pytest.raises(CheckpointError, match="did not write: hfprune_export.json, thesis.txt"):
            hfprune.export(small, "twin", tmp_path / "work", overwrite=True)

    def test_a_checkpoint_that_computes_something_else_than_its_probe_says(self, tmp_path, monkeypatch):
        folder = quick_checkpoint(tmp_path / "small")
        probe = json.loads((folder / PROBE_FILE).read_text())
        probe["output"][0] += 1.0
        (folder / PROBE_FILE).write_text(json.dumps(probe))
        # checksums find this change; another version of a library would change outputs and no file
        monkeypatch.setattr("hfprune.deployment.export.load_model", lambda name, **_: hfprune.load(name, verify=False))
        written = twin_target()
        with pytest.raises(
            CheckpointError, match="small: the model does not compute what its author saw.*Run: hfprune verify"
        ):
            hfprune.export(folder, "twin", tmp_path / "out")
        assert written == {}

    def test_a_tokenizer_that_cannot_be_loaded_is_not_left_out(self, tmp_path):
        folder = tmp_path / "dense"
        tiny_model("bert").save_pretrained(folder)
        written = twin_target()
        hfprune.export(folder, "twin", tmp_path / "out")
        assert written["options"].tokenizer is None
        (folder / "tokenizer.json").write_text("{}")
        with pytest.raises(CheckpointError, match="the tokenizer of .*dense cannot be loaded"):
            hfprune.export(folder, "twin", tmp_path / "more")

    def test_the_threads_of_the_caller_stay(self, small, tmp_path):
        before = torch.get_num_threads()

        def open_again(folder, options):
            get_target("torch").open(folder, options)

        twin_target(open=open_again)
        with pytest.raises(ExportError, match="its runtime cannot open it"):
            hfprune.export(small, "twin", tmp_path / "out", threads=before + 1)
        assert torch.get_num_threads() == before


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                lambda logits: logits + 0.1,
                "does not compute what the model computes: on the probe outputs differ by up to 0.1 ",
            ),
            (lambda logits: logits * float("nan"), "NaN or infinite for the probe"),
            (lambda logits: logits[:, :2], "gives outputs of shape"),
        ],
    )
    def test_other_outputs(self, small, tmp_path, change, message):
        twin_target(change=change)
        with pytest.raises(ExportError, match=message):
            hfprune.export(small, "twin", tmp_path / "out")
        assert left_in(tmp_path) == []

    def test_outputs_that_are_wrong_for_one_size_of_batch_only(self, small, tmp_path):
        twin_target(change=lambda logits: logits if len(logits) < 4 else logits.flip(-1))
        with pytest.raises(ExportError, match="on 6 samples outputs differ"):
            hfprune.export(small, "twin", tmp_path / "out")

    @pytest.mark.parametrize("model_type", ["llama", "gpt2"])
    def test_a_decoder_that_looks_at_padding(self, model_type, tmp_path):
        dense = tiny_model(model_type, "AutoModelForCausalLM")
        twin_target()
        hfprune.export(dense, "twin", tmp_path / "sound")
        twin_target(name="maskless", twin=MasklessTwin)
        with pytest.raises(ExportError, match="on 6 samples, padded in front outputs differ"):
            hfprune.export(dense, "maskless", tmp_path / "out")

    def test_a_quantised_model_may_differ_by_more(self, small, tmp_path):
        twin_target(change=lambda logits: logits + 0.01)
        exported = hfprune.export(small, "twin", tmp_path / "out", quantize="int8")
        assert exported.differences[0].largest == pytest.approx(0.01, abs=1e-5)
        assert "int8" in str(exported)

    @pytest.mark.parametrize(
        ("labels", "bias", "change"),
        [
            # a regression around 4, and logits with a common offset
            (1, 4.0, lambda logits: torch.full_like(logits, 4.0)),
            (3, 100.0, lambda logits: logits.flip(-1)),
        ],
    )
    def test_a_quantised_file_of_other_outputs_that_are_near_in_all(self, labels, bias, change, tmp_path):
        dense = tiny_model("bert", num_labels=labels)
        dense.classifier.bias.data += bias
        twin_target(change=change)
        with pytest.raises(ExportError, match="does not compute what the model computes"):
            hfprune.export(dense, "twin", tmp_path / "out", quantize="int8")
        twin_target(name="sound", change=lambda logits: logits + 1e-4)
        assert hfprune.export(dense, "sound", tmp_path / "out", quantize="int8").differences[0].agreement == 1

    def test_a_quantised_file_that_ignores_its_input(self, tmp_path):
        dense = tiny_model("bert", num_labels=3)
        dense.classifier.bias.data += torch.tensor([0.0, 0.0, 20.0])
        with torch.no_grad():
            always = dense(input_ids=torch.tensor([[5, 6, 7]])).logits
        twin_target(change=lambda logits: always.expand_as(logits))
        with pytest.raises(ExportError, match="gives nearly the same outputs for every sample"):
            hfprune.export(dense, "twin", tmp_path / "out", quantize="int8")

    def test_choices_must_agree_over_all_samples(self, small, tmp_path):
        twin_target(
            change=lambda logits: logits.flip(-1), tolerance={None: Tolerance(agreement=0.8), "int8": Tolerance()}
        )
        with pytest.raises(ExportError, match="does not choose what the model chooses"):
            hfprune.export(small, "twin", tmp_path / "out")

    def test_a_mask_is_no_table_of_classes(self):
        mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
        batch = {"input_ids": torch.ones(2, 3, dtype=torch.long), "attention_mask": mask}
        expected = torch.zeros(2, 3)
        classes = Comparison("it", Spread(Reading(chooses=True, has_tokens=False, is_of_samples=True)))
        classes.add(expected, torch.tensor([[0.0, 0.0, 7.0], [0.0, 0.0, 0.0]]), batch)
        assert classes.difference().largest == 7
        assert classes.difference().agreement == 0.5
        # a number of every token, as ELECTRA's detector gives it
        detector = tiny_model("electra", "AutoModelForPreTraining")
        reading = reading_of(detector, batch)
        assert (reading.chooses, reading.has_tokens) == (False, True)
        tokens = Comparison("it", Spread(reading))
        tokens.add(expected, torch.tensor([[0.0, 0.0, 7.0], [0.0, 0.0, 0.0]]), batch)
        assert tokens.difference().largest == 0

    def test_a_writer_that_fails(self, small, tmp_path):
        def write(model, folder, options):
            raise KeyError("aten.none")

        twin_target(write=write)
        with pytest.raises(ExportError, match="could not be exported to twin: KeyError: 'aten.none'"):
            hfprune.export(small, "twin", tmp_path / "out")
        assert left_in(tmp_path) == []

    def test_another_text(self, tmp_path):
        dense = tiny_model("llama", "AutoModelForCausalLM")
        twin_target(twin=WritingTwin)
        exported = hfprune.export(dense, "twin", tmp_path / "out")
        assert exported.text == hfprune.deployment.Text(tokens=16, equal=16)

        def swapped(tokens):
            tokens[0, 5] += 1
            return tokens

        with restored():
            targets_before = known_targets()["twin"]
            register_target(dataclasses.replace(targets_before, name="other"))
            written = twin_target(name="liar", twin=WritingTwin, token=swapped)
            with pytest.raises(ExportError, match="token 6 of 16 is"):
                hfprune.export(dense, "liar", tmp_path / "liar")
            quantised = hfprune.export(dense, "liar", tmp_path / "liar", quantize="int8")
        assert written["options"].quantization == "int8"
        assert quantised.text.equal == 5

    def test_names_and_packages(self, small, tmp_path):
        twin_target(modules=("no_such_runtime",))
        with pytest.raises(MissingDependencyError, match=r"needs no_such_runtime, not installed here.*hfprune\[twin\]"):
            hfprune.export(small, "twin", tmp_path / "out")
        with pytest.raises(
            ValueError, match="to must be one of executorch, gguf, litert, onnx, openvino, torch, twin, got 'tflite'"
        ):
            hfprune.export(small, "tflite", tmp_path / "out")
        with pytest.raises(ValueError, match="quantize must be one of int8 for twin, got 'int3'"):
            hfprune.export(small, "twin", tmp_path / "out", quantize="int3")
        with pytest.raises(ValueError, match="torch takes no quantisation here"):
            hfprune.export(small, "torch", tmp_path / "out", quantize="int8")
        with pytest.raises(ValueError, match="a target named 'twin' is registered already"):
            register_target(dataclasses.replace(known_targets()["twin"], write=lambda model, folder, options: None))
        with pytest.raises(ValueError, match="has no tolerance for int8"):
            twin_target(name="loose", tolerance={None: Tolerance(largest=0.1)})

    def test_encoder_decoders(self, tmp_path):
        with pytest.raises(ExportError, match="is an encoder-decoder, whose cache has two parts"):
            hfprune.export(tiny_model("t5", "AutoModelForSeq2SeqLM"), "torch", tmp_path / "out")

    def test_caches_of_sliding_windows(self, tmp_path):
        with pytest.raises(ExportError, match="look at a sliding window"):
            hfprune.export(tiny_model("gemma3_text", "AutoModelForCausalLM"), "torch", tmp_path / "out")
        # no list of the kinds of layers, and a window in all of them
        with pytest.raises(ExportError, match="look at a sliding window"):
            hfprune.export(tiny_model("mistral", "AutoModelForCausalLM", sliding_window=64), "torch", tmp_path / "out")
        assert get_target("torch").refusal(tiny_model("mistral", "AutoModelForCausalLM", sliding_window=None)) is None
        # the refusal needs no package
        register_target(dataclasses.replace(get_target("executorch"), modules=()))
        with pytest.raises(ExportError, match="look at a sliding window"):
            hfprune.export(tiny_model("gemma3_text", "AutoModelForCausalLM"), "executorch", tmp_path / "out")


class TestData:
    def test_the_metrics_of_both_stand_beside_each_other(self, small, tmp_path):
        loose = {None: Tolerance(largest=2.0), "int8": Tolerance(largest=2.0)}
        weights = torch.tensor([1.0, 1.0, 0.0])
        twin_target(change=lambda logits: logits * weights, tolerance=loose)
        rows = tiny_tokenized(40)
        collator = DataCollatorWithPadding(tiny_tokenizer())
        exported = hfprune.export(small, "twin", tmp_path / "out", tokenizer=tiny_tokenizer(), data=rows)
        correct = {"pytorch": 0, "exported": 0}
        for row in rows:
            batch = collator([{name: row[name] for name in ("input_ids", "attention_mask", "labels")}])
            labels = batch.pop("labels")
            with torch.no_grad():
                logits = small(**batch).logits
            correct["pytorch"] += int(logits.argmax() == labels)
            correct["exported"] += int((logits * weights).argmax() == labels)
        for who, number in correct.items():
            assert exported.metrics[who]["accuracy"] == pytest.approx(number / 40)
        last = exported.differences[-1]
        assert (last.name, last.samples) == ("the data", 40)
        assert "accuracy: PyTorch" in str(exported)

    def test_calibration_on_the_rows_that_are_measured_is_stated(self, small, tmp_path):
        written = twin_target(calibrated=("int8",))
        rows = tiny_tokenized(200)
        arguments = {"tokenizer": tiny_tokenizer(), "data": rows, "quantize": "int8", "overwrite": True}
        exported = hfprune.export(small, "twin", tmp_path / "out", **arguments)
        assert exported.calibrated_on == "data"
        assert "measured on rows of the same data" in str(exported)
        first = [batch["input_ids"] for batch in written["options"].calibration]
        assert sum(map(len, first)) == 128
        texts = {tuple(row["input_ids"]) for row in rows.select(range(128))}
        seen = [tuple(row[row != 0].tolist()) for batch in first for row in batch]
        assert not set(seen) <= texts, "a sample of all rows, not the first"
        exported = hfprune.export(small, "twin", tmp_path / "out", calibration=tiny_tokenized(9), **arguments)
        assert exported.calibrated_on == "calibration"
        assert "same data" not in str(exported)
        assert sum(len(batch["input_ids"]) for batch in written["options"].calibration) == 9
        arguments["quantize"] = None
        assert hfprune.export(small, "twin", tmp_path / "out", **arguments).calibrated_on is None
        assert written["options"].calibration == []

    def test_metrics_want_labels(self, small, tmp_path):
        written = twin_target()
        rows = tiny_tokenized(8).select_columns(["input_ids", "attention_mask"])
        with pytest.raises(ValueError, match="needs labels of every sample"):
            hfprune.export(small, "twin", tmp_path / "out", tokenizer=tiny_tokenizer(), data=rows, metrics=["f1"])
        with pytest.raises(ValueError, match="no rows"):
            hfprune.export(small, "twin", tmp_path / "out", tokenizer=tiny_tokenizer(), data=rows.select([]))
        with pytest.raises(ValueError, match="the metric 'bleurt' does not fit a classification"):
            hfprune.export(small, "twin", tmp_path / "out", tokenizer=tiny_tokenizer(), data=rows, metrics=["bleurt"])
        decoder = tiny_model("llama", "AutoModelForCausalLM")
        with pytest.raises(ValueError, match="f1 is for a class or a number of every sample, and LlamaForCausalLM"):
            hfprune.export(decoder, "twin", tmp_path / "out", data=tiny_tokenized(8), metrics=["f1"])
        assert written == {}, "mistakes are found before anything is written"


class TestBatches:
    def test_other_sizes_than_the_traced_one(self):
        dense = tiny_model("bert")
        traced = trace_batch(dense, tiny_tokenizer())
        assert (traced["attention_mask"] == 0).any(), "padding must be in the trace"
        shapes = {tuple(batch["input_ids"].shape) for batch in held_out_batches(dense, tiny_tokenizer())}
        assert len(shapes) == 3
        assert tuple(traced["input_ids"].shape) not in shapes

    def test_a_model_with_few_positions(self):
        dense = tiny_model("bert", max_position_embeddings=6)
        for batch in held_out_batches(dense, None):
            dense(**batch)

    def test_padding_in_front(self):
        batch = padded(tiny_model("bert"), None, [[5, 6, 7], [8]], left=True)
        assert batch["input_ids"].tolist() == [[5, 6, 7], [1, 1, 8]]
        assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]

    def test_pictures(self, tmp_path):
        twin_target()
        exported = hfprune.export(tiny_model("vit", "AutoModelForImageClassification"), "twin", tmp_path / "out")
        assert {difference.tokens for difference in exported.differences} == {0}


class TestTheCommand:
    def run(self, *arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    def test_a_table_is_printed(self, tmp_path, monkeypatch):
        quick_checkpoint(tmp_path / "small")
        monkeypatch.chdir(tmp_path)
        twin_target()
        done = self.run("export", "small", "--to", "twin", "--quantize", "int8")
        assert done.exit_code == 0, done.output
        assert "compared on" in done.output
        assert (tmp_path / "small-twin-int8" / EXPORT_FILE).is_file()

    def test_the_working_directory_has_a_name(self, tmp_path, monkeypatch):
        quick_checkpoint(tmp_path / "small")
        monkeypatch.chdir(tmp_path / "small")
        twin_target()
        done = self.run("export", ".", "--to", "twin")
        assert done.exit_code == 0, done.output
        assert (tmp_path / "small" / "small-twin" / EXPORT_FILE).is_file()

    def test_with_data(self, tmp_path, monkeypatch):
        quick_checkpoint(tmp_path / "small")
        monkeypatch.chdir(tmp_path)
        lines = [f"who is the dog {number},LABEL_{number % 3}" for number in range(30)]
        (tmp_path / "test.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
        twin_target()
        data = ("--data", "test.csv", "--metrics", "f1_macro")
        done = self.run("export", "small", "--to", "twin", "--output", "out", *data)
        assert done.exit_code == 0, done.output
        report = json.loads((tmp_path / "out" / EXPORT_FILE).read_text())
        assert set(report["metrics"]["exported"]) == {"f1_macro"}
        evaluated = self.run("evaluate", "small", *data)
        value = json.loads(evaluated.stdout)["f1_macro"]
        assert report["metrics"]["pytorch"]["f1_macro"] == pytest.approx(value)

    def test_mistakes_in_one_line(self, tmp_path):
        done = self.run("export", tmp_path, "--to", "tflite")
        assert done.exit_code == 1
        assert done.output.startswith("hfprune: to must be one of")
        done = self.run("export", tmp_path, "--to", "torch", "--split", "test")
        assert "--split and --metrics go with --data" in done.output


class TestKilledExports:
    """The exchange of an export's folder, as a kill leaves it where the folder itself cannot be exchanged."""

    @pytest.fixture
    def killed(self, small, tmp_path):
        twin_target()
        place = tmp_path / "out"
        hfprune.export(small, "twin", place)
        draft = hfprune.export(small, "twin", tmp_path / "draft", quantize="int8", tokenizer=tiny_tokenizer()).path
        container = place / ".0123456789ab.saving"
        (container / "old").mkdir(parents=True)
        old = [path.name for path in place.iterdir() if path != container]
        new = [path.name for path in draft.iterdir()]
        draft.rename(container / "new")
        (container / "journal.json").write_text(json.dumps({"old": old, "new": new}))
        for name in ("config.json", EXPORT_FILE):
            (place / name).rename(container / "old" / name)
        return place, container

    def test_the_next_one_finishes_it(self, small, killed):
        place, container = killed
        with pytest.raises(CheckpointError, match="exists and is not empty"):
            hfprune.export(small, "twin", place)
        assert json.loads((place / EXPORT_FILE).read_text())["quantization"] == "int8"
        assert (place / "tokenizer.json").is_file()
        hfprune.export(small, "twin", place, overwrite=True)
        assert json.loads((place / EXPORT_FILE).read_text())["quantization"] is None
        assert not (place / "tokenizer.json").exists()
        assert not container.exists()

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda new: (new / "weights.safetensors").unlink(), "weights.safetensors is missing"),
            (lambda new: (new / "config.json").rename(new / "run.py"), "config.json is missing"),
            (lambda new: (new / EXPORT_FILE).write_text("[]"), "it has no hfprune_export.json with a list"),
        ],
    )
    def test_one_that_is_not_whole_is_refused(self, change, said, small, killed):
        place, container = killed
        change(container / "new")
        with pytest.raises(CheckpointError, match=said):
            hfprune.export(small, "twin", place, overwrite=True)
        assert (container / "old" / "config.json").is_file()

    def test_no_checkpoint_is_exchanged_for_an_export(self, killed):
        place, _ = killed
        with pytest.raises(CheckpointError, match="is no whole checkpoint"):
            hfprune.load(place)


class TestExamples:
    def test_pictures_of_every_batch_are_others(self):
        model = tiny_model("vit", "AutoModelForImageClassification")
        pictures = [trace_batch(model, None), *held_out_batches(model, None)]
        every = torch.cat([batch["pixel_values"] for batch in pictures]).flatten(1)
        assert len(every) == len({tuple(picture.tolist()) for picture in every}) == 9

    def test_types_of_tokens_are_those_of_a_pair(self):
        tokenizer = tiny_tokenizer()
        tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
        texts = [[1, 2, 3, 4, 5], [6, 7]]
        types = padded(tiny_model("bert"), tokenizer, texts)["token_type_ids"]
        assert types.tolist() == [[0, 0, 0, 1, 1], [0, 1, 0, 0, 0]]
        # one row of embeddings has no second type
        one = tiny_model("bert", type_vocab_size=1)
        assert padded(one, tokenizer, texts)["token_type_ids"].tolist() == [[0] * 5, [0] * 5]
