"""What a stranger might put into a checkpoint: refused with a clear error, nothing executed or allocated."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

import hfprune
from hfprune import PruningPlan, PruningRecord
from hfprune.errors import CheckpointError
from hfprune.publishing import verification
from hfprune.publishing.card import draw_card
from hfprune.publishing.report import comparison_table
from hfprune.publishing.verification import verify, what_was_checked
from tests.support.plans import quick_checkpoint
from tests.support.tiny_data import tiny_tokenizer


@pytest.fixture
def folder(tmp_path):
    return quick_checkpoint(tmp_path / "small")


class TestHostile:
    """What a stranger might put into a checkpoint: refused with a clear error, nothing executed or allocated."""

    def rewrite(self, folder, change):
        path = folder / "config.json"
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))

    def test_a_shape_table_that_asks_for_a_terabyte(self, folder):
        def change(config):
            config["pruning_config"]["shapes"]["encoder.layer.0.intermediate.dense"]["out_features"] = 10**12

        self.rewrite(folder, change)
        with pytest.raises(CheckpointError, match="asks for a weight of shape .* where the dense model has"):
            hfprune.load(folder)
        with pytest.raises(ValueError, match="pruning only makes them smaller"):
            AutoModelForSequenceClassification.from_pretrained(folder)

    @pytest.mark.parametrize("value", [True, 38.0, "x" * 10**6, None, [1], -1])
    def test_sizes_are_whole_numbers(self, value, folder):
        def change(config):
            config["pruning_config"]["shapes"]["encoder.layer.0.intermediate.dense"]["out_features"] = value

        self.rewrite(folder, change)
        with pytest.raises(
            CheckpointError, match="asks for a weight of shape .{,100}(; sizes are whole numb|where the de)"
        ):
            hfprune.load(folder)

    @pytest.mark.parametrize("index", [[0] * 10**6, [1, 0], [-1], [4], [0.1, 0.2], ["0"]])
    def test_slices_are_those_of_different_heads(self, index, folder):
        """Else a list of a million zeros would make an input half a million times as large."""
        rule = {"encoder": {"hidden_states": {"dim": 0, "of": 4, "index": index}}}
        self.rewrite(folder, lambda config: config["pruning_config"].update(inputs=rule))
        with pytest.raises(
            CheckpointError, match="gives slices of 'hidden_states' that are not increasing or not there"
        ):
            hfprune.load(folder)

    @pytest.mark.parametrize(
        ("name", "changes", "message"),
        [
            ("adapter_config.json", {"base_model_name_or_path": "evil/x"}, "leads to weights elsewhere"),
            ("config.json", {"transformers_weights": "../evil.safetensors"}, "sets transformers_weights to '../evil"),
            ("config.json", {"attn_implementation": "evil/kernel"}, "sets attn_implementation to 'evil/kernel'"),
            (
                "config.json",
                {"more": [{"experts_implementation": "evil/x"}]},
                "sets experts_implementation to 'evil",
            ),
            ("config.json", {"text_config": {"attn_implementation": {"": "evil/y"}}}, "sets attn_implementation to "),
        ],
    )
    def test_weights_and_code_elsewhere(self, name, changes, message, folder):
        """What transformers would follow."""
        path = folder / name
        path.write_text(json.dumps({**(json.loads(path.read_text()) if path.is_file() else {}), **changes}))
        with pytest.raises(CheckpointError, match=message):
            hfprune.load(folder)
        assert any(message in problem for problem in verify(folder))

    @pytest.mark.parametrize(
        "changes",
        [
            {"kept": [0.0, 1.0]},
            {"units": True, "kept": [0]},
            {"units": 10**12, "kept": ["0"]},
            {"unit_macs": -1},
            {"unit_params": "many"},
            {"kind": "<script>"},
            {"surprise": 1},
        ],
    )
    def test_plans_are_of_whole_numbers(self, changes, folder):
        path = folder / "pruning_plan.json"
        data = json.loads(path.read_text())
        data["blocks"]["encoder.layer.0.ffn"].update(changes)
        del data["digest"]
        path.write_text(json.dumps(data))
        with pytest.raises(CheckpointError, match="not a pruning plan: "):
            hfprune.load(folder)

    @pytest.mark.parametrize("text", ["[]", '{"format_version": 1, "blocks": [1]}', "NaN", "[" * 10**5])
    def test_what_is_no_plan(self, text):
        with pytest.raises(ValueError, match="not a pruning plan: "):
            PruningPlan.from_json(text)

    def test_a_plan_that_leaves_a_block_out(self, folder):
        """With digests that fit: only the record tells."""
        path = folder / "pruning_plan.json"
        data = json.loads(path.read_text())
        del data["blocks"]["encoder.layer.0.ffn"], data["digest"]
        path.write_text(json.dumps(data))
        plan = PruningPlan.from_json(path.read_text())
        record = PruningRecord.from_json((folder / "pruning_record.json").read_text())
        record = record.with_(plan_digest=plan.digest, files={path.name: verification.sha256(path)})
        (folder / "pruning_record.json").write_text(record.to_json())
        assert verify(folder) == [
            "pruning_record.json has other blocks, or other numbers of units, than pruning_plan.json"
        ]

    @pytest.mark.parametrize("value", [10**12, "import os", -1, None, {"a": 1}])
    def test_attributes_are_small_numbers(self, value, folder):
        def change(config):
            name = next(name for name in config["pruning_config"]["attributes"])
            config["pruning_config"]["attributes"][name] = value

        self.rewrite(folder, change)
        with pytest.raises(CheckpointError, match="where the dense model has"):
            hfprune.load(folder)

    @pytest.mark.parametrize("path", ["encoder.layer.0.forward", "encoder.__class__", "encoder.layer.0.attention.new"])
    def test_only_sizes_are_set(self, path, folder):
        self.rewrite(folder, lambda config: config["pruning_config"]["attributes"].update({path: 1}))
        with pytest.raises(CheckpointError, match=f"pruning_config sets {path} to 1"):
            hfprune.load(folder)

    def test_another_loader(self, folder, caplog):
        (folder / "modeling_pruned.py").write_text("raise SystemExit('executed')")
        with pytest.raises(CheckpointError, match="modeling_pruned.py is not the file that was saved: its SHA-256"):
            hfprune.load(folder)
        hfprune.load(folder, verify=False, trust_remote_code=True)  # with our own
        AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
        assert (
            "modeling_pruned.py is not the loader of this hfprune or of an earlier one; it was not run" in caplog.text
        )
        assert any("is not the loader of this hfprune" in problem for problem in verify(folder))

    def test_an_index_that_leads_elsewhere(self, folder):
        """Of a name with `..`, of a pickle, and of a file that is not there."""
        path = folder / "model.safetensors"
        names = list(load_file(path))
        path.rename(folder.parent / "evil.safetensors")
        for target in ("../evil.safetensors", "../evil.bin", "evil.bin", "missing.safetensors"):
            index = {"metadata": {}, "weight_map": dict.fromkeys(names, target)}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
            with pytest.raises(CheckpointError, match="which is no weight file of this folder"):
                hfprune.load(folder)

    def test_tensors_in_a_file_that_nothing_reads(self, folder):
        path = folder / "model.safetensors"
        tensors = load_file(path)
        save_file({"classifier.weight": tensors.pop("classifier.weight")}, folder / "extra.safetensors")
        save_file(tensors, path, metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match="extra.safetensors is no file that a checkpoint of hfprune may hold"):
            hfprune.load(folder)
        (folder / "extra.safetensors").unlink()
        with pytest.raises(CheckpointError, match="classifier.weight is missing from the weights"):
            hfprune.load(folder)

    @pytest.mark.parametrize("name", ["Trainer", "pipeline", "AutoModel", "BertConfig", 3, "PrunedBertConfig"])
    def test_architectures_that_are_no_models(self, name, folder):
        self.rewrite(folder, lambda config: config.update(architectures=[name]))
        with pytest.raises(CheckpointError, match="which is no model of transformers"):
            hfprune.load(folder)

    @pytest.mark.parametrize(
        "changes",
        [{"num_attention_heads": 0}, {"hidden_size": -1}, {"num_hidden_layers": 10**9}, {"vocab_size": "x"}],
    )
    def test_configs_that_make_no_model(self, changes, folder):
        self.rewrite(folder, lambda config: config.update(changes))
        with pytest.raises(CheckpointError):
            hfprune.load(folder)
        assert verify(folder)[0] == "config.json is not the file that was saved: its SHA-256 differs"

    def test_a_tokenizer_that_brings_code(self, folder):
        path = folder / "tokenizer_config.json"
        path.write_text(
            json.dumps({**json.loads(path.read_text()), "auto_map": {"AutoTokenizer": ["evil/x--t.T", None]}})
        )
        with pytest.raises(CheckpointError, match="auto_map in tokenizer_config.json names code"):
            hfprune.load(folder)

    @pytest.mark.parametrize("name", ["pruning_plan.json", "pruning_record.json", "pruning_probe.json", "config.json"])
    def test_json_that_is_too_deep(self, name, folder):
        (folder / name).write_text("[" * 100_000)
        assert verify(folder)

    def test_more_code(self, folder):
        (folder / "helper.py").write_text("raise SystemExit('executed')")
        with pytest.raises(CheckpointError, match="helper.py is code that hfprune does not write; it was not run"):
            hfprune.load(folder)

    @pytest.mark.parametrize(
        "target", ["helper.Pruned", "evil/repo--modeling_pruned.PrunedX", "modeling_pruned.Pruned--x", "os.system"]
    )
    def test_an_auto_map_that_leads_elsewhere(self, target, folder):
        self.rewrite(folder, lambda config: config["auto_map"].update(AutoModel=target))
        with pytest.raises(CheckpointError, match="auto_map in config.json names code that hfprune does not write"):
            hfprune.load(folder)

    def test_pickles_are_named_and_not_read(self, folder):
        (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
        assert verify(folder) == ["pytorch_model.bin is not part of what was saved. Remove it"]
        with pytest.raises(CheckpointError, match="pytorch_model.bin is not part of what was saved"):
            hfprune.load(folder)
        hfprune.load(folder, verify=False)  # reads the safetensors

    @pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", ".."])
    def test_a_record_that_names_files_elsewhere(self, name, folder):
        path = folder / "pruning_record.json"
        data = json.loads(path.read_text())
        data["files"][name] = "0" * 64
        del data["digest"]
        path.write_text(json.dumps(data))
        assert verify(folder)[0].startswith("pruning_record.json cannot be read: not a valid pruning record: at files")

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("base_model", "<script>alert(1)</script>"),
            ("base_model", "a/b\n---\nlicense: evil"),
            ("base_model", "../.."),
            ("base_model", "a/.."),
            ("datasets", ["../x"]),
            ("seconds", float("nan")),
            ("datasets", ["x]\n- y: {z"]),
            ("metrics", {"dense": {"<img src=x>": 1.0}}),
            ("command", "a\n```\n<script>"),
            ("sizes", {"dense": {"params": -1}}),
            ("calibration", {"samples": "many"}),
            ("surprise", 1),
        ],
    )
    def test_records_with_markup_are_refused(self, field, value, folder):
        data = json.loads((folder / "pruning_record.json").read_text())
        del data["digest"]
        data[field] = value
        with pytest.raises(
            ValueError, match="not a valid pruning record: at |not a pruning record: .* no number of JSON"
        ):
            PruningRecord.from_json(json.dumps(data))
        (folder / "pruning_record.json").write_text(json.dumps(data))
        with pytest.raises(CheckpointError, match="pruning_record.json cannot be read: not a "):
            hfprune.load(folder)

    def test_odd_values_of_ones_own_cost_no_run(self, folder):
        """NumPy's numbers, metrics that are no numbers, and names as metrics of the Hub have them."""
        model = hfprune.load(folder)
        found = {"f1/macro": np.float32(0.5), "pr\u00e9cision": float("nan"), "f1(micro)": 1}
        model.pruning_record = model.pruning_record.with_(metrics={"dense": found, "pruned": found})
        hfprune.save(model, folder, overwrite=True)
        again = hfprune.load(folder).pruning_record
        assert again.metrics["dense"] == {"f1/macro": 0.5, "pr\u00e9cision": None, "f1(micro)": 1}
        assert "f1/macro" in (folder / "README.md").read_text()

    def test_a_metric_that_was_no_number_for_a_while(self, folder):
        model = hfprune.load(folder)
        metrics = {"dense": {"loss": 1.0}, "pruned": {"loss": float("nan")}, "recovered": {"loss": 1.1}}
        model.pruning_record = model.pruning_record.with_(metrics=metrics)
        hfprune.save(model, folder, overwrite=True)
        hfprune.save(hfprune.load(folder), folder, overwrite=True)  # a file has null for it
        again = hfprune.load(folder)
        assert "| loss | 1.0000 | 1.1000 | +0.1000 |" in (folder / "README.md").read_text()
        assert "nan" not in comparison_table(again.pruning_record)

    def test_whatever_a_record_says_is_quoted_in_its_card(self, folder):
        """Even if it was made in memory, where nothing is validated."""
        evil = "</td><script>alert(1)</script>`|\n---\n# x: {y"
        record = PruningRecord.from_json((folder / "pruning_record.json").read_text())
        plan = PruningPlan.from_json((folder / "pruning_plan.json").read_text())
        record = record.with_(
            base_model=evil + "/x",
            datasets=[evil],
            recovery={evil: evil},
            command="```\n<b>",
            config={"scorer": evil},
            versions={"hfprune": evil},
            metrics={"dense": {evil: 1.0}, "pruned": {evil: 0.5}},
        )
        for location in (evil, '"); import os; ("', "small"):
            card = draw_card(record, plan, portable=False, location=location, pictures="")
            head, body = ModelCard(card, ignore_metadata_errors=False).data, ModelCard(card).text
            assert head.base_model == evil + "/x", "YAML quotes it"
            assert head.to_dict()["datasets"] == [evil]
            assert "<script>" not in body
            assert body.count("```") % 2 == 0
            assert "import os;" not in body

    def test_a_newer_record_says_what_to_do(self, folder):
        path = folder / "pruning_record.json"
        path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 2'))
        assert "format_version 2, this hfprune reads 1: upgrade it (pip install -U hfprune)" in verify(folder)[0]


