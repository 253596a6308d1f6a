"""Texts about a run for people: its command, its headline numbers, and a table of the dense and the pruned model."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from hfprune.planning.plan import PruningPlan
from hfprune.publishing.record import PruningRecord

#: The states of a model that a record may hold metrics of, in the order of the table's columns.
_STAGES = ("dense", "pruned", "recovered")
#: The most characters of a command that a record keeps.
_LONGEST_COMMAND = 10_000

#: One row of the table: a name and a cell for each stage. In rows of sizes and latencies the last cell is the change.
_Row = tuple[str, ...]


def command_line(program: str) -> str:
    """The command that started this process, for a record: quoted for a shell, and without access tokens.

    Args:
        program: How to call the script; it replaces the path in `sys.argv`.

    Returns:
        One line, shortened to 10,000 characters.
    """
    arguments = _without_tokens(sys.argv[1:])
    line = f"{program} {shlex.join(arguments)}".replace("\n", " ").strip()
    if len(line) > _LONGEST_COMMAND:
        return f"{line[:_LONGEST_COMMAND]} ..."
    return line


def _without_tokens(arguments: Sequence[str]) -> list[str]:
    """Leave out every option whose name ends in `token`, and its value: the record will be published.

    >>> _without_tokens(["--hub_token", "hf_1", "--token=hf_2", "--sparsity", "0.5"])
    ['--sparsity', '0.5']
    """
    public = []
    is_token = False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        names_token = name.startswith("--") and name.endswith("token")
        if not names_token and not is_token:
            public.append(argument)
        # in `--token=hf_1` the token is part of the option, in `--token hf_1` it is the next argument
        is_token = names_token and not equals
    return public


def headline(record: PruningRecord, plan: PruningPlan) -> dict[str, float]:
    """The few numbers that sum up a run: its first metric at every stage, both sparsities, and the speed-up.

    Args:
        record: A record with metrics, and with latencies if they were measured.
        plan: The plan of the pruned model.

    Returns:
        Such as `dense_accuracy`, `pruned_accuracy`, `recovered_accuracy`, `mac_sparsity`, `param_sparsity`, `speedup`.
    """
    metric = next(iter(record.metrics["pruned" if "pruned" in record.metrics else "recovered"]))
    numbers = {f"{stage}_{metric}": values[metric] for stage, values in record.metrics.items()}
    numbers["mac_sparsity"] = plan.sparsity("macs")
    numbers["param_sparsity"] = plan.sparsity("params")
    if record.latencies:
        numbers["speedup"] = record.latencies["dense"]["median_ms"] / record.latencies["pruned"]["median_ms"]
    return numbers


def comparison_table(record: PruningRecord, checkpoint_bytes: Mapping[str, int] | None = None) -> str:
    """Compare the dense, the pruned and the recovered model in one table of plain text.

    Args:
        record: A record with sizes, and with metrics and latencies where they were measured.
        checkpoint_bytes: Bytes on disk under `dense` and `pruned`. None, or 0 under `dense`: they are not known.

    Returns:
        The table.

    Examples:
        >>> base = {"sequence_length": 128, "params": 110, "prunable_params": 85, "macs": 2000, "prunable_macs": 1900}
        >>> small = {"sequence_length": 128, "params": 70, "prunable_params": 45, "macs": 1050, "prunable_macs": 950}
        >>> record = PruningRecord(
        ...     base_model="bert-base-uncased",
        ...     model_class="BertForSequenceClassification",
        ...     config={},
        ...     plan_digest="",
        ...     metrics={"dense": {"accuracy": 0.93}, "pruned": {"accuracy": 0.86}, "recovered": {"accuracy": 0.92}},
        ...     sizes={"dense": base, "pruned": small},
        ... )
        >>> print(comparison_table(record))
                            dense  pruned  recovered
        accuracy           0.9300  0.8600     0.9200
        parameters            110      70     −36.4%
          prunable             85      45     −47.1%
        MACs (128 tokens)   2,000   1,050     −47.5%
          prunable          1,900     950     −50.0%
    """
    # without a recovery the last column has changes only
    last = "recovered" if record.metrics.get("recovered") else ""
    rows = [("", "dense", "pruned", last), *_metric_rows(record), *_size_rows(record, checkpoint_bytes)]
    note = ""
    dense_latency = record.latencies.get("dense")
    pruned_latency = record.latencies.get("pruned")
    if dense_latency and pruned_latency:
        rows.append(_latency_row(dense_latency, pruned_latency))
        if "predicted_ms" in dense_latency and "predicted_ms" in pruned_latency:
            rows.append(_predicted_row(dense_latency, pruned_latency))
        note = _latency_note(pruned_latency)
    return _aligned(rows) + note


def _metric_rows(record: PruningRecord) -> list[_Row]:
    """A row for each metric of the dense model; a cell is empty where a stage was not measured."""
    rows: list[_Row] = []
    for metric in record.metrics.get("dense", {}):
        cells = []
        for stage in _STAGES:
            value = record.metrics.get(stage, {}).get(metric)
            cells.append("" if value is None else f"{value:.4f}")
        rows.append((metric, *cells))
    return rows


def _size_rows(record: PruningRecord, checkpoint_bytes: Mapping[str, int] | None) -> list[_Row]:
    """Rows of all sizes that are known."""
    dense = record.sizes.get("dense")
    pruned = record.sizes.get("pruned")
    # the record that apply_plan leaves has none
    if not dense or not pruned:
        return []
    rows = []
    if record.vocabulary:
        rows.append(_size_row("tokens", record.vocabulary["before"], record.vocabulary["after"]))
    rows.append(_size_row("parameters", dense["params"], pruned["params"]))
    rows.append(_size_row("  prunable", dense["prunable_params"], pruned["prunable_params"]))
    rows.append(_size_row(f"MACs ({pruned['sequence_length']} tokens)", dense["macs"], pruned["macs"]))
    rows.append(_size_row("  prunable", dense["prunable_macs"], pruned["prunable_macs"]))
    if checkpoint_bytes and checkpoint_bytes["dense"]:
        rows.append(_size_row("bytes on disk", checkpoint_bytes["dense"], checkpoint_bytes["pruned"]))
    return rows


def _size_row(name: str, before: float, after: float) -> _Row:
    """A size before and after pruning, and by how much it shrank."""
    return name, f"{before:,.0f}", f"{after:,.0f}", f"−{1 - after / before:.1%}"


def _latency_row(dense: Mapping[str, Any], pruned: Mapping[str, Any]) -> _Row:
    """The median latency of both models, and the speed-up."""
    speedup = dense["median_ms"] / pruned["median_ms"]
    return "latency, ms", f"{dense['median_ms']:.1f}", f"{pruned['median_ms']:.1f}", f"{speedup:.2f}× faster"


def _predicted_row(dense: Mapping[str, Any], pruned: Mapping[str, Any]) -> _Row:
    """What a latency table predicted of both models, and the speed-up by it."""
    speedup = dense["predicted_ms"] / pruned["predicted_ms"]
    return "  predicted", f"{dense['predicted_ms']:.1f}", f"{pruned['predicted_ms']:.1f}", f"{speedup:.2f}× faster"


def _latency_note(latency: Mapping[str, Any]) -> str:
    """A line below the table that says how the latencies were measured."""
    return (
        f"\nlatency: median of {latency['runs']} runs each, in turn ({latency['low_ms']:.1f} to "
        f"{latency['high_ms']:.1f} ms pruned); {latency['device']}, {latency['dtype']}, {latency['threads']} threads, "
        f"batch {latency['batch_size']}, {latency['sequence_length']} tokens"
    )


def _aligned(rows: Sequence[_Row]) -> str:
    """Rows as lines whose columns stand below each other: names to the left, numbers to the right.

    >>> print(_aligned([("a", "1"), ("long", "100")]))
    a       1
    long  100
    """
    columns = zip(*rows, strict=True)
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        for cell, width in zip(row[1:], widths[1:], strict=True):
            cells.append(cell.rjust(width))
        lines.append("  ".join(cells))
    return "\n".join(lines)
