"""Import paths that README and docs named in the last release still work, with a warning."""

import importlib
import sys
import warnings

import pytest

from hfprune.deprecated import MOVED

#: Names that the documents of the last release showed, by module.
NAMED = {
    "hfprune.measure": ["measure_size", "measure_latencies", "kv_cache_bytes", "dense_units"],
    "hfprune.pipeline": ["prune", "batches_for"],
    "hfprune.planner": ["plan", "apply_plan", "trade_off"],
    "hfprune.record": ["PruningRecord"],
    "hfprune.recovery.distillation": ["logits_loss", "top_k_logits_loss", "hidden_states_loss"],
    "hfprune.recovery.reconstruction": ["reconstruct"],
    "hfprune.tasks": ["Task", "text_classification", "TextArguments", "ModelArguments"],
    "hfprune.tasks.causal_text": ["causal_language_modelling"],
    "hfprune.workflow": ["run"],
}


@pytest.fixture(autouse=True)
def _fresh():
    """Old modules are imported anew, and are gone afterwards."""
    for name in MOVED:
        sys.modules.pop(name, None)
    yield
    for name in MOVED:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("old", sorted(MOVED))
def test_an_old_module_is_there_and_warns(old):
    with pytest.warns(DeprecationWarning, match="is now hfprune") as caught:
        module = importlib.import_module(old)
    assert any(str(warning.message).startswith(f"{old} is now {MOVED[old][0]}") for warning in caught)
    for name in NAMED.get(old, ()):
        homes = [importlib.import_module(home) for home in MOVED[old]]
        assert any(getattr(module, name) is getattr(home, name, None) for home in homes)


def test_the_warning_points_at_the_import(tmp_path):
    script = tmp_path / "old_script.py"
    script.write_text("from hfprune.measure import measure_size\n")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(compile(script.read_text(), str(script), "exec"), {})
    (warning,) = [w for w in caught if issubclass(w.category, DeprecationWarning)]
    assert warning.filename == str(script)


def test_a_star_import_gives_the_public_names():
    names: dict[str, object] = {}
    with pytest.warns(DeprecationWarning, match="hfprune.pipeline is now"):
        exec("from hfprune.pipeline import *", names)
    assert "prune" in names


def test_a_name_that_never_was_is_an_error():
    with (
        pytest.warns(DeprecationWarning, match="hfprune.measure is now"),
        pytest.raises(ImportError, match="cannot import name 'nonsense'"),
    ):
        exec("from hfprune.measure import nonsense", {})
