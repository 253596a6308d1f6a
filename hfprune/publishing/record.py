"""The record of a pruned model: how it was pruned, on which data, and what was measured. The card is drawn from it."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from hfprune.measuring.size import Size, dense_size, size_of
from hfprune.planning.plan import PruningPlan
from hfprune.publishing.contents import RECORD_FILE
from hfprune.publishing.exports import exports_of_weights, quantization_of_weights
from hfprune.publishing.provenance import public_name, revision_of, versions
from hfprune.showing.tables import Table, data_frame
from hfprune.structure.anatomy import Anatomy
from hfprune.structure.embedder import body_of
from hfprune.structure.json_text import read_json
from hfprune.structure.modeling_pruned import base_class

if TYPE_CHECKING:
    from pandas import DataFrame

#: Grows when a reader of today would misread a record.
FORMAT_VERSION = 1
#: The stages of a model, in order.
_STAGES = ("dense", "pruned", "recovered")
#: The sizes that a summary shows, and their names there.
_SIZES = {
    "params": "parameters",
    "prunable_params": "prunable parameters",
    "macs": "multiply-adds of a sequence",
    "prunable_macs": "prunable multiply-adds of a sequence",
    "weight_bytes": "bytes of weights",
}


@dataclass(frozen=True, kw_only=True)
class PruningRecord:
    """How a model was pruned, and what was measured. It is frozen: `with_` returns a copy with more in it.

    docs/reference/metadata.md explains every field of its JSON; `record.schema.json` in this package is the schema
    for machines.

    Attributes:
        base_model: Name of the dense model: a repository, or the last part of a folder's path.
        model_class: Class of the dense model.
        config: The `PruningConfig`, as plain values.
        plan_digest: Digest of the whole plan, in the numbering of the dense model's units.
        base_revision: The commit of the dense model's repository; empty if it did not come from the Hub, or if the
            cache holds several of its commits and transformers (5.23) does not say which.
        blocks: For each block its `kind`, and its number of units `before` and `after`.
        calibration: The data of scoring and reconstruction: `samples`, `tokens`, and a `digest` of the token ids;
            where samples without any token were left out, their number, `left_out`.
        rounds: For each round: sparsity, digest of the plan so far, and seconds of scoring and surgery.
        vocabulary: How vocabulary pruning changed the model: tokens `before` and `after`, the removed parameters
            (`params`) and multiply-adds a token (`token_macs`), the number of `texts` that were read, and how often a
            token had to occur in them to stay (`min_count`); empty if there was none.
        sizes: `measuring.size.Size` as plain values, under `dense` and `pruned`.
        latencies: `measuring.latency.Latency` as plain values, under `dense` and `pruned`; with `predicted_ms` if the
            model was pruned by a latency table.
        metrics: Under `dense`, `pruned` and `recovered`, each a mapping from metric to value.
        exports: Files for other runtimes that `hfprune.export(..., record=True)` made of the saved weights, and how
            far their outputs are from PyTorch's, by target and quantisation. `to_json` leaves those of other weights
            than in `files` out.
        quantization: How `hfprune.quantize` made the saved weights, and how far the outputs are from those of the model
            before, in the fields of an export; empty if they are not quantised. `to_json` leaves it out if it is of
            other weights than in `files`.
        datasets: Names of the data sets used.
        recovery: The hyper-parameters of recovery that were set, and its steps and seconds.
        command: The command that repeats the run.
        seconds: Wall-clock time of the whole run; 0 if it is not known.
        files: SHA-256 of every other file of the checkpoint, by name; only in a file that `hfprune.save` wrote.
        versions: Versions of Python and of the packages that were used.
        earlier: Records of the prunings before this one, if the model was pruned already.

    Examples:
        >>> import hfprune
        >>> record = hfprune.prune(dense, dataset, config, collator=collator).pruning_record
        >>> record.config["sparsity"], record.calibration["samples"]
        (0.5, 18)
        >>> record = record.with_(metrics={"dense": {"accuracy": 0.93}, "pruned": {"accuracy": 0.91}})
        >>> print(record)  # doctest: +ELLIPSIS
        base model: not known
        class: BertForSequenceClassification
        scorer: residual_logit_fisher
        sparsity asked for: 0.5 of prunable macs
        parameters: ...
        accuracy: 0.9300 dense, 0.9100 pruned
        digest of the plan: ...
        >>> hfprune.PruningRecord.from_json(record.to_json()) == record
        True
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
    exports: dict[str, dict[str, Any]] = field(default_factory=dict)
    quantization: dict[str, Any] = field(default_factory=dict)
    datasets: list[str] = field(default_factory=list)
    recovery: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    seconds: float = 0.0
    files: dict[str, str] = field(default_factory=dict)
    # a lambda, as the function is defined further down
    versions: dict[str, str] = field(default_factory=lambda: versions())
    earlier: list[dict[str, Any]] = field(default_factory=list)

    def with_(self, **changes: Any) -> "PruningRecord":
        """A copy with some fields replaced, and with the entries of dictionaries added to the present ones.

        Args:
            **changes: New values of fields by name.

        Returns:
            The copy; this record stays as it is.

        Examples:
            >>> from hfprune import PruningRecord
            >>> record = PruningRecord(base_model="bert", model_class="BertModel", config={}, plan_digest="")
            >>> record = record.with_(metrics={"dense": {"accuracy": 0.93}}, seconds=60.0)
            >>> record = record.with_(metrics={"pruned": {"accuracy": 0.91}}, seconds=90.0)
            >>> record.metrics, record.seconds
            ({'dense': {'accuracy': 0.93}, 'pruned': {'accuracy': 0.91}}, 90.0)
        """
        fields = dict(changes)
        for name, value in changes.items():
            if isinstance(value, dict):
                fields[name] = {**getattr(self, name), **value}
        return replace(self, **fields)

    def __str__(self) -> str:
        return "\n".join(f"{name}: {fact}" for name, fact in self._facts())

    def _repr_html_(self) -> str:
        return Table(head=("record", ""), rows=self._facts()).html()

    def _facts(self) -> list[tuple[str, str]]:
        """The main facts in words: where the model comes from, and what was measured before and after."""
        facts = [("base model", self.base_model or "not known"), ("class", self.model_class)]
        if self.base_revision:
            facts.append(("revision", self.base_revision))
        if "scorer" in self.config:
            facts.append(("scorer", str(self.config["scorer"])))
        if "sparsity" in self.config and "budget" in self.config:
            facts.append(("sparsity asked for", _asked(self.config["sparsity"], self.config["budget"])))
        dense = self.sizes.get("dense", {})
        pruned = self.sizes.get("pruned", {})
        for size, name in _SIZES.items():
            if size in dense and size in pruned:
                facts.append((name, _change(dense[size], pruned[size])))
        facts += self._metric_facts()
        dense_latency = self.latencies.get("dense")
        pruned_latency = self.latencies.get("pruned")
        if dense_latency and pruned_latency:
            before = dense_latency["median_ms"]
            after = pruned_latency["median_ms"]
            facts.append(("median latency", f"{before:.1f} ms → {after:.1f} ms ({before / after:.2f}× faster)"))
            facts += _predicted_facts(dense_latency, pruned_latency)
        if self.quantization:
            method, package = self.quantization["quantization"], self.quantization["target"]
            facts.append(("weights quantised", f"{method}, by {package}"))
        facts.append(("digest of the plan", self.plan_digest[:12]))
        return facts

    def _metric_facts(self) -> list[tuple[str, str]]:
        """For every metric, its value at every stage that has one."""
        names: dict[str, None] = {}
        for values in self.metrics.values():
            names.update(dict.fromkeys(values))
        facts = []
        for name in names:
            parts = []
            for stage in _STAGES:
                value = self.metrics.get(stage, {}).get(name)
                # the file of a record has null where a metric was NaN or infinite
                if value is not None:
                    parts.append(f"{value:.4f} {stage}")
            if parts:
                facts.append((name, ", ".join(parts)))
        return facts

    def to_pandas(self) -> "DataFrame":
        """The record's measurements as a data frame, with a row for each stage.

        Returns:
            Columns `stage` (`dense`, `pruned` and, if there was recovery, `recovered`), every field of `sizes`, every
            metric, and `latency_ms` (the median), as far as they were measured. A recovered model has the size and
            latency of the pruned one: recovery changes weights only.

        Examples:
            >>> from hfprune import PruningRecord
            >>> record = PruningRecord(base_model="bert", model_class="BertModel", config={}, plan_digest="")
            >>> record = record.with_(
            ...     sizes={"dense": {"params": 400}, "pruned": {"params": 300}},
            ...     metrics={"dense": {"accuracy": 0.93}, "pruned": {"accuracy": 0.91}},
            ... )
            >>> record.to_pandas().values.tolist()
            [['dense', 400, 0.93], ['pruned', 300, 0.91]]
        """
        stages = [stage for stage in _STAGES if stage != "recovered" or self.metrics.get(stage)]
        rows: list[dict[str, Any]] = []
        for stage in stages:
            measured = "dense" if stage == "dense" else "pruned"
            row = {"stage": stage, **self.sizes.get(measured, {}), **self.metrics.get(stage, {})}
            if measured in self.latencies:
                row["latency_ms"] = self.latencies[measured]["median_ms"]
            rows.append(row)
        return data_frame(rows)

    def to_json(self) -> str:
        """The record as JSON, with the digest of its content.

        Returns:
            The content of `pruning_record.json`.

        Raises:
            ValueError: A field has a value that the schema does not allow.
        """
        data = _plain({"format_version": FORMAT_VERSION, **asdict(self)})
        data["exports"] = exports_of_weights(data["exports"], self.files)
        data["quantization"] = quantization_of_weights(data["quantization"], self.files)
        # these fields are younger than the format: records without them keep the text and digest that they had
        for name in ("vocabulary", "exports", "quantization"):
            if not data[name]:
                del data[name]
        _validate(data)
        return json.dumps({**data, "digest": _digest(data)}, indent=1) + "\n"

    @classmethod
    def of_model(cls, text: str) -> "PruningRecord":
        """Read the record of a model in memory, without the digests of its files: the weights may change there."""
        return replace(cls.from_json(text), files={})

    @classmethod
    def from_json(cls, text: str) -> "PruningRecord":
        """Read what `to_json` wrote.

        Args:
            text: The content of `pruning_record.json`.

        Returns:
            The record.

        Raises:
            ValueError: The text is no record, has a newer format, breaks the schema, or was changed by hand.
        """
        try:
            data = read_json(text, parse_constant=_refuse_constant)
            version = data["format_version"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a pruning record: {type(error).__name__}: {error}") from error
        if version != FORMAT_VERSION:
            raise ValueError(
                f"the pruning record has format_version {version!r:.50}, this hfprune reads {FORMAT_VERSION}: upgrade "
                "it (pip install -U hfprune)."
            )
        _validate(data)
        written_digest = data.pop("digest", None)
        digest = _digest(data)
        # no digest: the author edited the record and deleted the digest, as the message below says
        if written_digest is not None and written_digest != digest:
            raise ValueError(
                f"the pruning record was changed: its digest says {written_digest[:12]}..., its content gives "
                f"{digest[:12]}... Restore the file, or delete the digest if the change was meant."
            )
        del data["format_version"]
        return cls(**data)


def record_in(folder: Path) -> PruningRecord:
    """The record in the folder of a checkpoint.

    Args:
        folder: The folder.

    Returns:
        The record.

    Raises:
        OSError: The folder has no record.
        ValueError: The file is no record that this version reads.
    """
    return PruningRecord.from_json((folder / RECORD_FILE).read_text(encoding="utf-8"))


def _predicted_facts(dense: Mapping[str, Any], pruned: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a latency table predicted, if there was one."""
    if "predicted_ms" not in dense or "predicted_ms" not in pruned:
        return []
    before = dense["predicted_ms"]
    after = pruned["predicted_ms"]
    return [("predicted latency", f"{before:.1f} ms → {after:.1f} ms ({before / after:.2f}× faster)")]


def _asked(sparsity: Any, budget: str) -> str:
    """A sparsity in words: a fraction of the cost, or by pattern of block names a fraction of the units.

    >>> _asked(0.5, "macs"), _asked({"*.ffn": 0.25}, "macs")
    ('0.5 of prunable macs', '0.25 of the units of *.ffn')
    """
    if not isinstance(sparsity, Mapping):
        return f"{sparsity} of prunable {budget}"
    return ", ".join(f"{fraction} of the units of {pattern}" for pattern, fraction in sparsity.items())


def _change(before: int, after: int) -> str:
    """A size before and after pruning, and by how much it shrank.

    >>> _change(4000, 3000)
    '4,000 → 3,000 (−25.0%)'
    """
    sizes = f"{before:,} → {after:,}"
    # nothing to take a share of
    if not before:
        return sizes
    return f"{sizes} (−{1 - after / before:.1%})"


def _refuse_constant(constant: str) -> None:
    """Refuse NaN and Infinity, which Python reads though JSON has neither."""
    raise ValueError(f"{constant} is no number of JSON")


def _digest(data: Mapping[str, Any]) -> str:
    """SHA-256 of the fields as JSON, whatever their order and spacing in the file."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    """A value as JSON can hold it: tuples as lists, NumPy's numbers as Python's, NaN and infinity as None.

    >>> _plain({"sizes": (1, 2), "loss": float("nan")})
    {'sizes': [1, 2], 'loss': None}
    """
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@cache
def schema() -> dict[str, Any]:
    """The JSON Schema of pruning_record.json."""
    path = resources.files("hfprune.publishing").joinpath("record.schema.json")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _validate(data: Any) -> None:
    """Refuse data that breaks the schema; the error names the place and what is allowed there."""
    # jsonschema takes a tenth of a second to import
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    violations = Draft202012Validator(schema()).iter_errors(data)
    worst = best_match(violations)
    if worst is not None:
        place = "/".join(map(str, worst.absolute_path)) or "the top"
        raise ValueError(
            f"not a valid pruning record: at {place}: {worst.message:.300}. See docs/reference/metadata.md."
        )


def record_of(
    dense: Anatomy,
    before: Size,
    pruned: Anatomy,
    asked: dict[str, Any],
    rounds: Sequence[dict[str, Any]],
    calibration: dict[str, Any] | None = None,
) -> PruningRecord:
    """Make the record of a pruning right after it.

    Args:
        dense: The anatomy of the model before the pruning. It may have been pruned earlier.
        before: The size of that model.
        pruned: The anatomy of the model after the pruning, which has its plan.
        asked: The config, as plain values.
        rounds: What happened in each round.
        calibration: The description of the batches that `scoring.calibration.describe` gives; None without batches.

    Returns:
        A record that holds the records of the model's earlier prunings too.
    """
    record = origin_of(dense.model, pruned.model.pruning_plan)
    # the dense model is the one before any pruning, by units or of the vocabulary
    dense_measures = _with_vocabulary(dense_size(dense, before), record.vocabulary, dense.model.dtype.itemsize)
    pruned_measures = size_of(pruned, before.sequence_length)
    return replace(
        record,
        config=asked,
        rounds=list(rounds),
        calibration=calibration or {},
        sizes={"dense": asdict(dense_measures), "pruned": asdict(pruned_measures)},
    )


def origin_of(dense: PreTrainedModel, plan: PruningPlan) -> PruningRecord:
    """The record of a pruning as far as it is known without measuring: which model, and what was removed.

    Args:
        dense: The model before the pruning. It may have been pruned earlier.
        plan: The plan of the model after the pruning, in the numbering of the dense model's units.

    Returns:
        A record without config, rounds and sizes, that holds the records of the model's earlier prunings too.
    """
    record = PruningRecord(
        base_model=public_name(dense.config._name_or_path or ""),
        model_class=base_class(type(body_of(dense))).__name__,
        config={},
        plan_digest=plan.digest,
        blocks=blocks_of(plan),
    )
    earlier: PruningRecord | None = getattr(dense, "pruning_record", None)
    if earlier is None:
        return replace(record, base_revision=revision_of(dense))
    return replace(
        record,
        base_model=earlier.base_model,
        base_revision=earlier.base_revision,
        vocabulary=earlier.vocabulary,
        # the history is one flat list: records in it hold none of their own
        earlier=[*earlier.earlier, {**asdict(earlier), "earlier": []}],
    )


def _with_vocabulary(size: Size, vocabulary: Mapping[str, Any], itemsize: int) -> Size:
    """The size of a model with the tokens that vocabulary pruning removed.

    Args:
        size: The size without them.
        vocabulary: The `vocabulary` of a record; empty if nothing was removed.
        itemsize: Bytes of one parameter.

    Returns:
        The size with them.
    """
    params = vocabulary.get("params", 0)
    macs = vocabulary.get("token_macs", 0) * size.sequence_length
    return replace(
        size,
        params=size.params + params,
        macs=size.macs + macs,
        weight_bytes=size.weight_bytes + params * itemsize,
    )


def blocks_of(plan: PruningPlan) -> dict[str, dict[str, Any]]:
    """For each block of a plan its kind, and its number of units before and after."""
    return {
        name: {"kind": block.kind, "before": block.units, "after": len(block.kept)}
        for name, block in plan.blocks.items()
    }
