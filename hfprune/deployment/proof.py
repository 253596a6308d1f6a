"""The proof of an exported model: the same batches through PyTorch and through the target's runtime, compared."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfprune.deployment.targets import Generator, Runner, Tolerance
from hfprune.errors import CalibrationError, ExportError
from hfprune.structure.predictions import predictions_of

#: Outputs that are all close to 0 would allow no difference at all.
_LEAST_SCALE = 1e-3
#: An exported model whose outputs vary less than this share of the model's takes no notice of its input.
_CONSTANT = 0.1
#: Tokens of the beginning that a decoder continues, and of what it writes.
_PROMPT = 8
_NEW_TOKENS = 16


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far the outputs of an exported model are from those of the model in PyTorch, on one batch or several.

    Attributes:
        name: What was compared.
        samples: How many samples.
        tokens: Tokens of the longest sample, padding included; 0 for pictures and sounds.
        largest: The largest difference of an output. Outputs for padding are left out.
        scale: The largest output of the model in PyTorch.
        typical: The root mean square of the differences, relative to that of all compared outputs in PyTorch. Logits
            of classes or words count without their mean at a position; other outputs without their mean over all
            positions, so that a file that ignores its input is not near.
        agreement: The share of the positions at which both have the same largest logit; 1 where nothing is chosen, as
            by a regression or a model without a head.
    """

    name: str
    samples: int
    tokens: int
    largest: float
    scale: float
    typical: float
    agreement: float

    @property
    def relative(self) -> float:
        """The largest difference, relative to the largest output."""
        return self.largest / max(self.scale, _LEAST_SCALE)


@dataclass(frozen=True, kw_only=True)
class Text:
    """A text that a decoder wrote greedily, in PyTorch and in the target's runtime.

    Attributes:
        tokens: How many tokens each wrote.
        equal: How many of them are the same, from the first on.
    """

    tokens: int
    equal: int


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the outputs of a model mean, as far as a comparison goes by it.

    Attributes:
        chooses: Whether the outputs of a position are logits, of which the largest is chosen; else they are numbers.
        has_tokens: Whether the second dimension counts tokens, so that there are outputs for padding.
        is_of_samples: Whether every sample has a class, several labels, or a number.
    """

    chooses: bool
    has_tokens: bool
    is_of_samples: bool


def values_in(outputs: Any) -> Tensor:
    """The predictions in the outputs of a model.

    Args:
        outputs: What the model returned.

    Returns:
        Its logits; of a model that looks for answers `(samples, tokens, 2)`, the logits of beginning and end; of a base
        model the last hidden states.
    """
    if "start_logits" in outputs:
        return torch.stack((outputs["start_logits"], outputs["end_logits"]), dim=-1)
    values: Tensor = outputs["logits"] if "logits" in outputs else outputs[0]
    return values


def logits_of(outputs: Any) -> Tensor:
    """The predictions in the outputs of a model, without gradients.

    Args:
        outputs: What the model returned.

    Returns:
        As `values_in`, in float32, on the CPU.
    """
    return values_in(outputs).detach().float().cpu()


def in_pytorch(model: PreTrainedModel) -> Runner:
    """A model in PyTorch as a runner.

    Args:
        model: The model, in evaluation mode.

    Returns:
        The runner.
    """

    def run(batch: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            return logits_of(model(**batch))

    return run


def reading_of(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Reading:
    """What the outputs of a model mean.

    Args:
        model: The model, in evaluation mode.
        batch: Arguments of it.

    Returns:
        The meaning. Outputs that hfprune does not know are numbers.
    """
    with torch.no_grad():
        outputs = model(**batch)
    has_tokens = logits_of(outputs).ndim == 3
    try:
        prediction = predictions_of(model, outputs, batch, taker="the comparison")[0]
    except CalibrationError:
        return Reading(chooses=False, has_tokens=has_tokens, is_of_samples=False)
    is_softmax = prediction.link == "softmax" and prediction.axis in ("classes", "choices")
    return Reading(
        chooses=is_softmax and prediction.subject != "pixel",
        has_tokens=has_tokens or prediction.subject == "token",
        is_of_samples=prediction.subject == "sample" and prediction.axis == "classes",
    )


class Spread:
    """How large the outputs of all comparisons are, without what says nothing.

    Args:
        reading: What the outputs mean.
    """

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self._expected = _Sums()
        self._found = _Sums()

    def add(self, expected: Tensor, found: Tensor) -> None:
        """Count outputs.

        Args:
            expected: Those of the model in PyTorch, `(positions, outputs)`; of logits without their mean.
            found: Those of the exported model, likewise.
        """
        self._expected.add(expected)
        self._found.add(found)

    @property
    def size(self) -> float:
        """The root mean square of the model's outputs; of numbers around their mean over all positions."""
        return self._expected.size() if self.reading.chooses else self._expected.deviation()

    def ignores_input(self) -> bool:
        """Whether the exported model gives nearly the same outputs everywhere, and the model in PyTorch does not."""
        expected = self._expected.deviation()
        return expected > _LEAST_SCALE and self._found.deviation() < _CONSTANT * expected