class TestContents:
    """A closed list of files and settings: everything else is refused, at any depth and of any type."""

    @pytest.mark.parametrize(
        "auto_map",
        [
            {"": [0], "AutoConfig": "sub/x.C", "AutoModelForSequenceClassification": "sub/x.M"},
            {"AutoModel": ["modeling_pruned.PrunedBertModel", None]},
            {"AutoModel": 3},
            ["evil/x--m.M"],
            "evil/x--m.M",
            7,
            True,
        ],
    )
    @pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "generation_config.json"])
    def test_an_auto_map_of_any_type(self, file, auto_map, folder):
        _change(folder / file, auto_map=auto_map)
        message = f"auto_map in {file} names code that hfprune does not write"
        with pytest.raises(CheckpointError, match=message):
            hfprune.load(folder, verify=False)
        assert any(message in problem for problem in verify(folder))

    @pytest.mark.parametrize(
        ("file", "changes"),
        [
            ("config.json", {"custom_pipelines": {"x": {"impl": "evil.P", "pt": ["AutoModel"]}}}),
            ("generation_config.json", {"custom_generate": "evil/x"}),
            ("config.json", {"configuration_files": ["config.4.0.0.json"]}),
            ("tokenizer_config.json", {"configuration_files": ["x.json"]}),
            ("config.json", {"_attn_implementation": "evil/kernel"}),
            ("config.json", {"text_config": {"_experts_implementation": {"": "evil/kernel"}}}),
        ],
    )
    def test_settings_that_lead_elsewhere(self, file, changes, folder):
        _change(folder / file, **changes)
        with pytest.raises(CheckpointError, match="which leads elsewhere. Remove it"):
            hfprune.load(folder, verify=False)
        assert any("which leads elsewhere" in problem for problem in verify(folder))

    @pytest.mark.parametrize(
        "name",
        ["custom_generate/generate.py", "more/deep/helper.py", "custom_generate/requirements.txt", "config.4.0.0.json"],
    )
    def test_files_that_are_not_ours(self, name, folder):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("raise SystemExit('executed')")
        with pytest.raises(CheckpointError, match=f"{name} is "):
            hfprune.load(folder, verify=False)
        assert verify(folder)[0].startswith(f"{name} is ")

    @pytest.mark.parametrize(
        "name", ["chat_template.jinja", "added_tokens.json", "special_tokens_map.json", "generation_config.json"]
    )
    def test_files_that_the_record_does_not_have(self, name, folder):
        (folder / name).write_text("{}")
        (problem,) = verify(folder)
        assert problem.startswith(f"{name} is not part of what was saved. ")
        assert problem.endswith(("Remove it", "If not, remove it"))
        with pytest.raises(CheckpointError, match="is not part of what was saved. .*emove it. To load it all the same"):
            hfprune.load(folder)

    def test_documents_and_what_trainer_leaves_are_no_part_of_it(self, folder):
        for name in ("notes.txt", "LICENSE", "training_args.bin", "trainer_state.json", ".gitattributes"):
            (folder / name).write_text("{}")
        (folder / "runs").mkdir()
        (folder / "runs" / "events.1").write_text("")
        assert verify(folder) == []
        hfprune.load(folder)

    @pytest.mark.parametrize("name", ["tokenizer.json", "notes.txt", "extra/file"])
    def test_a_pipe_is_not_opened(self, name, folder):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        assert any(f"{name} is no regular file" in problem for problem in verify(folder))
        with pytest.raises(CheckpointError):
            hfprune.load(folder)

    def test_a_link_out_of_the_folder(self, folder, tmp_path):
        secret = tmp_path / "secret.txt"
        secret.write_text("mine")
        (folder / "NOTICE").symlink_to(secret)
        for use in (hfprune.load, lambda folder: hfprune.push_to_hub(folder, "me/x")):
            with pytest.raises(CheckpointError, match="NOTICE is a link that leads out of the folder"):
                use(folder)

    def test_further_chat_templates_have_a_digest(self, folder):
        small = hfprune.load(folder)
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = {"default": "{{ messages }}", "tools": "{{ tools }}"}
        hfprune.save(small, folder, tokenizer=tokenizer, overwrite=True)
        name = "additional_chat_templates/tools.jinja"
        assert name in json.loads((folder / "pruning_record.json").read_text())["files"]
        assert verify(folder) == []
        (folder / name).write_text("{{ evil }}")
        assert verify(folder) == [f"{name} is not the file that was saved: its SHA-256 differs"]

    def test_load_compares_the_weights(self, folder):
        path = folder / "model.safetensors"
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="model.safetensors is not the file that was saved"):
            hfprune.load(folder)
        hfprune.load(folder, verify=False)

    def test_verify_says_what_it_checked(self, folder):
        assert "every file but the card is the one that was saved, and the model computes" in what_was_checked(folder)
        record = PruningRecord.from_json((folder / "pruning_record.json").read_text())
        (folder / "pruning_record.json").write_text(replace(record, files={}).to_json())
        assert verify(folder) == []
        assert what_was_checked(folder) == (
            "weights, config, plan and record agree; outputs were not saved to compare with"
        )


def _change(path, **changes):
    settings = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**settings, **changes}))
