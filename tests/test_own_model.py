"""A model type that transformers does not know goes through discovery, pruning, saving and reloading."""

import json
import subprocess
import sys

import torch
from transformers import AutoModel, AutoModelForSequenceClassification

import hfprune
from hfprune.publishing.verification import verify
from hfprune.structure import find_blocks, gated, support_of
from hfprune.structure.blocks import Amount
from hfprune.structure.modeling_pruned import PrunedModel
from tests.support.own_model import OwnConfig, OwnForSequenceClassification
from tests.support.plans import as_gates, uneven_plan
from tests.support.tiny import tiny_batch


def own_model(**changes):
    torch.manual_seed(0)
    return OwnForSequenceClassification(OwnConfig(num_labels=3, **changes)).eval()


def logits(model):
    with torch.no_grad():
        return model(**tiny_batch()).logits


def test_its_blocks_are_found_and_proven():
    model = own_model()
    state = torch.get_rng_state()
    attention, ffn = find_blocks(model)[:2]
    assert support_of(model).by == "proof"
    assert torch.equal(state, torch.get_rng_state()), "discovery draws from the user's random state"
    assert (attention.name, attention.units, attention.width, attention.heads) == ("pile.0.attention", 4, 8, 2)
    assert attention.producers == ("pile.0.mixer.Wq", "pile.0.mixer.Wkeys", "pile.0.mixer.to_values")
    assert attention.sizes == (("pile.0.mixer", "lanes", Amount(2)), ("pile.0.mixer", "shared", Amount(1)))
    assert attention.residual_sum == "pile.0.second"
    assert (ffn.units, ffn.producers) == (40, ("pile.0.open", "pile.0.signal"))
    assert (ffn.residual_sum, ffn.config_fields) == ("pile.0", (("wide", Amount(1)),))


def test_gated_equals_pruned_equals_reloaded(tmp_path):
    model = own_model()
    plan = uneven_plan(model)
    with gated(model, find_blocks(model), as_gates(model, plan.kept)):
        with_gates = logits(model)
    pruned = hfprune.apply_plan(model, plan)
    assert isinstance(pruned, PrunedModel)
    assert isinstance(pruned, OwnForSequenceClassification)
    assert (logits(model) - with_gates).abs().max() > 1e-2
    assert (with_gates - logits(pruned)).abs().max() <= 1e-5
    hfprune.save(pruned, tmp_path / "small")
    assert verify(tmp_path / "small") == []
    again = hfprune.load(tmp_path / "small")
    assert torch.equal(logits(pruned), logits(again))
    assert again.pruning_plan == plan
    auto = AutoModelForSequenceClassification.from_pretrained(tmp_path / "small")
    assert torch.equal(logits(pruned), logits(auto))
    assert torch.equal(AutoModel.from_pretrained(tmp_path / "small").words.weight, again.trunk.words.weight)


FRESH = """
import json, sys
import hfprune
from hfprune.errors import CheckpointError
try:
    hfprune.load(sys.argv[1])
except CheckpointError as error:
    refusal = str(error)
import torch
import tests.support.own_model
from hfprune.structure import find_blocks, support_of
model = hfprune.load(sys.argv[1])
units = [block.units for block in find_blocks(model)]
logits = model(input_ids=torch.arange(4, 12)[None]).logits.flatten().tolist()
print(json.dumps({"refusal": refusal, "by": support_of(model).by, "units": units, "logits": logits}))
"""
WITHOUT = """
import sys, torch
import tests.support.own_model
from transformers import AutoModelForSequenceClassification
model = AutoModelForSequenceClassification.from_pretrained("small", trust_remote_code=True)
assert "hfprune" not in sys.modules
say(logits=model(input_ids=torch.arange(4, 12)[None]).logits.flatten().tolist())
"""


def test_default_prune_and_other_processes(tmp_path, client):
    """With hfprune: without the model's module it is refused, and nothing is run; with it, it is the same."""
    data = [tiny_batch(samples=8, length=12, seed=seed) for seed in range(3)]
    small = hfprune.prune(own_model(), data, hfprune.PruningConfig(sparsity=0.4, sequence_length=12))
    assert small.pruning_plan.sparsity("macs") >= 0.4
    hfprune.save(small, tmp_path / "small")
    assert [path.name for path in (tmp_path / "small").glob("*.py")] == ["modeling_pruned.py"]
    expected = small(input_ids=torch.arange(4, 12)[None]).logits.flatten()
    command = [sys.executable, "-c", FRESH, tmp_path / "small"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert "import the module that registers it first" in said["refusal"]
    assert said["by"] == "proof"
    assert said["units"] == [block.units for block in find_blocks(small)]
    for logits_there in (said["logits"], client(WITHOUT, with_hfprune=False)["logits"]):
        assert torch.allclose(torch.tensor(logits_there), expected, atol=1e-6)


def test_a_uniform_width_stays_of_the_users_own_class(tmp_path):
    model = own_model()
    ffns = {block.name: range(20) for block in find_blocks(model) if block.kind == "ffn"}
    plan = hfprune.PruningPlan.keep(find_blocks(model), ffns, model_type="own", sequence_length=8)
    pruned = hfprune.apply_plan(model, plan)
    assert type(pruned) is OwnForSequenceClassification
    hfprune.save(pruned, tmp_path / "small")
    again = hfprune.load(tmp_path / "small")
    assert again.config.wide == 20
    assert torch.equal(logits(pruned), logits(again))


def test_inspect_says_that_support_is_by_proof_and_what_is_not_pruned(tmp_path):
    from transformers import FNetConfig, FNetModel, WavLMConfig, WavLMModel
    from typer.testing import CliRunner

    from hfprune.cli.app import app
    from tests.support.tiny import SIZES

    FNetModel(FNetConfig(**SIZES["bert"])).save_pretrained(tmp_path / "fnet")
    shown = CliRunner().invoke(app, ["inspect", str(tmp_path / "fnet"), "--sequence-length", "8"])
    assert "supported by proof\n" in shown.stdout
    assert "encoder.layer.1.ffn" in shown.stdout
    WavLMModel(WavLMConfig(**SIZES["wav2vec2"])).save_pretrained(tmp_path / "wavlm")
    shown = CliRunner().invoke(app, ["inspect", str(tmp_path / "wavlm"), "--sequence-length", "8", "--json"])
    said = json.loads(shown.stdout)
    assert said["support"] == "proof"
    assert said["not_pruned"].startswith(
        "not recognised, so not pruned: attention.gru_rel_pos_linear, attention.k_proj"
    )
