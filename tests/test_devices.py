"""Scoring a model that accelerate spread or offloaded: the scores of the same model in one place."""

import copy
import dataclasses
import pickle
from pathlib import Path

import accelerate
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import hfprune
from hfprune.errors import StructureError
from hfprune.planning import PruningPlan
from hfprune.scoring import Scores, score
from tests.support.tiny import tiny_batch, tiny_model

#: At least one of each kind of pass.
SCORERS = ("fisher", "logit_fisher", "residual_logit_fisher", "l2", "fluctuation", "obs", "hybrid(l1, kl_fisher, rank)")
GRADIENT_SCORERS = ("gradient", "movement")
CONFIGS = Path(__file__).parent.parent / "scripts" / "accelerate_configs"
MODELS = {"bert": "AutoModelForSequenceClassification", "llama": "AutoModelForCausalLM"}
MIXED = {
    "bert": {
        "bert.embeddings": "cpu",
        "bert.encoder.layer.0": "cpu",
        "bert.encoder.layer.1": "disk",
        "bert.pooler": "disk",
        "classifier": "cpu",
    },
    "llama": {
        "model.embed_tokens": "disk",
        "model.layers.0": "disk",
        "model.layers.1": "cpu",
        "model.norm": "cpu",
        "model.rotary_emb": "cpu",
        "lm_head": "disk",
    },
}


def data(model_type):
    batches = [tiny_batch(model_type, seed=seed) for seed in range(2)]
    for batch in batches:
        batch["labels"] = batch["input_ids"].clone() if model_type == "llama" else torch.arange(4) % 2
    return batches


def spread(model, how, model_type, folder):
    """The model as accelerate places it; `mixed` is partly on the CPU and partly on the disk."""
    if how == "cpu_offload":
        return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    if how == "disk_offload":
        return accelerate.disk_offload(model, str(folder), execution_device=torch.device("cpu"))
    if how == "hooks":
        return accelerate.dispatch_model(model, {"": "cpu"}, main_device="cpu", force_hooks=True)
    return accelerate.dispatch_model(model, MIXED[model_type], main_device="cpu", offload_dir=str(folder))


def same(found, expected):
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("how", ["mixed", "cpu_offload", "disk_offload"])
@pytest.mark.parametrize("model_type", MODELS)
def test_scores_of_an_offloaded_model(model_type, how, tmp_path):
    batches, model = data(model_type), tiny_model(model_type, MODELS[model_type])
    expected = {scorer: score(model, batches, scorer=scorer) for scorer in SCORERS}
    away = spread(copy.deepcopy(model), how, model_type, tmp_path)
    state = [(name, p.device, p.requires_grad) for name, p in away.named_parameters()]
    assert "meta" in {device.type for _, device, _ in state}
    for scorer in SCORERS:
        same(score(away, batches, scorer=scorer), expected[scorer])
    assert [(name, p.device, p.requires_grad) for name, p in away.named_parameters()] == state
    for scorer in GRADIENT_SCORERS:
        with pytest.raises(StructureError, match=f"'{scorer}' reads gradients of weights, and those of .* offloaded"):
            score(away, batches, scorer=scorer)


@pytest.mark.parametrize("model_type", MODELS)
def test_scorers_of_weight_gradients_work_with_hooks(model_type, tmp_path):
    batches, model = data(model_type), tiny_model(model_type, MODELS[model_type])
    expected = {scorer: score(model, batches, scorer=scorer) for scorer in GRADIENT_SCORERS}
    hooked = spread(copy.deepcopy(model), "hooks", model_type, tmp_path)
    assert hasattr(hooked, "_hf_hook")
    for scorer in GRADIENT_SCORERS:
        same(score(hooked, batches, scorer=scorer), expected[scorer])
    for name, parameter in model.named_parameters():
        assert torch.equal(hooked.get_parameter(name), parameter)


@pytest.mark.parametrize("scorer", ["kl_fisher", "logit_fisher"])
def test_an_offloaded_teacher(scorer, tmp_path):
    batches, model, teacher = data("bert"), tiny_model("bert"), tiny_model("bert", seed=1)
    expected = score(model, batches, scorer=scorer, teacher=teacher)
    away = spread(copy.deepcopy(teacher), "mixed", "bert", tmp_path)
    same(score(model, batches, scorer=scorer, teacher=away), expected)


