"""The record of a pruned model: what was done to it, with what, and what came of it. The card is drawn from it."""

import importlib.metadata
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from hfprune.measure import Size, dense_size, measure_size
from hfprune.structure.modeling_pruned import base_class

FORMAT_VERSION = 1
_PACKAGES = ("hfprune", "torch", "transformers", "datasets", "accelerate", "evaluate", "huggingface_hub")


@dataclass(frozen=True, kw_only=True)
class PruningRecord:
    """What happened to a model. Frozen: `with_` gives a record that knows more.

    Attributes:
        base_model: Name of the dense model: a repository, or the name of a folder.
        model_class: Class of the dense model.
        config: The `PruningConfig`, as plain values.
        rounds: For each round: sparsity, digest of the plan so far, and seconds of scoring and surgery.
        plan_digest: Digest of the whole plan, in dense numbering.
        sizes: `measure.Size` as plain values, under `dense` and `pruned`.
        latencies: `measure.Latency` as plain values, under `dense` and `pruned`.
        metrics: Under `dense`, `pruned` and `recovered`, each a mapping from metric to value.
        datasets: Names of the data sets used.
        recovery: Hyper-parameters of the recovery that were set, and its steps and seconds.
        command: How to do it again.
        files: SHA-256 of the weight files, by name; only in a file that `hfprune.save` wrote.
        versions: Of Python and the packages that did it.
        earlier: Records of prunings before this one, if the model was pruned already.
    """

    base_model: str
    model_class: str
    config: dict[str, Any]
    plan_digest: str
    rounds: list[dict[str, Any]] = field(default_factory=list)
    sizes: dict[str, dict[str, Any]] = field(default_factory=dict)
    latencies: dict[str, dict[str, Any]] = field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    datasets: list[str] = field(default_factory=list)
    recovery: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    files: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=lambda: versions())
    earlier: list[dict[str, Any]] = field(default_factory=list)

    def with_(self, **changes: Any) -> "PruningRecord":
        """A copy with fields replaced; dictionaries are merged into those that are there."""
        merged: dict[str, Any] = {
            name: {**getattr(self, name), **value} if isinstance(value, dict) else value
            for name, value in changes.items()
        }
        return replace(self, **merged)

    def to_json(self) -> str:
        """The record as JSON."""
        return json.dumps({"format_version": FORMAT_VERSION, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def of_model(cls, text: str) -> "PruningRecord":
        """Read a record for a model in memory: without the digests of files, as its weights may change."""
        return replace(cls.from_json(text), files={})

    @classmethod
    def from_json(cls, text: str) -> "PruningRecord":
        """Read what `to_json` wrote.

        Args:
            text: JSON.

        Returns:
            The record.

        Raises:
            ValueError: It is not a record, or of a newer format.
        """
        try:
            data = json.loads(text)
            version = data.pop("format_version")
        except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"not a pruning record: {type(error).__name__}: {error}") from error
        if version != FORMAT_VERSION:
            raise ValueError(
                f"the pruning record has format_version {version}, this hfprune reads {FORMAT_VERSION}: upgrade it."
            )
        try:
            return cls(**data)
        except TypeError as error:
            raise ValueError(f"not a pruning record: {error}") from error


def record_of(
    model: PreTrainedModel,
    before: Size,
    small: PreTrainedModel,
    asked: dict[str, Any],
    rounds: Sequence[dict[str, Any]],
) -> PruningRecord:
    """The record of a pruning that was just done.

    Args:
        model: The model before it.
        before: What that measured.
        small: The model after it, with its plan.
        asked: The config, as plain values.
        rounds: What happened in each round.

    Returns:
        A record that knows the records of earlier prunings of the model.
    """
    earlier: PruningRecord | None = getattr(model, "pruning_record", None)
    history = [] if earlier is None else [*earlier.earlier, {**asdict(earlier), "earlier": []}]
    return PruningRecord(
        base_model=earlier.base_model if earlier else public_name(model.config._name_or_path or ""),
        model_class=base_class(type(model)).__name__,
        config=asked,
        rounds=list(rounds),
        plan_digest=small.pruning_plan.digest,
        sizes={
            "dense": asdict(dense_size(model, before)),
            "pruned": asdict(measure_size(small, sequence_length=before.sequence_length)),
        },
        earlier=history,
    )


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def public_name(name_or_path: str) -> str:
    """The name to publish for a model: a repository as it is, of a local folder only its last part.

    >>> public_name("google-bert/bert-base-uncased")
    'google-bert/bert-base-uncased'
    """
    path = Path(name_or_path or "model")
    return path.resolve().name if path.is_absolute() or path.exists() else name_or_path
