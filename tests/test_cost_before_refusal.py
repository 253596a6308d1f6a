"""What a hostile checkpoint may cost before it is refused: nothing that its weights do not have."""

import json
import os
import shutil
import tracemalloc
from threading import Thread

import pytest
from torch import nn
from transformers import AutoConfig

import hfprune
from hfprune.errors import CheckpointError
from hfprune.publishing.bounds import few_modules
from hfprune.publishing.legacy import load_legacy
from hfprune.publishing.verification import check_loadable, verify
from hfprune.structure.json_text import read_json
from tests.support.old_checkpoints import old_checkpoint, pickle_weights
from tests.support.plans import removed_plan, uneven_plan
from tests.support.tiny import SIZES, tiny_model

#: Numbers of things that no tiny model has.
HOSTILE = [
    ("bert", {"num_labels": 10**7}, "sets num_labels to 1e"),
    ("bert", {"num_labels": 1e7}, "sets num_labels to 1e"),
    ("bert", {"max_position_embeddings": 10**6}, "sets max_position_embeddings to 1e"),
    ("marian", {"max_position_embeddings": 10**6}, "sets max_position_embeddings to 1e"),
    ("marian", {"decoder_layers": 10_000}, r"asks for 10000 layers \(decoder_layers\), of 87 tensors"),
    ("llama", {"num_hidden_layers": 10_000}, r"asks for 10000 layers \(num_hidden_layers\), of "),
    ("gpt2", {"n_layer": 10**9}, r"asks for 1000000000 layers \(n_layer\)"),
    ("gpt_neo", {"attention_types": [[["global"], 10**8]]}, "sets attention_types to 1e"),
    ("t5", {"num_decoder_layers": 10_000}, r"asks for 10000 layers \(num_decoder_layers\)"),
    ("vit", {"image_size": 10**6}, "sets image_size to 1e"),
    ("llama", {"text_config": {"model_type": "bert", "vocab_size": 10**9}}, "sets text_config.vocab_size to 1e"),
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A function from a model type to the folder of a checkpoint, which must not be changed."""
    folders = {}

    def checkpoint(model_type):
        if model_type not in folders:
            model = tiny_model(model_type)
            path = tmp_path_factory.mktemp(model_type) / "small"
            folders[model_type] = hfprune.save(hfprune.apply_plan(model, uneven_plan(model)), path)
        return folders[model_type]

    return checkpoint


@pytest.fixture
def changed(checkpoints, tmp_path):
    """A function that copies a checkpoint with another config."""

    def copy(model_type, change):
        folder = tmp_path / "changed"
        shutil.copytree(checkpoints(model_type), folder)
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return copy


@pytest.fixture
def nothing_is_built(monkeypatch):
    """A function from which on it is an error to build a module or the object of a config."""

    def refuse(*_, **__):
        raise AssertionError("something was built")

    def begin():
        monkeypatch.setattr(nn.Module, "__init__", refuse)
        monkeypatch.setattr(AutoConfig, "from_pretrained", refuse)
        monkeypatch.setattr(AutoConfig, "for_model", refuse)

    return begin


@pytest.mark.parametrize(("model_type", "fields", "message"), HOSTILE)
def test_sizes_that_the_weights_do_not_have(model_type, fields, message, changed, nothing_is_built):
    folder = changed(model_type, lambda config: config.update(fields))
    nothing_is_built()
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=message):
            hfprune.load(folder)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 2**24


def test_layers_under_a_name_that_nobody_expects(changed):
    """The builder stops after as many modules as a model of these weights can have."""
    folder = changed("albert", lambda config: config.update(inner_group_num=60_000))
    built = []
    hook = nn.modules.module.register_module_module_registration_hook(lambda *_: built.append(None))
    try:
        with pytest.raises(CheckpointError, match=r"config.json asks for more than \d+ modules, of \d+ tensors"):
            hfprune.load(folder)
    finally:
        hook.remove()
    assert len(built) < 5_000


def test_other_threads_may_build_what_they_like():
    built = []
    with few_modules({}):
        thread = Thread(target=lambda: built.append(nn.Sequential(*(nn.Identity() for _ in range(500)))))
        thread.start()
        thread.join()
    assert len(built[0]) == 500
    with pytest.raises(CheckpointError, match="asks for more than 200 modules, of 0 tensors"), few_modules({}):
        nn.Sequential(*(nn.Identity() for _ in range(500)))


@pytest.mark.parametrize(
    ("model_type", "path"),
    [
        ("bert", "embeddings.word_embeddings.padding_idx"),
        ("bert", "encoder.layer.0._version"),
        ("bert", "config.num_hidden_layers"),
        ("llama", "layers.0.self_attn.config.num_hidden_layers"),
        ("llama", "embed_tokens.embedding_dim"),
        ("vit", "config.num_hidden_layers"),
        ("t5", "encoder.config.num_layers"),
    ],
)
def test_attributes_that_the_entry_does_not_name(model_type, path, changed):
    """`resize` can lower any whole number; only those that count units are for it."""
    folder = changed(model_type, lambda config: config["pruning_config"]["attributes"].update({path: 0}))
    with pytest.raises(CheckpointError, match=rf"pruning_config (changes '{path}'|sets {path} to 0)"):
        hfprune.load(folder, verify=False)


@pytest.mark.parametrize("kind", ["shapes", "bypassed"])
def test_modules_that_the_entry_does_not_name(kind, changed):
    entries = {"shapes": {"in_features": 8, "out_features": 8}, "bypassed": ""}
    change = {"pooler.dense": entries[kind]}
    folder = changed("bert", lambda config: config["pruning_config"].setdefault(kind, {}).update(change))
    with pytest.raises(CheckpointError, match=rf"pruning_config changes 'pooler.dense' \({kind}\)|pooler.dense"):
        hfprune.load(folder, verify=False)


@pytest.mark.parametrize("heads", [2**-24, 0, -1, True, None, "8", 8.0])
def test_a_slice_rule_of_no_number_of_heads(heads, changed):
    rule = {"encoder": {"hidden_states": {"dim": 0, "of": heads, "index": []}}}
    folder = changed("bert", lambda config: config["pruning_config"].update(inputs=rule))
    with pytest.raises(CheckpointError, match="gives slices of 'hidden_states' along 0, of .* heads"):
        hfprune.load(folder, verify=False)


@pytest.mark.parametrize(
    "rule", [{"dim": 0, "of": 8, "index": []}, {"dim": None, "index": []}, {"dim": 1, "of": 4, "index": [0, 1]}]
)
@pytest.mark.parametrize("model_type", ["bert", "t5", "llama"])
def test_a_slice_rule_for_another_argument(model_type, rule, changed):
    module = {"bert": "encoder", "t5": "encoder", "llama": "layers.0"}[model_type]
    rules = {module: {"hidden_states": rule}}
    folder = changed(model_type, lambda config: config["pruning_config"].setdefault("inputs", {}).update(rules))
    with pytest.raises(CheckpointError, match="selects slices of the argument 'hidden_states' of"):
        hfprune.load(folder, verify=False)


@pytest.mark.parametrize("depth", [100, 600, 5000])
@pytest.mark.parametrize(
    ("file", "field"),
    [
        ("pruning_record.json", "config"),
        ("pruning_record.json", "calibration"),
        ("pruning_plan.json", "deep"),
        ("config.json", "deep"),
        ("generation_config.json", "deep"),
        ("pruning_probe.json", "output"),
    ],
)
def test_values_deep_within_each_other(file, field, depth, checkpoints, tmp_path):
    folder = tmp_path / "deep"
    shutil.copytree(checkpoints("gpt2"), folder)
    data = json.loads((folder / file).read_text()) if (folder / file).is_file() else {}
    data.pop("digest", None)
    text = json.dumps({**data, field: "HERE"}).replace('"HERE"', '{"a":' * depth + "1" + "}" * depth)
    (folder / file).write_text(text)
    problems = verify(folder)
    assert problems
    if file != "pruning_probe.json":
        with pytest.raises(CheckpointError, match="values stand more than 64 levels deep within each other"):
            check_loadable(folder)


@pytest.mark.parametrize("name", ["linked", "additional_chat_templates", "tokenizer.json"])
def test_a_link_to_a_folder_is_not_looked_into(name, checkpoints, tmp_path):
    """It could lead to the root of the disk."""
    folder = tmp_path / "copy"
    shutil.copytree(checkpoints("bert"), folder)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "x.jinja").write_text("")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(elsewhere)
    for use in (check_loadable, hfprune.load):
        with pytest.raises(CheckpointError, match=f": {name} is no "):
            use(folder)
    assert verify(folder)[0].startswith(f"{name} is no ")


def test_reading_json():
    assert read_json("[" * 60 + "]" * 60)
    for depth in (65, 100_000):
        with pytest.raises(ValueError, match="values stand more than 64 levels deep"):
            read_json("[" * depth + "]" * depth)


@pytest.mark.slow
@pytest.mark.parametrize("plan", [uneven_plan, removed_plan])
@pytest.mark.parametrize("model_type", SIZES)
def test_what_pruning_writes_is_loaded(model_type, plan, tmp_path):
    """No bound refuses what is ours."""
    model = tiny_model(model_type)
    hfprune.load(hfprune.save(hfprune.apply_plan(model, plan(model)), tmp_path / "small"))


def test_what_is_no_size_may_be_large(changed):
    """Rotary positions, a base of angles, tokens of a larger vocabulary: nothing is built of them."""
    fields = {"max_position_embeddings": 1_010_000, "rope_theta": 10_000_000, "image_token_id": 200_000}
    check_loadable(changed("llama", lambda config: config.update(fields)))


class TestImport:
    """`import` reads what strangers pruned with transformers 4, with the same bounds."""

    @pytest.mark.parametrize("pickled", [False, True])
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"num_labels": 10**7}, "sets num_labels to 1e"),
            ({"num_hidden_layers": 10_000}, "asks for 10000 layers"),
            ({"max_position_embeddings": 10**6}, "sets max_position_embeddings to 1e"),
        ],
    )
    def test_sizes(self, fields, message, pickled, tmp_path, nothing_is_built):
        small = old_checkpoint(tmp_path)
        if pickled:
            pickle_weights(tmp_path, small)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, **fields}))
        nothing_is_built()
        with pytest.raises(CheckpointError, match=message):
            load_legacy(tmp_path, pickled=pickled)

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors", "generation_config.json", "tokenizer.json"])
    @pytest.mark.parametrize("kind", ["pipe", "device", "link"])
    def test_files_that_are_none(self, name, kind, tmp_path):
        folder = tmp_path / "old"
        folder.mkdir()
        old_checkpoint(folder)
        secret = tmp_path / "secret"
        if (folder / name).is_file():
            shutil.copy(folder / name, secret)
        else:
            secret.write_text("{}")
        (folder / name).unlink(missing_ok=True)
        if kind == "pipe":
            os.mkfifo(folder / name)
        else:
            (folder / name).symlink_to("/dev/zero" if kind == "device" else secret)
        with pytest.raises(CheckpointError, match=f"{name} is (no regular file|a link that leads out of the folder)"):
            load_legacy(folder)


class TestShards:
    """An index of shards is followed to weight files of its folder only, in the format that was asked for."""

    @pytest.mark.parametrize("target", ["../evil/x.safetensors", "/tmp/x.safetensors", "pytorch_model.bin", "", 3])
    def test_import(self, target, tmp_path):
        folder = tmp_path / "old"
        folder.mkdir()
        small = old_checkpoint(folder)
        (tmp_path / "evil").mkdir()
        shutil.copy(folder / "model.safetensors", tmp_path / "evil" / "x.safetensors")
        pickle_weights(folder, small)
        index = {"metadata": {}, "weight_map": dict.fromkeys(small.state_dict(), target)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(CheckpointError, match=r"which is no weight file of this folder\. Pickled weights"):
            load_legacy(folder)

    @pytest.mark.parametrize("target", ["../evil/x.bin", "model.safetensors", "weights.pt"])
    def test_import_of_pickles(self, target, tmp_path):
        folder = tmp_path / "old"
        folder.mkdir()
        small = old_checkpoint(folder)
        (tmp_path / "evil").mkdir()
        pickle_weights(folder, small)
        (folder / "pytorch_model.bin").rename(tmp_path / "evil" / "x.bin")
        index = {"metadata": {}, "weight_map": dict.fromkeys(small.state_dict(), target)}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        with pytest.raises(CheckpointError, match="which is no weight file of this folder"):
            load_legacy(folder, pickled=True)

    @pytest.mark.parametrize("text", ["[]", "{}", '{"weight_map": 3}', "[" * 1000, "x"])
    def test_what_is_no_index(self, text, checkpoints, tmp_path):
        folder = tmp_path / "copy"
        shutil.copytree(checkpoints("bert"), folder)
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(text)
        with pytest.raises(CheckpointError, match="model.safetensors.index.json is no index of weights"):
            hfprune.load(folder, verify=False)

    def test_shards_of_the_folder_are_read(self, tmp_path):
        small = old_checkpoint(tmp_path)
        expected = small.state_dict()
        small.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
        (tmp_path / "model.safetensors").unlink()
        for path in (tmp_path / "shards").glob("model*"):
            path.rename(tmp_path / path.name)
        again = load_legacy(tmp_path).state_dict()
        assert all(tensor.equal(again[name]) for name, tensor in expected.items())
