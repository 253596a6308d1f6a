"""peft's own tests on pruned models, under the names that it loads from the Hub: `make suite-peft`."""

import pytest

from tests.foreign.checkpoints import hub_of
from tests.foreign.suites import on_both

pytestmark = [pytest.mark.slow, pytest.mark.suite_peft]

#: What the tests load: by name of a repository, the model type that stands there instead.
REPOSITORIES = {
    "bert-base-uncased": "bert",
    "gpt2": "gpt2",
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": "gemma3_text",
    "hf-internal-testing/tiny-random-MistralForCausalLM": "mistral",
    "hf-internal-testing/tiny-random-gpt2": "gpt2",
    "peft-internal-testing/tiny-dummy-qwen2": "qwen2",
    "peft-internal-testing/tiny-random-GPT2LMHeadModel": "gpt2",
    "peft-internal-testing/tiny-random-GPTJForCausalLM": "gptj",
    "peft-internal-testing/tiny-random-OPTForCausalLM": "opt",
    "trl-internal-testing/tiny-random-LlamaForCausalLM": "llama",
}
#: Those of the tests of custom models that load a model of transformers; the others build modules of their own.
CUSTOM = (
    "test_delete_adapter_multiple_adapters_with_trainable_token_indices",
    "test_multiple_adapters_automatic_modules_to_save",
    "test_multiple_adapters_seq_cls_mixed_modules_to_save_merging_adapters",
    "test_multiple_adapters_no_needless_copy_modules_to_save",
    "test_gpt2_dora_merge_and_unload",
)
#: By name of a run: the file, and which of its tests.
TESTS = {
    "bert, gpt2 and opt, custom": ("test_custom_models.py", " or ".join(CUSTOM)),
    "gemma3_text": ("test_decoder_models.py", "Gemma3ForCausalLM"),
    "gpt2": ("test_decoder_models.py", "GPT2LMHeadModel"),
    "llama": ("test_decoder_models.py", "LlamaForCausalLM"),
    "opt": ("test_decoder_models.py", "OPTForCausalLM"),
}


@pytest.mark.parametrize("run", TESTS)
def test_adapters(run, suite_dir, checked, tmp_path):
    pruned = hub_of(REPOSITORIES, home=tmp_path / "pruned", is_pruned=True)
    dense = hub_of(REPOSITORIES, home=tmp_path / "dense", is_pruned=False)
    file, selected = TESTS[run]
    # its own settings ask for a plugin that measures coverage
    settings = ["-c", "/dev/null", "--rootdir", "."]
    tests = [f"tests/{file}", "-k", selected]
    plugins = ["foreign_peft"]
    checked(on_both("peft", run, suite_dir, tests, plugins=plugins, pruned=pruned, dense=dense, settings=settings))
