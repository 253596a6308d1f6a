"""The mixins of tests of transformers (models and generation) on pruned classes: `make suite-transformers`."""

import pytest

from tests.foreign.suites import on_both

pytestmark = [pytest.mark.slow, pytest.mark.suite_transformers]

#: Left out: what takes a minute a model (compilation is tested for Llama), and the second of two half precisions.
LONG = "not test_bc_torch_dtype and not _fp16_"
COMPILES = "not test_generate_compil"
#: By model type, and what is tested of it: the file of its tests, and which of them.
TESTS = {
    "bert": ("models/bert/test_modeling_bert.py", LONG),
    "gemma3_text": ("models/gemma3/test_modeling_gemma3.py", f"Gemma3TextModelTest and {LONG} and {COMPILES}"),
    "gpt2": ("models/gpt2/test_modeling_gpt2.py", f"{LONG} and {COMPILES}"),
    "llama": ("models/llama/test_modeling_llama.py", LONG),
    "modernbert": ("models/modernbert/test_modeling_modernbert.py", LONG),
    "qwen3": ("models/qwen3/test_modeling_qwen3.py", f"{LONG} and {COMPILES}"),
    "roberta": ("models/roberta/test_modeling_roberta.py", LONG),
    "t5": ("models/t5/test_modeling_t5.py", f"{LONG} and {COMPILES}"),
    "vit": ("models/vit/test_modeling_vit.py", LONG),
    "llama, config of each layer": ("heterogeneity/test_configuration_utils.py", ""),
    "whisper": ("models/whisper/test_modeling_whisper.py", f"WhisperModelTest and {LONG} and {COMPILES}"),
}


@pytest.mark.parametrize("model", TESTS)
def test_models_and_generation(model, suite_dir, checked):
    file, selected = TESTS[model]
    run = on_both(
        "transformers",
        model,
        suite_dir,
        [f"tests/{file}", "-k", selected],
        plugins=["foreign_transformers"],
        pruned={"FOREIGN_PRUNED_TYPE": model.partition(",")[0]},
        dense={"FOREIGN_PRUNED_TYPE": ""},
    )
    checked(run)
