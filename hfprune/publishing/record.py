"""The record of a pruned model: what was done to it, with what, and what came of it. The card is drawn from it."""

import hashlib
import importlib.metadata
import json
import math
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import HFValidationError
from huggingface_hub.file_download import repo_folder_name
from transformers import PreTrainedModel

from hfprune.measuring.size import Size, dense_size, measure_size
from hfprune.planning.plan import PruningPlan
from hfprune.structure.anatomy import ModelOrAnatomy, anatomy_of
from hfprune.structure.modeling_pruned import base_class

FORMAT_VERSION = 1
_PACKAGES = ("hfprune", "torch", "transformers", "datasets", "accelerate", "evaluate", "huggingface_hub")


@dataclass(frozen=True, kw_only=True)
class PruningRecord:
    """What happened to a model. Frozen: `with_` gives a record that knows more.

    docs/metadata.md has every field of its JSON, which `record.schema.json` in the package describes for machines.

    Attributes:
        base_model: Name of the dense model: a repository, or the name of a folder.
        model_class: Class of the dense model.
        config: The `PruningConfig`, as plain values.
        plan_digest: Digest of the whole plan, in dense numbering.
        base_revision: The commit of the dense model's repository; empty if it did not come from the Hub, or if the
            cache holds several of its commits and transformers (5.23) does not say which.
        blocks: Kind of each block, and its units `before` and `after`.
        calibration: What scores and repair saw: `samples`, `tokens`, and a `digest` of the token ids.
        rounds: For each round: sparsity, digest of the plan so far, and seconds of scoring and surgery.
        vocabulary: What vocabulary pruning left: tokens `before` and `after`, the `params` and multiply-adds a token
            (`token_macs`) that went with the others, and how many `texts` decided; empty if there was none.
        sizes: `measure.Size` as plain values, under `dense` and `pruned`.
        latencies: `measure.Latency` as plain values, under `dense` and `pruned`.
        metrics: Under `dense`, `pruned` and `recovered`, each a mapping from metric to value.
        datasets: Names of the data sets used.
        recovery: Hyper-parameters of the recovery that were set, and its steps and seconds.
        command: How to do it again.
        seconds: Wall-clock time of the whole run; 0 if it is not known.
        files: SHA-256 of the other files, by name; only in a file that `hfprune.save` wrote.
        versions: Of Python and the packages that did it.
        earlier: Records of prunings before this one, if the model was pruned already.
    """

    base_model: str
    model_class: str
    config: dict[str, Any]
    plan_digest: str
    base_revision: str = ""
    blocks: dict[str, dict[str, Any]] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    vocabulary: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, dict[str, Any]] = field(default_factory=dict)
    latencies: dict[str, dict[str, Any]] = field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    datasets: list[str] = field(default_factory=list)
    recovery: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    seconds: float = 0.0
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
        """The record as JSON, with the digest of its content.

        Returns:
            Text.

        Raises:
            ValueError: A field has a value that the schema does not allow.
        """
        data = _plain({"format_version": FORMAT_VERSION, **asdict(self)})
        if not self.vocabulary:  # as records were before there was vocabulary pruning
            del data["vocabulary"]
        _validate(data)
        return json.dumps({**data, "digest": _digest(data)}, indent=1) + "\n"

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
            ValueError: It is not a record, of a newer format, against the schema, or not what was written.
        """
        try:
            data = json.loads(text, parse_constant=_refuse)
            version = data["format_version"]
        except (KeyError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"not a pruning record: {type(error).__name__}: {error}") from error
        if version != FORMAT_VERSION:
            raise ValueError(
                f"the pruning record has format_version {version!r:.50}, this hfprune reads {FORMAT_VERSION}: upgrade "
                "it (pip install -U hfprune)."
            )
        _validate(data)
        said = data.pop("digest", None)
        if said is not None and said != _digest(data):
            raise ValueError(
                f"the pruning record was changed: its digest says {said[:12]}..., its content gives "
                f"{_digest(data)[:12]}... Restore the file, or delete the digest if the change was meant."
            )
        del data["format_version"]
        return cls(**data)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _digest(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """A value as JSON has it: lists for tuples, Python's numbers for NumPy's, null for what is no number."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


