"""What test suites of other projects found: pruned classes behave as stock classes do where a library looks at them."""

import copy
import inspect
import subprocess
import sys

import pytest
import torch
import transformers

import hfprune
from hfprune.structure import pruned_parts
from hfprune.structure.modeling_pruned import pruned_class
from tests.support.plans import removed_plan, uneven_plan
from tests.support.tiny import tiny_model

#: Model types whose initialisation differs, with a head: by the module, by its parent, of Conv1D, of a pruned base.
KINDS = {
    "by module": ("bert", "AutoModelForSequenceClassification"),
    "by parent": ("modernbert", "AutoModelForSequenceClassification"),
    "by parent, no head": ("modernbert", "AutoModel"),
    "by parent, tied head": ("modernbert", "AutoModelForMaskedLM"),
    "conv1d": ("gpt2", "AutoModelForCausalLM"),
    "encoder and decoder": ("t5", "AutoModelForSeq2SeqLM"),
    "pictures": ("vit", "AutoModelForImageClassification"),
}


@pytest.fixture(scope="module", params=KINDS)
def pair(request):
    """A dense model, and a pruned model with uneven widths."""
    model_type, head = KINDS[request.param]
    wide = {"hidden_size": 64, "intermediate_size": 256} if model_type in ("bert", "modernbert", "vit") else {}
    dense = tiny_model(model_type, head, **wide)
    return dense, hfprune.apply_plan(dense, uneven_plan(dense))


def built(model, seed=0):
    """A model of the same class, from its config alone."""
    torch.manual_seed(seed)
    return type(model)(copy.deepcopy(model.config))


def resized(pruned):
    """By name, weights of resized projections."""
    shapes = pruned.config.pruning_config["shapes"]
    state = pruned.base_model.state_dict()
    return {path: state[f"{path}.weight"] for path in shapes if state.get(f"{path}.weight") is not None}


class TestInitialisation:
    """A pruned model that is built from a config has weights as the stock class would fill them."""

    def test_the_scale_is_that_of_the_dense_model(self, pair):
        dense, pruned = pair
        dense_state = built(dense).base_model.state_dict()
        weights = resized(built(pruned))
        assert weights
        for path, weight in weights.items():
            expected = dense_state[f"{path}.weight"].std().item()
            assert weight.std().item() == pytest.approx(expected, rel=0.2), path

    def test_as_transformers_fills_what_a_checkpoint_lacks(self, pair, monkeypatch):
        """From a config, and from an empty state dict: the same numbers, if modules start from the same seed."""
        _, pruned = pair
        plain = type(pruned)._initialize_weights

        def seeded(self, module, *args, **kwargs):
            torch.manual_seed(42)
            plain(self, module, *args, **kwargs)

        monkeypatch.setattr("transformers.PreTrainedModel._initialize_weights", seeded)
        from_config = built(pruned).state_dict()
        missing = type(pruned).from_pretrained(None, config=copy.deepcopy(pruned.config), state_dict={}).state_dict()
        assert from_config.keys() == missing.keys()
        for name, value in from_config.items():
            assert torch.equal(value, missing[name]), name

    @pytest.mark.parametrize("kind", KINDS)
    def test_nothing_is_left_unfilled(self, kind, monkeypatch):
        """Where new memory holds NaN, each weight that no file gave is filled all the same."""
        dense = tiny_model(*KINDS[kind])
        pruned = hfprune.apply_plan(dense, removed_plan(dense))
        monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
        torch.use_deterministic_algorithms(True)
        try:
            assert torch.empty(3).isnan().all()
            missing = type(pruned).from_pretrained(None, config=copy.deepcopy(pruned.config), state_dict={})
        finally:
            torch.use_deterministic_algorithms(False)
        unfilled = [name for name, value in missing.state_dict().items() if not value.isfinite().all()]
        assert not unfilled

    @pytest.mark.parametrize("kind", ["by module", "by parent", "conv1d", "encoder and decoder"])
    def test_removed_blocks(self, kind, tmp_path):
        """Stock code that fills a module whose projections are gone does not run, from a config and from a folder."""
        dense = tiny_model(*KINDS[kind])
        pruned = hfprune.apply_plan(dense, removed_plan(dense))
        assert built(pruned).num_parameters() == pruned.num_parameters()
        pruned.save_pretrained(tmp_path)
        loaded = type(pruned).from_pretrained(tmp_path).state_dict()
        for name, value in pruned.state_dict().items():
            assert torch.equal(value, loaded[name]), name

    def test_nothing_is_filled_on_the_meta_device(self, pair, monkeypatch):
        _, pruned = pair

        def no(*_):
            raise AssertionError("weights are filled")

        monkeypatch.setattr(type(pruned), "initialize_weights", no)
        with torch.device("meta"):
            assert built(pruned).device.type == "meta"


class TestSignature:
    """The signature of a pruned class is that of the stock class."""

    @pytest.mark.parametrize("name", ["ViTModel", "BertModel", "T5EncoderModel", "LlamaForCausalLM", "WhisperModel"])
    def test_arguments_are_named(self, name):
        stock = getattr(transformers, name)
        assert inspect.signature(pruned_class(stock).__init__) == inspect.signature(stock.__init__)

    def test_arguments_are_handed_on(self):
        dense = tiny_model("vit", "AutoModel")
        pruned = hfprune.apply_plan(dense, uneven_plan(dense))
        config = copy.deepcopy(pruned.config)
        masking = type(pruned)(config, use_mask_token=True, add_pooling_layer=False)
        assert masking.embeddings.mask_token is not None
        assert masking.pooler is None
        assert masking.num_parameters() < type(dense)(dense.config, use_mask_token=True).num_parameters()


class TestPeft:
    """peft knows of a pruned type what it knows of the dense type, whichever is imported first."""

    @pytest.mark.parametrize("method", ["LoraConfig", "IA3Config", "VeraConfig"])
    @pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt"])
    def test_default_modules(self, method, model_type):
        peft = pytest.importorskip("peft")
        dense = tiny_model(model_type, "AutoModelForCausalLM")
        pruned = hfprune.apply_plan(dense, uneven_plan(dense))
        # its projections are of transformers' Conv1D, which peft must be told
        settings = {"fan_in_fan_out": model_type == "gpt2"}
        wrapped = peft.get_peft_model(pruned, getattr(peft, method)(**settings))
        expected = peft.get_peft_model(dense, getattr(peft, method)(**settings))
        assert set(wrapped.base_model.targeted_module_names) == set(expected.base_model.targeted_module_names)

    def test_peft_may_be_imported_after_the_model_is_loaded(self, tmp_path):
        pytest.importorskip("peft")
        dense = tiny_model("llama", "AutoModelForCausalLM")
        hfprune.apply_plan(dense, uneven_plan(dense)).save_pretrained(tmp_path)
        lines = [
            "import sys",
            "import hfprune",
            "from transformers import AutoModelForCausalLM",
            f"model = AutoModelForCausalLM.from_pretrained({str(tmp_path)!r})",
            "assert 'peft' not in sys.modules",
            "from peft import LoraConfig, get_peft_model",
            "adapted = get_peft_model(model, LoraConfig())",
            "print(sorted(adapted.peft_config['default'].target_modules))",
        ]
        done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "['q_proj', 'v_proj']"

    def test_an_unknown_type_is_left_as_it_is(self):
        constants = pytest.importorskip("peft.utils.constants")
        pruned_parts.inform_peft("pruned_nothing")
        assert "pruned_nothing" not in constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