class _Sums:
    """Sums over the positions of outputs."""

    def __init__(self) -> None:
        self._positions = 0
        self._numbers = 0
        self._squares = 0.0
        self._total: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """Count `(positions, outputs)`."""
        total = rows.sum(0, dtype=torch.float64)
        self._total = total if self._total is None else self._total + total
        self._positions += len(rows)
        self._numbers += rows.numel()
        self._squares += rows.square().sum(dtype=torch.float64).item()

    def size(self) -> float:
        """The root mean square."""
        return math.sqrt(self._squares / max(self._numbers, 1))

    def deviation(self) -> float:
        """The root mean square around the mean over the positions."""
        if self._total is None:
            return 0.0
        mean = self._total / self._positions
        return math.sqrt(max(self.size() ** 2 - mean.square().mean().item(), 0.0))


class Comparison:
    """Outputs of the model in PyTorch and of the exported one for the same batches.

    Args:
        name: What is compared.
        spread: Counts the outputs of all comparisons.
    """

    def __init__(self, name: str, spread: Spread) -> None:
        self.name = name
        self._spread = spread
        self._samples = 0
        self._tokens = 0
        self._largest: list[float] = []
        self._scales: list[float] = []
        self._errors = _Sums()
        self._positions = 0
        self._agreed = 0

    def add(self, expected: Tensor, found: Tensor, batch: Mapping[str, Tensor]) -> None:
        """Compare two outputs for one batch.

        Args:
            expected: The output of the model in PyTorch.
            found: The output of the exported model.
            batch: The arguments of both, whose mask says where there is padding.

        Raises:
            ExportError: The outputs have different shapes, or the exported model's are not finite.
        """
        if expected.shape != found.shape:
            raise ExportError(
                f"the exported model gives outputs of shape {tuple(found.shape)} for {self.name}, PyTorch gives "
                f"{tuple(expected.shape)}."
            )
        reading = self._spread.reading
        expected, found = _rows(expected, batch, reading), _rows(found, batch, reading)
        if not bool(found.isfinite().all()):
            raise ExportError(f"the exported model gives outputs that are NaN or infinite for {self.name}.")
        self._samples += len(next(iter(batch.values())))
        ids = batch.get("input_ids")
        self._tokens = max(self._tokens, 0 if ids is None else ids.shape[-1])
        self._largest.append((expected - found).abs().max().item())
        self._scales.append(expected.abs().max().item())
        self._positions += len(expected)
        self._agreed += _agreed(expected, found, reading)
        if reading.chooses:
            # the same number more for every class changes no probability
            expected = expected - expected.mean(-1, keepdim=True)
            found = found - found.mean(-1, keepdim=True)
        self._errors.add(expected - found)
        self._spread.add(expected, found)

    def difference(self) -> Difference:
        """What came out, when all comparisons are counted."""
        return Difference(
            name=self.name,
            samples=self._samples,
            tokens=self._tokens,
            # unlike Python's, this maximum does not pass over NaN
            largest=float(np.max(self._largest)),
            scale=float(np.max(self._scales)),
            typical=self._errors.size() / max(self._spread.size, _LEAST_SCALE),
            agreement=self._agreed / self._positions,
        )


def _rows(output: Tensor, batch: Mapping[str, Tensor], reading: Reading) -> Tensor:
    """An output as `(positions, outputs)`, without those for padding."""
    mask = batch.get("attention_mask")
    # a model of sounds has fewer frames than its mask has numbers
    if reading.has_tokens and mask is not None and output.shape[:2] == mask.shape:
        output = output[mask.bool()]
    if output.ndim == 1:
        return output.unsqueeze(-1)
    return output.reshape(-1, output.shape[-1])


