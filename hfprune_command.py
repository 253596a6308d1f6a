"""The entry of the `hfprune` command.

Python runs a package before it imports a module in it, and `import hfprune` needs torch and transformers, which takes
seconds. Help, completion and the version need neither. So this module puts the package into `sys.modules` without
running it; `hfprune.cli.options.errors_in_one_line`, in which every command works, runs it first.
"""

import importlib
import importlib.util
import sys


def main() -> None:
    """Run the command that `sys.argv` has."""
    if "hfprune" not in sys.modules:
        spec = importlib.util.find_spec("hfprune")
        assert spec is not None, "the module and the package come together"
        sys.modules["hfprune"] = importlib.util.module_from_spec(spec)
    importlib.import_module("hfprune.cli.app").app()