@pytest.mark.parametrize("model_type", MODELS)
def test_score_spread_then_cut_on_the_cpu(model_type, tmp_path):
    """The way that the message of surgery names, from one checkpoint."""
    batches, folder = data(model_type), tmp_path / "dense"
    tiny_model(model_type, MODELS[model_type]).save_pretrained(folder)
    auto = {"bert": AutoModelForSequenceClassification, "llama": AutoModelForCausalLM}[model_type]
    away = auto.from_pretrained(folder, device_map=MIXED[model_type], offload_folder=str(tmp_path / "offload"))
    assert torch.device("meta") in {p.device for p in away.parameters()}
    config = hfprune.PruningConfig(sparsity=0.5, sequence_length=8)
    scores = score(away, batches)
    plan = hfprune.plan(away, scores, config)
    for refused in (
        lambda: hfprune.apply_plan(away, plan),
        lambda: hfprune.prune(away, batches, config),
        lambda: hfprune.reconstruct(away, away, batches),
    ):
        with pytest.raises(StructureError, match=r"on cpu, meta: surgery and reconstruction .*Scores.save.*to_json"):
            refused()

    scores.save(tmp_path / "scores.safetensors")
    (tmp_path / "plan.json").write_text(plan.to_json())
    dense = auto.from_pretrained(folder, device_map="cpu")
    again = PruningPlan.from_json((tmp_path / "plan.json").read_text())
    assert hfprune.plan(dense, Scores.load(tmp_path / "scores.safetensors"), config) == again == plan
    small = hfprune.apply_plan(dense, again)
    hfprune.reconstruct(small, dense, batches)
    assert small.pruning_plan.sparsity("macs") >= 0.5
    whole = hfprune.apply_plan(dense, hfprune.plan(dense, score(dense, batches), config))
    assert whole.pruning_plan == small.pruning_plan


def test_weights_that_nothing_loads_are_refused():
    model = tiny_model("bert")
    model.bert.encoder.layer[1].to("meta")
    with pytest.raises(StructureError, match=r"on cpu, meta, and nothing brings bert.encoder.layer.1.* \(16 such\)"):
        score(model, [tiny_batch()])


@pytest.mark.parametrize("model_type", ["bert", "mpnet"])
def test_a_copy_for_data_parallel_runs_with_its_own_weights(model_type):
    """torch.nn.DataParallel copies the instance's attributes, a replaced `forward` among them."""
    dense = tiny_model(model_type)
    config = hfprune.PruningConfig(min_units=0, sequence_length=8, rounds=1, reconstruct=False)
    small = hfprune.prune(dense, [tiny_batch(model_type)], config, sparsity={"*.0.attention": 1.0})
    for module in (small, pickle.loads(pickle.dumps(small)), copy.deepcopy(small)):
        (path,) = module.config.pruning_config["bypassed"]
        removed = module.base_model.get_submodule(path)
        replica = removed._replicate_for_data_parallel()
        for name, child in removed._modules.items():  # as torch.nn.parallel.replicate goes on
            replica._modules[name] = copy.deepcopy(child).to("meta")
        assert replica.forward.args == (replica,)
        assert removed.forward.args == (removed,)
        hidden = torch.ones(2, 3, 32)
        assert removed(hidden)[0].device.type == "cpu"
        if removed.bypassed_consumer:  # the bias of the copy, on the copy's device
            assert replica(hidden.to("meta"))[0].device.type == "meta"
            with pytest.raises(RuntimeError, match="meta"):
                replica(hidden)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_its_configs(path):
    config = load_config_from_file(str(path))  # raises on unknown keys
    assert (config.distributed_type.value, config.num_processes) == {
        "one_gpu": ("NO", 1),
        "several_gpus": ("MULTI_GPU", 2),
        "fsdp": ("FSDP", 2),
        "cpu_two_processes": ("MULTI_GPU", 2),
    }[path.stem]
    known = {f"fsdp_{field.name}" for field in dataclasses.fields(accelerate.FullyShardedDataParallelPlugin)}
    assert set(config.fsdp_config) <= known | {"fsdp_version", "fsdp_offload_params", "fsdp_auto_wrap_policy"}
