"""The blocks of a pruned model beside those of its dense model."""

from collections.abc import Sequence

from hfprune.errors import PlanMismatchError
from hfprune.structure.anatomy import Anatomy
from hfprune.structure.blocks import Block, check_in_one_place

#: A block of the pruned model, and the same block of the dense model.
Pair = tuple[Block, Block]


def matching(pruned: Anatomy, dense: Anatomy) -> list[Pair]:
    """The blocks of both models, side by side."""
    check_in_one_place(pruned.model)
    check_in_one_place(dense.model)
    originals = {block.name: block for block in dense.blocks}
    pairs = []
    for block in pruned.blocks:
        original = originals.get(block.name)
        if original is None or original.units < block.units or original.width != block.width:
            in_dense = "none" if original is None else f"{original.units} of width {original.width}"
            raise PlanMismatchError(
                f"block {block.name!r} has {block.units} units of width {block.width} in the pruned model, and "
                f"{in_dense} in the dense one. Pass the model that the pruned one was cut from."
            )
        pairs.append((block, original))
    return pairs


def by_stack(pairs: Sequence[Pair]) -> list[dict[str, list[Pair]]]:
    """For every stack of layers, its pairs of blocks by path of the layer, in order."""
    stacks: dict[str, dict[str, list[Pair]]] = {}
    for block, original in pairs:
        path_of_stack = block.layer.rpartition(".")[0]
        stack = stacks.setdefault(path_of_stack, {})
        stack.setdefault(block.layer, []).append((block, original))
    return list(stacks.values())
