"""A target for tests, whose runtime is PyTorch."""

import torch
from safetensors.torch import save_model

from hfprune.deployment import Target, Tolerance, register_target


class Twin:
    """A runner that is the model itself, with a change to its outputs."""

    def __init__(self, model, change=lambda logits: logits, token=lambda token: token):
        self.model, self.change, self.token = model, change, token

    def __call__(self, batch):
        with torch.no_grad():
            return self.change(self.model(**batch).logits)


class MasklessTwin(Twin):
    def __call__(self, batch):
        return super().__call__({name: value for name, value in batch.items() if name != "attention_mask"})


class WritingTwin(Twin):
    def generate(self, input_ids, new_tokens):
        ids = input_ids
        for _ in range(new_tokens):
            ids = torch.cat((ids, self(batch={"input_ids": ids})[:, -1:].argmax(-1)), dim=1)
        return self.token(ids[:, input_ids.shape[1] :])


def twin_target(*, twin=Twin, **fields):
    """A target whose runtime is PyTorch."""
    written = {}
    changes = {name: fields.pop(name) for name in ("change", "token") if name in fields}

    def write(model, folder, options):
        save_model(model, folder / "weights.safetensors")
        written.update(model=model, options=options)

    def open_again(folder, options):
        assert (folder / "weights.safetensors").is_file()
        return twin(written["model"], **changes)

    values = {
        "name": "twin",
        "extra": "twin",
        "modules": (),
        "tolerance": {None: Tolerance(largest=1e-4), "int8": Tolerance(typical=0.3)},
        "quantizations": {"int8": "for tests"},
        "write": write,
        "open": open_again,
    }
    register_target(Target(**{**values, **fields}))
    return written
