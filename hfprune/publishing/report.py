"""Tables for people: dense, pruned and recovered side by side."""

import shlex
import sys
from collections.abc import Mapping

from hfprune.planning.plan import PruningPlan
from hfprune.publishing.record import PruningRecord

#: Characters of a command that a record keeps.
_LONGEST = 10_000


def command_line(program: str) -> str:
    """The command of this process, for a record: quoted for a shell, and without tokens.

    Args:
        program: What stands for the script's path.

    Returns:
        One line.
    """
    kept, skip = [], False
    for argument in sys.argv[1:]:
        name, equals, _ = argument.partition("=")
        secret = name.startswith("--") and name.endswith("token")
        if not skip and not secret:
            kept.append(argument)
        skip = secret and not equals
    line = " ".join(f"{program} {shlex.join(kept)}".split("\n")).strip()
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} ..."


def headline(record: PruningRecord, plan: PruningPlan) -> dict[str, float]:
    """The few numbers of a run: its first metric at every stage, sparsities, and the speed-up.

    Args:
        record: A record with metrics and latencies.
        plan: The plan.

    Returns:
        Such as `dense_accuracy`, `pruned_accuracy`, `recovered_accuracy`, `mac_sparsity`, `param_sparsity`, `speedup`.
    """
    metric = next(iter(record.metrics["dense"]))
    numbers = {f"{stage}_{metric}": values[metric] for stage, values in record.metrics.items()}
    slow, fast = (record.latencies[stage]["median_ms"] for stage in ("dense", "pruned"))
    sparsities = {"mac_sparsity": plan.sparsity("macs"), "param_sparsity": plan.sparsity("params")}
    return {**numbers, **sparsities, "speedup": slow / fast}


def comparison_table(record: PruningRecord, checkpoint_bytes: Mapping[str, int] | None = None) -> str:
    """Dense, pruned and recovered in one table of plain text.

    Args:
        record: A record with sizes, and with metrics and latencies where they were measured.
        checkpoint_bytes: Bytes on disk under `dense` and `pruned`, if they are known (0: the dense one is not here).

    Returns:
        The table.
    """
    dense, pruned = record.sizes["dense"], record.sizes["pruned"]
    length = pruned["sequence_length"]
    stages = ("dense", "pruned", "recovered")
    rows: list[tuple[str, ...]] = [("", *stages)]
    for metric in record.metrics.get("dense", {}):
        values = [record.metrics.get(stage, {}).get(metric) for stage in stages]
        rows.append((metric, *("" if value is None else f"{value:.4f}" for value in values)))

    def size(name: str, before: float, after: float) -> None:
        rows.append((name, f"{before:,.0f}", f"{after:,.0f}", f"−{1 - after / before:.1%}"))

    if record.vocabulary:
        size("tokens", record.vocabulary["before"], record.vocabulary["after"])
    size("parameters", dense["params"], pruned["params"])
    size("  prunable", dense["prunable_params"], pruned["prunable_params"])
    size(f"MACs ({length} tokens)", dense["macs"], pruned["macs"])
    size("  prunable", dense["prunable_macs"], pruned["prunable_macs"])
    if checkpoint_bytes and checkpoint_bytes["dense"]:
        size("bytes on disk", checkpoint_bytes["dense"], checkpoint_bytes["pruned"])
    slow, fast = record.latencies.get("dense"), record.latencies.get("pruned")
    note = ""
    if slow and fast:
        ratio = f"{slow['median_ms'] / fast['median_ms']:.2f}× faster"
        rows.append(("latency, ms", f"{slow['median_ms']:.1f}", f"{fast['median_ms']:.1f}", ratio))
        note = (
            f"\nlatency: median of {fast['runs']} runs each, in turn ({fast['low_ms']:.1f} to {fast['high_ms']:.1f} ms "
            f"pruned); {fast['device']}, {fast['dtype']}, {fast['threads']} threads, batch {fast['batch_size']}, "
            f"{fast['sequence_length']} tokens"
        )
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return "\n".join(lines) + note
