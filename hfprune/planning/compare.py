"""Two plans side by side."""

from typing import Any

from hfprune.errors import PlanMismatchError
from hfprune.planning.plan import PruningPlan


def comparison(a: PruningPlan, b: PruningPlan) -> dict[str, Any]:
    """How two plans for the same dense model differ.

    Args:
        a: A plan.
        b: Another one.

    Returns:
        `blocks`: for each, units `before`, kept by `a`, by `b`, and by `both`; `overlap`: the share of the units that
        either keeps which both keep (Jaccard), over all blocks; and the sparsities and digests of both.

    Raises:
        PlanMismatchError: They are not for the same dense model.
    """
    dense_a, dense_b = ({name: block.units for name, block in plan.blocks.items()} for plan in (a, b))
    if dense_a != dense_b:
        odd = next(n for n in [*dense_a, *dense_b] if dense_a.get(n) != dense_b.get(n))
        raise PlanMismatchError(
            f"the plans are not for the same dense model: {odd!r} has {dense_a.get(odd, 'no')} units in the first and "
            f"{dense_b.get(odd, 'no')} in the second."
        )
    blocks = {}
    both = either = 0
    for name, units in dense_a.items():
        mine, yours = set(a.blocks[name].kept), set(b.blocks[name].kept)
        blocks[name] = {"before": units, "a": len(mine), "b": len(yours), "both": len(mine & yours)}
        both, either = both + len(mine & yours), either + len(mine | yours)
    return {
        "blocks": blocks,
        "overlap": both / either if either else 1.0,
        "mac_sparsity": {"a": a.sparsity("macs"), "b": b.sparsity("macs")},
        "param_sparsity": {"a": a.sparsity("params"), "b": b.sparsity("params")},
        "digest": {"a": a.digest, "b": b.digest},
    }


def compare(a: PruningPlan, b: PruningPlan) -> str:
    """The comparison as a table of plain text.

    Args:
        a: A plan.
        b: Another one.

    Returns:
        A line a block, and one for the whole.

    Raises:
        PlanMismatchError: They are not for the same dense model.
    """
    found = comparison(a, b)
    width = max(len(name) for name in found["blocks"])
    lines = [f"{'':<{width}}  {'of':>6} {'A':>6} {'B':>6} {'both':>6}"]
    for name, counts in found["blocks"].items():
        cells = " ".join(f"{counts[key]:>6}" for key in ("before", "a", "b", "both"))
        lines.append(f"{name:<{width}}  {cells}" + ("" if a.blocks[name].kept == b.blocks[name].kept else "  differs"))
    macs, params = found["mac_sparsity"], found["param_sparsity"]
    lines.append(
        f"of the units that either keeps, both keep {found['overlap']:.1%}; removed of prunable MACs {macs['a']:.1%} "
        f"and {macs['b']:.1%}, of prunable parameters {params['a']:.1%} and {params['b']:.1%}"
        + ("; the plans are the same" if a.digest == b.digest else "")
    )
    return "\n".join(lines)
