"""The reports of commands about checkpoints, and the plans in them."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from hfprune.data.packages import resolve_model
from hfprune.deployment.loading import load_model
from hfprune.errors import CheckpointError
from hfprune.measuring.size import Size, measure_size
from hfprune.planning.plan import PruningPlan
from hfprune.publishing.contents import PLAN_FILE
from hfprune.structure.anatomy import Anatomy, anatomy_of
from hfprune.structure.blocks import Block


def inspected(model: str, *, sequence_length: int, as_json: bool, revision: str | None) -> str:
    """The blocks of a model and what they cost.

    Args:
        model: Folder or repository.
        sequence_length: Tokens in a sequence.
        as_json: For machines.
        revision: Of a repository.

    Returns:
        The text to print.
    """
    anatomy = anatomy_of(load_model(model, revision=revision))
    size = measure_size(anatomy, sequence_length=sequence_length)
    if as_json:
        return json.dumps(_description(anatomy, size), indent=1)
    return "\n".join(_report(anatomy, size))


def _description(anatomy: Anatomy, size: Size) -> dict[str, Any]:
    """The report of `inspect` for machines, as plain values."""
    plan = _attached_plan(anatomy)
    table = []
    for block in anatomy.blocks:
        table.append(
            {
                "name": block.name,
                "kind": block.kind,
                "units": block.units,
                "dense_units": anatomy.dense_units[block.name],
                "unit_params": block.unit_params,
                "unit_macs": block.unit_macs(size.sequence_length),
            }
        )
    return {
        "class": type(anatomy.model).__name__,
        "support": anatomy.support.by,
        "not_pruned": anatomy.support.entry.note,
        "plan_digest": plan.digest if plan else None,
        "size": asdict(size),
        "blocks": table,
    }


def _report(anatomy: Anatomy, size: Size) -> list[str]:
    """The lines that `inspect` prints: totals, then the plan of a pruned model or the blocks of a dense one."""
    lines = [
        f"{type(anatomy.model).__name__}: {size.params:,} parameters ({size.prunable_params:,} prunable), "
        f"{size.macs:,} MACs for {size.sequence_length} tokens ({size.prunable_macs:,} prunable), "
        f"{size.weight_bytes:,} bytes"
    ]
    support = f"supported by {anatomy.support.by}"
    note = anatomy.support.entry.note
    lines.append(f"{support}; {note}" if note else support)
    plan = _attached_plan(anatomy)
    # the text of a plan lists all blocks, with the units that each has and had
    if plan is not None:
        return [*lines, str(plan)]
    largest = max(block.units * block.unit_params for block in anatomy.blocks)
    for block in anatomy.blocks:
        params = block.units * block.unit_params
        bar = "█" * round(20 * params / largest)
        lines.append(f"{block.name:<36} {block.units:>6} {unit_word(block):<16} {params:>12,} parameters  {bar}")
    return lines


def unit_word(block: Block) -> str:
    """The name of the units of a block in the report, in the plural.

    Args:
        block: The block.

    Returns:
        `neurons`, `heads`, or `key/value groups` where several query heads share a key/value head.
    """
    if block.kind == "ffn":
        return "neurons"
    if block.heads == 1:
        return "heads"
    return "key/value groups"


def _attached_plan(anatomy: Anatomy) -> PruningPlan | None:
    """The plan that a pruned model carries."""
    plan: PruningPlan | None = getattr(anatomy.model, "pruning_plan", None)
    return plan


def plan_of(name: str) -> PruningPlan:
    """The plan in a file, a folder or a repository.

    Args:
        name: Its name.

    Returns:
        The plan.

    Raises:
        CheckpointError: There is none.
    """
    return PruningPlan.from_json(_plan_file(name).read_text(encoding="utf-8"))


def _plan_file(name: str) -> Path:
    """The file of a plan: the file itself, or the one in a folder or repository."""
    # a path counts before a name, so that a folder here is not looked up as a repository
    source = name if Path(name).exists() else resolve_model(name)
    if Path(source).is_file():
        return Path(source)
    # None in place of an error, as ours also says why the file is missing
    plan_file = cached_file(source, PLAN_FILE, _raise_exceptions_for_missing_entries=False)
    if plan_file is None:
        raise CheckpointError(f"{name} has no {PLAN_FILE}: it was not pruned by hfprune.")
    return Path(plan_file)
