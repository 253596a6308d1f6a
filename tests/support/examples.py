"""What the examples in docstrings work on: docs/examples.py makes it, and the reference shows that file."""

import runpy
from pathlib import Path
from typing import Any

DEFINITIONS = Path(__file__).parent.parent.parent / "docs" / "examples.py"

#: What the examples use without making it.
GIVEN = ("batches", "collator", "config", "dataset", "decoder", "dense", "texts", "tokenizer")


def given() -> dict[str, Any]:
    """New models and data for one example."""
    made = runpy.run_path(str(DEFINITIONS))
    return {name: made[name] for name in GIVEN}
