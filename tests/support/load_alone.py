"""Load checkpoints by the code in them, without hfprune: `python load_alone.py FOLDER...`, with some transformers.

Every folder has `expected.pt` beside it: the Auto class to load it by, inputs, and the logits that hfprune computed.
"""

import sys
from pathlib import Path


def main() -> None:
    """Load, compute, compare, and print the version of transformers."""
    # as if it were not installed
    sys.modules["hfprune"] = None
    import torch
    import transformers

    for argument in sys.argv[1:]:
        folder = Path(argument)
        expected = torch.load(folder / "expected.pt")
        auto_class = getattr(transformers, expected["auto_class"])
        model = auto_class.from_pretrained(folder, trust_remote_code=True).eval()
        assert type(model).__module__.startswith("transformers_modules."), type(model)
        with torch.no_grad():
            logits = model(**expected["batch"]).logits
        difference = (logits - expected["logits"]).abs().max().item()
        assert difference < 1e-5, f"{folder}: the largest difference is {difference}"
    print(f"transformers {transformers.__version__}")


if __name__ == "__main__":
    main()
