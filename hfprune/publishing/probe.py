"""The probe: a small fixed input and the saved model's output for it, so that anyone can compare a loaded model."""

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfprune.structure.devices import input_embeddings
from hfprune.structure.examples import example_inputs
from hfprune.structure.json_text import read_json
from hfprune.structure.modeling_pruned import PROOF
from hfprune.structure.running import frozen

PROBE_FILE = PROOF
#: Grows when a reader of today would misread a probe.
FORMAT_VERSION = 1
#: The shape of the token ids.
_SAMPLES = 2
_TOKENS = 8
#: The most numbers of an output that a probe keeps.
_MOST_NUMBERS = 512
#: The largest difference that another machine or kernel may make, relative to the largest output.
_TOLERANCE = {"float64": 1e-4, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
#: Of a quantised model: a difference in the last digit takes an activation to the next of its 255 values, and 4-bit
#: weights are multiplied in bfloat16 where the processor can.
_TOLERANCE_QUANTIZED = 1e-1


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A fixed input, and the output of a model for it.

    Attributes:
        input_ids: `(2, 8)` token ids. Models of pictures or speech get seeded noise instead.
        shape: The shape of the first output: of logits, or of the hidden states of a base model.
        output: That output, flattened; where it has more than 512 numbers, 512 that are spread evenly over it.
        dtype: The dtype of the model, such as `float32`.
    """

    input_ids: list[Any]
    shape: list[int]
    output: list[float]
    dtype: str

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Probe":
        """Run a model on the fixed input.

        Args:
            model: The model; it stays as it is.

        Returns:
            The probe.
        """
        generator = torch.Generator().manual_seed(0)
        embeddings = input_embeddings(model)
        # a model of pictures or speech gets noise; only its decoder, if there is one, reads ids: 0 and 1
        tokens = embeddings.num_embeddings if isinstance(embeddings, nn.Embedding) else 2
        ids = torch.randint(0, tokens, (_SAMPLES, _TOKENS), dtype=torch.long, device="cpu", generator=generator)
        output = _run(model, ids)
        return cls(
            input_ids=ids.tolist(),
            shape=list(output.shape),
            output=_sample(output),
            dtype=str(model.dtype).removeprefix("torch."),
        )

    def problem_of(self, model: PreTrainedModel) -> str | None:
        """Compare the outputs of a model with those of the probe.

        Args:
            model: The model, in the dtype of the probe.

        Returns:
            One line about the difference; None if there is none beyond rounding.
        """
        output = _run(model, torch.tensor(self.input_ids, dtype=torch.long, device="cpu"))
        if list(output.shape) != self.shape:
            return f"the model gives outputs of shape {list(output.shape)}, its author's gave {self.shape}"
        values = _sample(output)
        largest = max(map(abs, self.output), default=0.0)
        differences = [abs(value - expected) for value, expected in zip(values, self.output, strict=True)]
        difference = max(differences, default=0.0)
        # outputs that are all close to 0 would allow no difference at all
        share = _TOLERANCE_QUANTIZED if getattr(model, "hf_quantizer", None) is not None else _TOLERANCE[self.dtype]
        tolerance = share * max(largest, 1e-3)
        # `max` may pass over a difference that is NaN
        all_finite = all(map(math.isfinite, values))
        if not all_finite or difference > tolerance:
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
            text: The content of `pruning_probe.json`.

        Returns:
            The probe.

        Raises:
            ValueError: The text is no probe, or has a newer format.
        """
        try:
            data = read_json(text)
            version = data.pop("format_version")
            if version != FORMAT_VERSION:
                raise ValueError(f"format_version {version!r:.50}, this hfprune reads {FORMAT_VERSION}: upgrade it")
            probe = cls(**data)
            if not _is_sound(probe):
                raise ValueError("fields of unexpected types or sizes")
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{PROBE_FILE} is not a probe: {error}. Download or save the checkpoint again.") from error
        return probe


def _is_sound(probe: Probe) -> bool:
    """Whether the fields of a probe from a file have the types and sizes that `Probe.of` gives them."""
    # the dtype follows from the numbers: whole ones are wanted, and looked for
    ids = torch.tensor(probe.input_ids, dtype=None, device="cpu")
    if ids.shape != (_SAMPLES, _TOKENS) or ids.is_floating_point():
        return False
    if len(probe.output) != min(_MOST_NUMBERS, math.prod(probe.shape)):
        return False
    if probe.dtype not in _TOLERANCE:
        return False
    return all(isinstance(value, float) and math.isfinite(value) for value in probe.output)


def _run(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """The first outputs of a model for all samples, as float32 on the CPU."""
    outputs = []
    with frozen(model), torch.no_grad():
        # one by one, as some models take no batch without a padding token
        for row in torch.tensor_split(ids, len(ids)):
            output = model(**example_inputs(model, row))[0]
            outputs.append(output.float().cpu())
    return torch.cat(outputs)


def _sample(output: Tensor) -> list[float]:
    """All numbers of a small output, or as many as a probe keeps, spread evenly over a large one."""
    flat = output.flatten()
    count = min(_MOST_NUMBERS, flat.numel())
    # in float64, as float32 rounds the positions in an output of more than 2²⁴ numbers
    positions = torch.linspace(0, flat.numel() - 1, count, dtype=torch.float64, device="cpu").long()
    return flat[positions].tolist()
