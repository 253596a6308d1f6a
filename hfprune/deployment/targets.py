"""The registry of targets: formats that models are exported to, each with how it is written and how it is run."""

import importlib.metadata
import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfprune.errors import MissingDependencyError
from hfprune.structure.arguments import TEXT, checked
from hfprune.structure.registration import check_same


class Runner(Protocol):
    """An exported model that is open in its runtime."""

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Run it on a batch.

        Args:
            batch: Arguments of the model: `input_ids` and `attention_mask`, each `(samples, tokens)`, and what else the
                tokenizer gives. A decoder also gets `position_ids` where padding may stand in front; a runner whose
                file does not take them counts positions by the mask.

        Returns:
            The logits, or the last hidden states of a model without a head, float32, on the CPU.
        """
        ...


@runtime_checkable
class Generator(Protocol):
    """A runner of a decoder, which also writes texts with its cache."""

    def generate(self, input_ids: Tensor, new_tokens: int) -> Tensor:
        """Write a text greedily: at every position the token with the largest logit.

        Args:
            input_ids: `(1, tokens)`, the beginning.
            new_tokens: How many tokens to write.

        Returns:
            `(1, new_tokens)`, without the beginning.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class WriteOptions:
    """What `Target.write` gets beside the model and the folder.

    Attributes:
        quantization: One of the target's `quantizations`; None for the weights as they are.
        tokenizer: The tokenizer of the model. It is saved in the folder already; a target whose one file holds
            everything writes it there too.
        batch: Arguments of the model to trace it with: real token ids, with padding.
        calibration: Batches that a quantiser may look at; empty if the user gave no data, or the quantisation is not
            in the target's `calibrated`.
        name: What the user calls the model, for metadata inside the file.
    """

    quantization: str | None
    tokenizer: PreTrainedTokenizerBase | None
    batch: Mapping[str, Tensor]
    calibration: Sequence[Mapping[str, Tensor]] = ()
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class OpenOptions:
    """How an exported model is opened.

    Attributes:
        threads: How many threads of the CPU compute; None: as many as the runtime likes.
    """

    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far an exported model may be from the model in PyTorch.

    Attributes:
        largest: The largest difference of an output, relative to the largest output of the model in PyTorch. Few
            outputs of a quantised model differ by much, so this bound is for those that are not quantised.
        typical: The root mean square of the differences, relative to that of the outputs, as `Difference` has it.
        agreement: The least share of the positions at which both have the same largest logit, over all samples.
    """

    largest: float = math.inf
    typical: float = math.inf
    agreement: float = 0.0


#: Without quantisation only the order of additions differs. Deep decoders have a few features that are a thousand times
#: as large as the others, and their logits then differ by up to 3e-4 of the largest; a step in half precision makes
#: typical differences of 5e-4 and more.
EXACT = Tolerance(largest=1e-3, typical=3e-4, agreement=0.99)


def _no_reason(model: PreTrainedModel) -> str | None:  # noqa: ARG001 (the signature of `Target.refusal`)
    """A target that takes every model."""
    return None


@dataclass(frozen=True, kw_only=True)
class Target:
    """A format that models are exported to.

    Attributes:
        name: The name in `hfprune.export(to=...)`, such as `onnx`.
        extra: The extra of hfprune that installs what it needs: `onnx` for `hfprune[onnx]`. Empty if nothing is needed.
        modules: What must be importable.
        packages: The packages whose versions an export states.
        quantizations: By name, such as `int8`, what it does: a line of help.
        calibrated: The quantisations that look at data.
        tolerance: By quantisation (None: not quantised) how far the exported model may be from the one in PyTorch.
        write: Writes the model into a folder, which holds its config and its tokenizer already.
        open: Opens what `write` wrote in the target's runtime.
        refusal: Says why a model cannot be exported, before any work; None if it can.
        rounded: Gives a copy of a model with the weights that a quantised file holds. Outputs of the file are compared
            with the copy's too, which they are nearer to; None where nobody knows these weights.
        rounded_tolerance: How far they may be from the copy's.
        conclude: Called with the folder and the `Export` that is returned, if the file is good, before the folder takes
            its place. None: nothing is left to do.
        done: What is done to a model, for messages; by default `exported to` its name.
    """

    name: str
    extra: str
    modules: tuple[str, ...]
    tolerance: Mapping[str | None, Tolerance]
    write: Callable[[PreTrainedModel, Path, WriteOptions], None]
    open: Callable[[Path, OpenOptions], Runner]
    packages: tuple[str, ...] = ()
    quantizations: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    calibrated: tuple[str, ...] = ()
    refusal: Callable[[PreTrainedModel], str | None] = _no_reason
    rounded: Callable[[PreTrainedModel, str], PreTrainedModel] | None = None
    rounded_tolerance: Tolerance = Tolerance()
    conclude: Callable[[Path, Any], None] | None = None
    done: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "done", self.done or f"exported to {self.name}")


_TARGETS: dict[str, Target] = {}


def register_target(target: Target) -> None:
    """Add a format that models are exported to.

    Args:
        target: The target.

    Raises:
        ValueError: Another target has that name, or a quantisation has no tolerance. A target whose `write` is a
            function of the same module and name is replaced, so that a cell of a notebook can be run again.

    Examples:
        >>> from pathlib import Path
        >>> from safetensors.torch import save_model
        >>> from hfprune.deployment import Target, Tolerance, known_targets, register_target
        >>> def write(model, folder, options):
        ...     save_model(model, folder / "weights.safetensors")
        >>> def open_again(folder, options):
        ...     return lambda batch: dense(**batch).logits
        >>> tolerance = {None: Tolerance(largest=1e-4)}
        >>> register_target(
        ...     Target(name="bare", extra="", modules=(), tolerance=tolerance, write=write, open=open_again)
        ... )
        >>> "bare" in known_targets()
        True
    """
    if target.name in _TARGETS:
        check_same("a target", target.name, target.write, _TARGETS[target.name].write)
    for quantization in (None, *target.quantizations):
        if quantization not in target.tolerance:
            raise ValueError(f"the target {target.name!r} has no tolerance for {quantization or 'no quantisation'}.")
    _TARGETS[target.name] = target


def known_targets() -> Mapping[str, Target]:
    """All targets that are registered now, by name.

    Returns:
        A copy, with a `Target` for each name; changing it registers nothing.

    Examples:
        >>> from hfprune.deployment import known_targets
        >>> known_targets()["onnx"].extra
        'onnx'
    """
    return dict(_TARGETS)


@checked(name=TEXT)
def get_target(name: str) -> Target:
    """Look up a target.

    Args:
        name: Its name.

    Returns:
        The target.

    Raises:
        ValueError: No target has that name; the message lists the known ones.

    Examples:
        >>> from hfprune.deployment import get_target
        >>> sorted(get_target("onnx").quantizations)
        ['int8']
    """
    if name not in _TARGETS:
        raise ValueError(f"to must be one of {', '.join(sorted(_TARGETS))}, got {name!r}.")
    return _TARGETS[name]


def check_quantization(target: Target, quantization: str | None) -> None:
    """Refuse a quantisation that a target does not have.

    Args:
        target: The target.
        quantization: Its name; None for none.

    Raises:
        ValueError: The target does not have it; the message lists those that it has.
    """
    if quantization is None or quantization in target.quantizations:
        return
    if not target.quantizations:
        raise ValueError(f"{target.name} takes no quantisation here, got quantize={quantization!r}. Leave it out.")
    known = ", ".join(target.quantizations)
    raise ValueError(f"quantize must be one of {known} for {target.name}, got {quantization!r}; or leave it out.")


def check_installed(target: Target) -> None:
    """Refuse a target whose packages are not installed.

    Args:
        target: The target.

    Raises:
        MissingDependencyError: A package is missing; the message has the command that installs it.
    """
    missing = [name for name in target.modules if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"a model that is {target.done} needs {', '.join(missing)}, not installed here. Run: "
            f"pip install 'hfprune[{target.extra}]'"
        )


def versions_of(target: Target) -> dict[str, Any]:
    """The versions of the packages that an export to a target was made with.

    Args:
        target: The target.

    Returns:
        By package; one that is not installed is left out.
    """
    versions = {}
    for package in ("hfprune", "torch", "transformers", *target.packages):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