def _agreed(expected: Tensor, found: Tensor, reading: Reading) -> int:
    """At how many positions both choose the same; of numbers at all."""
    if not reading.chooses:
        return len(expected)
    return int((expected.argmax(-1) == found.argmax(-1)).sum())


def check_within(differences: Sequence[Difference], tolerance: Tolerance, spread: Spread, target: str) -> None:
    """Refuse an exported model that differs by more than its target admits.

    Args:
        differences: What was compared.
        tolerance: What is admitted. Choices must agree over all samples, as a single one agrees or does not.
        spread: The outputs of all of it.
        target: The name of the target, for the message.

    Raises:
        ExportError: It differs by more; the message says by how much, and on what.
    """
    for difference in differences:
        # not `>`: a difference that is NaN must be refused too
        if difference.relative <= tolerance.largest and difference.typical <= tolerance.typical:
            continue
        raise ExportError(
            f"the exported {target} file does not compute what the model computes: on {difference.name} outputs "
            f"differ by up to {difference.largest:.2g} where the largest is {difference.scale:.2g}, and typically by "
            f"{100 * difference.typical:.2g} %; {100 * difference.agreement:.1f} % of the choices agree. "
            f"{_admitted(tolerance)} The file was not kept."
        )
    samples = sum(difference.samples for difference in differences)
    agreement = math.fsum(difference.agreement * difference.samples for difference in differences) / samples
    if agreement < tolerance.agreement:
        raise ExportError(
            f"the exported {target} file does not choose what the model chooses: {100 * agreement:.1f} % of the "
            f"choices agree on {samples} samples. {_admitted(tolerance)} The file was not kept."
        )
    if spread.ignores_input():
        raise ExportError(
            f"the exported {target} file gives nearly the same outputs for every sample, and the model does not. The "
            "file was not kept."
        )


def _admitted(tolerance: Tolerance) -> str:
    """What a tolerance admits, as a sentence."""
    bounds = []
    if tolerance.largest < math.inf:
        bounds.append(f"{tolerance.largest:.2g} of the largest output")
    if tolerance.typical < math.inf:
        bounds.append(f"{100 * tolerance.typical:.2g} % typically")
    if tolerance.agreement:
        bounds.append(f"{100 * tolerance.agreement:.1f} % of the choices must agree")
    return f"Admitted: {'; '.join(bounds)}."


def written_alike(
    model: PreTrainedModel, runner: Runner, batch: Mapping[str, Tensor], *, quantized: bool
) -> Text | None:
    """Let a decoder write a text greedily, in PyTorch and in the target's runtime.

    Args:
        model: The decoder, in evaluation mode.
        runner: The exported model.
        batch: Texts; the first tokens of the first are the beginning.
        quantized: Whether the exported model may write something else, as its weights are not the same.

    Returns:
        How much of both is equal; None if the runner does not write.

    Raises:
        ExportError: They write different texts.
    """
    if not isinstance(runner, Generator):
        return None
    prompt = batch["input_ids"][:1, :_PROMPT]
    expected = written_greedily(in_pytorch(model), prompt, _NEW_TOKENS)[0].tolist()
    found = runner.generate(prompt, _NEW_TOKENS).tolist()[0]
    equal = 0
    for ours, theirs in zip(expected, found, strict=True):
        if ours != theirs:
            break
        equal += 1
    if equal < _NEW_TOKENS and not quantized:
        raise ExportError(
            f"the exported model writes another text than the model in PyTorch: token {equal + 1} of {_NEW_TOKENS} is "
            f"{found[equal]}, PyTorch's is {expected[equal]}. It was not kept."
        )
    return Text(tokens=_NEW_TOKENS, equal=equal)


def written_greedily(run: Runner, ids: Tensor, new_tokens: int) -> Tensor:
    """What a decoder in PyTorch writes greedily behind a beginning.

    Without `generate`, whose config may ask for samples, beams or penalties, and without a cache, so that the cache of
    an exported model is compared with none.

    Args:
        run: The decoder.
        ids: `(1, tokens)`, the beginning.
        new_tokens: How many tokens to write.

    Returns:
        `(1, new_tokens)`.
    """
    beginning = ids.shape[1]
    for _ in range(new_tokens):
        logits = run({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        ids = torch.cat((ids, logits[:, -1:].argmax(-1)), dim=1)
    return ids[:, beginning:]
