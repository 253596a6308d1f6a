"""Load a pruned checkpoint in a process where hfprune cannot be imported; print its logits as JSON.

Run as `python -P -S`-like isolation cannot hide an editable install, so the finder itself refuses the name.
"""

import json
import sys

import torch


class _Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hfprune":
            raise ImportError("hfprune is not here, on purpose")


def main() -> None:
    folder, auto, trust = sys.argv[1], sys.argv[2], sys.argv[3] == "trust"
    sys.meta_path.insert(0, _Refuse())
    import transformers

    model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=trust or None)
    if len(sys.argv) > 4:
        model.save_pretrained(sys.argv[4])
    ids = torch.arange(4, 14).reshape(2, 5)
    with torch.no_grad():
        result = model(input_ids=ids)
    first = result["logits"] if "logits" in result else result["last_hidden_state"]
    print(json.dumps({"class": type(model).__name__, "output": first.tolist()}))


if __name__ == "__main__":
    main()