@cache
def schema() -> dict[str, Any]:
    """The JSON Schema of pruning_record.json."""
    text = resources.files("hfprune.publishing").joinpath("record.schema.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def _validate(data: Any) -> None:
    """Refuse what the schema does not allow, with the place and what is allowed there."""
    from jsonschema import Draft202012Validator  # takes a tenth of a second
    from jsonschema.exceptions import best_match

    worst = best_match(Draft202012Validator(schema()).iter_errors(data))
    if worst is not None:
        where = "/".join(map(str, worst.absolute_path)) or "the top"
        raise ValueError(f"not a valid pruning record: at {where}: {worst.message:.300}. See docs/metadata.md.")


def record_of(
    model: ModelOrAnatomy,
    before: Size,
    small: ModelOrAnatomy,
    asked: dict[str, Any],
    rounds: Sequence[dict[str, Any]],
    calibration: dict[str, Any] | None = None,
) -> PruningRecord:
    """The record of a pruning that was just done.

    Args:
        model: The model before it, or its anatomy.
        before: What that measured.
        small: The model after it, with its plan, or its anatomy.
        asked: The config, as plain values.
        rounds: What happened in each round.
        calibration: What `scoring.calibration.describe` says of the batches, where there were any.

    Returns:
        A record that knows the records of earlier prunings of the model.
    """
    dense = anatomy_of(model)
    pruned = anatomy_of(small)
    plan: PruningPlan = pruned.model.pruning_plan
    earlier: PruningRecord | None = getattr(dense.model, "pruning_record", None)
    vocabulary = earlier.vocabulary if earlier else {}
    dense_measures = _with_vocabulary(dense_size(dense, before), vocabulary, dense.model.dtype.itemsize)
    pruned_measures = measure_size(pruned, sequence_length=before.sequence_length)
    if earlier is None:
        history: list[dict[str, Any]] = []
        base_model = public_name(dense.model.config._name_or_path or "")
        base_revision = _revision(dense.model)
    else:
        history = [*earlier.earlier, {**asdict(earlier), "earlier": []}]
        base_model = earlier.base_model
        base_revision = earlier.base_revision
    return PruningRecord(
        base_model=base_model,
        base_revision=base_revision,
        model_class=base_class(type(dense.model)).__name__,
        config=asked,
        rounds=list(rounds),
        plan_digest=plan.digest,
        blocks=blocks_of(plan),
        calibration=calibration or {},
        vocabulary=vocabulary,
        sizes={"dense": asdict(dense_measures), "pruned": asdict(pruned_measures)},
        earlier=history,
    )


def _with_vocabulary(size: Size, vocabulary: Mapping[str, Any], itemsize: int) -> Size:
    """A size with what vocabulary pruning removed, as a record has it, put back."""
    params = vocabulary.get("params", 0)
    return replace(
        size,
        params=size.params + params,
        macs=size.macs + vocabulary.get("token_macs", 0) * size.sequence_length,
        weight_bytes=size.weight_bytes + params * itemsize,
    )


def blocks_of(plan: PruningPlan) -> dict[str, dict[str, Any]]:
    """Kind, and units before and after, of each block of a plan."""
    return {
        name: {"kind": block.kind, "before": block.units, "after": len(block.kept)}
        for name, block in plan.blocks.items()
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter."""
    found = {package: _version(package) for package in _PACKAGES}
    return {"python": platform.python_version(), **{name: version for name, version in found.items() if version}}


@cache  # a file is read for each
def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _revision(model: PreTrainedModel) -> str:
    """The commit that a model came from. transformers 5.23 does not say; what is in the cache does, if it is one."""
    name = model.config._name_or_path or ""
    known: str | None = getattr(model.config, "_commit_hash", None)
    if known or not name or Path(name).exists():
        return known or ""
    try:
        repository = Path(HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="model"))
    except HFValidationError:  # a folder that is not there any more
        return ""
    commits = {path.parent.name for path in repository.glob("snapshots/*/config.json")}
    return commits.pop() if len(commits) == 1 else ""


def public_name(name_or_path: str) -> str:
    """The name to publish for a model or data set: a repository as it is, of a file or folder only its last part.

    >>> public_name("google-bert/bert-base-uncased")
    'google-bert/bert-base-uncased'
    >>> public_name("/home/me/my model")
    'my-model'
    >>> public_name("./my_bert")  # also where it is not any more
    'my_bert'
    """
    if not name_or_path:
        return ""
    path = Path(name_or_path)
    local = (
        path.is_absolute()
        or path.exists()
        or not re.fullmatch(r"(?!\.{1,2}/)[\w.-]+(/[\w.-]+)?", name_or_path, re.ASCII)
    )
    return re.sub(r"[^A-Za-z0-9_.-]", "-", path.resolve().name) if local else name_or_path
