"""The probe: a fixed small input, and what the saved model made of it, so that anyone can check that theirs agrees."""

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfprune.structure.devices import input_embeddings
from hfprune.structure.examples import example_inputs
from hfprune.structure.modeling_pruned import PROOF
from hfprune.structure.running import frozen

PROBE_FILE = PROOF
FORMAT_VERSION = 1
_SAMPLES, _TOKENS, _MOST = 2, 8, 512
#: The largest difference that another machine or kernel may make, relative to the largest output.
_TOLERANCE = {"float64": 1e-4, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A fixed input and what a model gave for it.

    Attributes:
        input_ids: `(2, 8)` token ids; pictures and speech are made of seeded noise.
        shape: Of the first output (logits, or hidden states of a base model).
        output: That output, flattened; of more than 512 numbers, 512 that are spread evenly.
        dtype: Of the model that gave it.
    """

    input_ids: list[Any]
    shape: list[int]
    output: list[float]
    dtype: str

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Probe":
        """Run a model on the fixed input.

        Args:
            model: The model; it is left as it was.

        Returns:
            The probe.
        """
        generator = torch.Generator().manual_seed(0)
        embeddings = input_embeddings(model)
        known = embeddings.num_embeddings if isinstance(embeddings, nn.Embedding) else 2  # of no use to pictures
        ids = torch.randint(0, known, (_SAMPLES, _TOKENS), generator=generator)
        output = _run(model, ids)
        return cls(
            input_ids=ids.tolist(),
            shape=list(output.shape),
            output=_sample(output),
            dtype=str(model.dtype).removeprefix("torch."),
        )

    def problem_of(self, model: PreTrainedModel) -> str | None:
        """What is wrong with a model that should give this output; None if it does.

        Args:
            model: The model, in the dtype of the probe.

        Returns:
            One line, or None.
        """
        output = _run(model, torch.tensor(self.input_ids))
        if list(output.shape) != self.shape:
            return f"the model gives outputs of shape {list(output.shape)}, its author's gave {self.shape}"
        mine = _sample(output)
        largest = max(map(abs, self.output), default=0.0)
        difference = max((abs(a - b) for a, b in zip(mine, self.output, strict=True)), default=0.0)
        if not all(map(math.isfinite, mine)) or difference > _TOLERANCE[self.dtype] * max(largest, 1e-3):
            return (
                "the model does not compute what its author saw: outputs for the probe differ by "
                f"{difference:.3g}, where the largest is {largest:.3g}"
            )
        return None

    def to_json(self) -> str:
        """The probe as JSON."""
        return json.dumps({"format_version": FORMAT_VERSION, **asdict(self)}) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Probe":
        """Read what `to_json` wrote.

        Args:
            text: JSON.

        Returns:
            The probe.

        Raises:
            ValueError: It is not a probe, or of a newer format.
        """
        try:
            data = json.loads(text)
            version = data.pop("format_version")
            if version != FORMAT_VERSION:
                raise ValueError(f"format_version {version!r:.50}, this hfprune reads {FORMAT_VERSION}: upgrade it")
            probe = cls(**data)
            ids = torch.tensor(probe.input_ids)
            fits = ids.shape == (_SAMPLES, _TOKENS) and not ids.is_floating_point()
            fits = fits and len(probe.output) == min(_MOST, math.prod(probe.shape)) and probe.dtype in _TOLERANCE
            if not fits or not all(isinstance(value, float) and math.isfinite(value) for value in probe.output):
                raise ValueError("fields of unexpected types or sizes")
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{PROBE_FILE} is not a probe: {error}. Download or save the checkpoint again.") from error
        return probe


def _run(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """The outputs of the samples, one by one: some models take no batch without a padding token."""
    with frozen(model), torch.no_grad():
        rows = [model(**example_inputs(model, row))[0] for row in torch.tensor_split(ids, len(ids))]
    return torch.cat([row.float().cpu() for row in rows])


def _sample(output: Tensor) -> list[float]:
    flat = output.flatten()
    index = torch.linspace(0, flat.numel() - 1, min(_MOST, flat.numel()), dtype=torch.float64).long()
    return flat[index].tolist()
