"""A plugin for pytest in a checkout of peft: pruned types can be loaded, and have the default modules of dense ones.

peft looks up by the model type which modules an adapter goes into, unless `target_modules` names them. It has no entry
for `pruned_<type>`, so most of its tests would stop there.
"""

from peft.utils import constants

import hfprune  # noqa: F401 (registers pruned types with the Auto classes)

TABLES = "TRANSFORMERS_MODELS_TO_"


def know_pruned_types() -> None:
    """Give every pruned type the entries of its dense type in peft's tables."""
    for name, table in vars(constants).items():
        if name.startswith(TABLES) and isinstance(table, dict):
            for model_type in list(table):
                table.setdefault(f"pruned_{model_type}", table[model_type])


def pytest_configure() -> None:
    """Fill the tables before any test runs."""
    know_pruned_types()
