"""The proof of an exported model: the same batches through PyTorch and through the target's runtime, compared."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfprune.deployment.targets import Generator, Runner, Tolerance
from hfprune.errors import ExportError

#: Outputs that are all close to 0 would allow no difference at all.
_LEAST_SCALE = 1e-3
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
        typical: The root mean square of the differences, relative to that of the outputs in PyTorch.
        agreement: The share of the positions at which both have the same largest output; of a regression 1.
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


def logits_of(outputs: Any) -> Tensor:
    """The predictions in the outputs of a model.

    Args:
        outputs: What the model returned.

    Returns:
        Its logits; of a model that looks for answers `(samples, tokens, 2)`, the logits of beginning and end; of a base
        model the last hidden states. float32, on the CPU.
    """
    if "start_logits" in outputs:
        values = torch.stack((outputs["start_logits"], outputs["end_logits"]), dim=-1)
    else:
        values = outputs["logits"] if "logits" in outputs else outputs[0]
    return values.detach().float().cpu()


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


def compared(name: str, expected: Tensor, found: Tensor, batch: Mapping[str, Tensor]) -> Difference:
    """Compare two outputs for one batch.

    Args:
        name: What is compared.
        expected: The output of the model in PyTorch.
        found: The output of the exported model.
        batch: The arguments of both, whose mask says where there is padding.

    Returns:
        The difference.

    Raises:
        ExportError: The outputs have different shapes, or the exported model's are not finite.
    """
    if expected.shape != found.shape:
        raise ExportError(
            f"the exported model gives outputs of shape {tuple(found.shape)} for {name}, PyTorch gives "
            f"{tuple(expected.shape)}."
        )
    mask = batch.get("attention_mask")
    if mask is not None and expected.shape[:2] == mask.shape:
        kept = mask.bool()
        expected, found = expected[kept], found[kept]
    if not bool(found.isfinite().all()):
        raise ExportError(f"the exported model gives outputs that are NaN or infinite for {name}.")
    same = expected.argmax(-1) == found.argmax(-1)
    ids = batch.get("input_ids")
    first = next(iter(batch.values()))
    return Difference(
        name=name,
        samples=len(first),
        tokens=0 if ids is None else ids.shape[-1],
        largest=(expected - found).abs().max().item(),
        scale=expected.abs().max().item(),
        typical=_size(expected - found) / max(_size(expected), _LEAST_SCALE),
        agreement=same.float().mean().item(),
    )


def _size(values: Tensor) -> float:
    """The root mean square of numbers."""
    return values.square().mean().sqrt().item()


def together(name: str, parts: Sequence[Difference]) -> Difference:
    """The differences on several batches as one.

    Args:
        name: What was compared.
        parts: The differences.

    Returns:
        The largest of them, and the typical difference and the agreement over all samples.
    """
    samples = sum(part.samples for part in parts)
    squares = math.fsum(part.typical**2 * part.samples for part in parts)
    return Difference(
        name=name,
        samples=samples,
        tokens=max(part.tokens for part in parts),
        largest=max(part.largest for part in parts),
        scale=max(part.scale for part in parts),
        typical=math.sqrt(squares / samples),
        agreement=math.fsum(part.agreement * part.samples for part in parts) / samples,
    )


def check_within(differences: Iterable[Difference], tolerance: Tolerance, target: str) -> None:
    """Refuse an exported model that differs by more than its target admits.

    Args:
        differences: What was compared.
        tolerance: What is admitted.
        target: The name of the target, for the message.

    Raises:
        ExportError: It differs by more; the message says by how much, and on what.
    """
    for difference in differences:
        # not `>`: a difference that is NaN must be refused too
        is_near = difference.relative <= tolerance.largest and difference.typical <= tolerance.typical
        if is_near and difference.agreement >= tolerance.agreement:
            continue
        raise ExportError(
            f"the exported {target} file does not compute what the model computes: on {difference.name} outputs "
            f"differ by up to {difference.largest:.2g} where the largest is {difference.scale:.2g}, and typically by "
            f"{100 * difference.typical:.2g} %; {100 * difference.agreement:.1f} % of the choices agree. "
            f"{_admitted(tolerance)} The file was not kept."
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
    expected = _written(model, prompt)
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


def _written(model: PreTrainedModel, ids: Tensor) -> list[int]:
    """What a decoder writes greedily behind a beginning.

    Without `generate`, whose config may ask for samples, beams or penalties, and without a cache, so that the cache of
    the exported model is compared with none.
    """
    run = in_pytorch(model)
    beginning = ids.shape[1]
    for _ in range(_NEW_TOKENS):
        logits = run({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        ids = torch.cat((ids, logits[:, -1:].argmax(-1)), dim=1)
    written: list[int] = ids[0, beginning:].tolist()
    return written
