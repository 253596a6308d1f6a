"""What test suites of other projects found: pruned classes behave as stock classes do where a library looks at them."""

import copy
import inspect
import json
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

    def test_tables_that_come_after_the_model_is_loaded(self, tmp_path, monkeypatch):
        """As after an import of peft; the test below has the import itself, which takes seconds."""
        peft = pytest.importorskip("peft")
        tables = pytest.importorskip("peft.utils.constants")
        dense = tiny_model("llama", "AutoModelForCausalLM")
        hfprune.apply_plan(dense, uneven_plan(dense)).save_pretrained(tmp_path)
        with monkeypatch.context() as without:
            without.delitem(sys.modules, "peft.utils.constants")
            model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
        monkeypatch.delitem(tables.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, "pruned_llama", raising=False)
        adapted = peft.get_peft_model(model, peft.LoraConfig())
        assert adapted.peft_config["default"].target_modules == {"q_proj", "v_proj"}

    @pytest.mark.slow
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


class TestTypeByName:
    """What libraries tell by `config.model_type` holds for a pruned model, whose files say `pruned_<type>`."""

    @pytest.mark.parametrize("model_type", ["whisper", "bert", "mixtral"])
    def test_the_type_of_the_dense_model_in_memory_and_of_the_pruned_one_in_files(self, model_type, tmp_path):
        head = "AutoModelForSpeechSeq2Seq" if model_type == "whisper" else "AutoModel"
        dense = tiny_model(model_type, head)
        hfprune.apply_plan(dense, uneven_plan(dense)).save_pretrained(tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["model_type"] == f"pruned_{model_type}"
        config = transformers.AutoConfig.from_pretrained(tmp_path)
        assert config.model_type == model_type
        assert config.to_dict()["model_type"] == f"pruned_{model_type}"
        assert copy.deepcopy(config).model_type == model_type

    def test_no_start_token_is_put_before_what_whisper_is_given(self):
        dense = tiny_model("whisper", "AutoModelForSpeechSeq2Seq")
        pruned = hfprune.apply_plan(dense, uneven_plan(dense))
        features = torch.randn(2, dense.config.num_mel_bins, 2 * dense.config.max_source_positions)
        start = torch.tensor([[7, 8, 9], [9, 8, 7]])
        for model in (dense, pruned):
            with torch.no_grad():
                # Whisper's own `generate` calls this, and cuts the start off
                written = transformers.GenerationMixin.generate(
                    model, features, decoder_input_ids=start, max_new_tokens=3
                )
            assert torch.equal(written[:, :3], start)

    def test_the_pipeline_of_speech_takes_a_pruned_whisper_for_one(self):
        dense = tiny_model("whisper", "AutoModelForSpeechSeq2Seq")
        pruned = hfprune.apply_plan(dense, uneven_plan(dense))
        extractor = transformers.WhisperFeatureExtractor(feature_size=dense.config.num_mel_bins)
        for model in (dense, pruned):
            pipeline = transformers.AutomaticSpeechRecognitionPipeline(model, feature_extractor=extractor)
            assert pipeline.type == "seq2seq_whisper"
