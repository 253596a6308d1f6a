"""The mixins of tests of transformers (models and generation) on pruned classes: `make suite-transformers`."""

import pytest

from tests.foreign.suites import on_both

pytestmark = [pytest.mark.slow, pytest.mark.suite_transformers]

#: Left out: what takes a minute a model (compilation is tested for Llama), and the second of two half precisions.
LONG = "not test_bc_torch_dtype and not _fp16_"
COMPILES = "not test_generate_compil"
#: By model type: the file of its tests, and which of them.
TESTS = {
    "bert": ("bert/test_modeling_bert.py", LONG),
    "gemma3_text": ("gemma3/test_modeling_gemma3.py", f"Gemma3TextModelTest and {LONG} and {COMPILES}"),
    "gpt2": ("gpt2/test_modeling_gpt2.py", f"{LONG} and {COMPILES}"),
    "llama": ("llama/test_modeling_llama.py", LONG),
    "modernbert": ("modernbert/test_modeling_modernbert.py", LONG),
    "qwen3": ("qwen3/test_modeling_qwen3.py", f"{LONG} and {COMPILES}"),
    "roberta": ("roberta/test_modeling_roberta.py", LONG),
    "t5": ("t5/test_modeling_t5.py", f"{LONG} and {COMPILES}"),
    "vit": ("vit/test_modeling_vit.py", LONG),
    "whisper": ("whisper/test_modeling_whisper.py", f"{LONG} and {COMPILES}"),
}


@pytest.mark.parametrize("model", TESTS)
def test_models_and_generation(model, suite_dir, checked):
    file, selected = TESTS[model]
    run = on_both(
        "transformers",
        model,
        suite_dir,
        [f"tests/models/{file}", "-k", selected],
        plugins=["foreign_transformers"],
        pruned={"FOREIGN_PRUNED_TYPE": model},
        dense={"FOREIGN_PRUNED_TYPE": ""},
    )
    checked(run)
