"""Two plans for the same model, side by side."""

from typing import Any

from hfprune.errors import PlanMismatchError
from hfprune.planning.plan import PruningPlan


def comparison(a: PruningPlan, b: PruningPlan) -> dict[str, Any]:
    """How two plans for the same dense model differ.

    Args:
        a: A plan.
        b: Another plan.

    Returns:
        `blocks`: for each block, the units `before`, the units that `a` keeps, that `b` keeps, and that `both` keep.
        `overlap`: of the units that at least one plan keeps, the share that both keep (Jaccard), over all blocks.
        `mac_sparsity`, `param_sparsity` and `digest` of both plans.

    Raises:
        PlanMismatchError: The plans are not for the same dense model.
    """
    _check_same_model(a.units_before, b.units_before)
    blocks = {}
    kept_by_both = 0
    kept_by_either = 0
    for name, units_before in a.units_before.items():
        kept_by_a = set(a.blocks[name].kept)
        kept_by_b = set(b.blocks[name].kept)
        in_both = len(kept_by_a & kept_by_b)
        kept_by_both += in_both
        kept_by_either += len(kept_by_a | kept_by_b)
        blocks[name] = {"before": units_before, "a": len(kept_by_a), "b": len(kept_by_b), "both": in_both}
    return {
        "blocks": blocks,
        # two plans that keep nothing are the same
        "overlap": kept_by_both / kept_by_either if kept_by_either else 1.0,
        "mac_sparsity": {"a": a.sparsity("macs"), "b": b.sparsity("macs")},
        "param_sparsity": {"a": a.sparsity("params"), "b": b.sparsity("params")},
        "digest": {"a": a.digest, "b": b.digest},
    }


def _check_same_model(units_of_a: dict[str, int], units_of_b: dict[str, int]) -> None:
    """Refuse plans of models with other blocks, or with blocks of other sizes."""
    for name in [*units_of_a, *units_of_b]:
        first = units_of_a.get(name, "no")
        second = units_of_b.get(name, "no")
        if first != second:
            raise PlanMismatchError(
                f"the plans are not for the same dense model: {name!r} has {first} units in the first and "
                f"{second} in the second."
            )


def compare(a: PruningPlan, b: PruningPlan) -> str:
    """Compare two plans in a table of plain text.

    Args:
        a: A plan.
        b: Another plan.

    Returns:
        One line for each block, and one for the whole model.

    Raises:
        PlanMismatchError: The plans are not for the same dense model.
    """
    about = comparison(a, b)
    width = max(len(name) for name in about["blocks"])
    lines = [f"{'':<{width}}  {'of':>6} {'A':>6} {'B':>6} {'both':>6}"]
    for name, counts in about["blocks"].items():
        line = f"{name:<{width}}  {counts['before']:>6} {counts['a']:>6} {counts['b']:>6} {counts['both']:>6}"
        # equal counts may be counts of different units
        if a.blocks[name].kept != b.blocks[name].kept:
            line += "  differs"
        lines.append(line)
    macs = about["mac_sparsity"]
    params = about["param_sparsity"]
    summary = (
        f"of the units that either keeps, both keep {about['overlap']:.1%}; removed of prunable MACs {macs['a']:.1%} "
        f"and {macs['b']:.1%}, of prunable parameters {params['a']:.1%} and {params['b']:.1%}"
    )
    if a.digest == b.digest:
        summary += "; the plans are the same"
    lines.append(summary)
    return "\n".join(lines)
