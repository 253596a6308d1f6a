"""Regularisation while recovering: penalties on the weights of units."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfprune.recovery.losses.registry import Penalty, UnitWeights, known_penalties, register_penalty
from hfprune.structure.blocks import Block, unit_slices


def unit_penalties(
    model: PreTrainedModel, blocks: Sequence[Block], penalties: Sequence[Penalty] | None = None
) -> dict[str, Tensor]:
    """How large the units of a model are, each a mean over all its units.

    - What: `unit_l1` Σ|w|, `unit_l2` Σw², and `unit_group_lasso` √p ‖w‖₂ over the p weights w of a unit (its rows of
      the producers and its columns of the consumer).
    - Inputs: a model and its blocks.
    - Requirements: whole weights on one device; not shards (FSDP).
    - Reference: Yuan & Lin 2006, "Model selection and estimation in regression with grouped variables", for the last.
      Example: `unit_penalties(model, find_blocks(model))["unit_group_lasso"]`

    Args:
        model: The model.
        blocks: Its blocks.
        penalties: Those that are wanted; None: all that are registered.

    Returns:
        A scalar for each, by name.
    """
    if penalties is None:
        penalties = list(known_penalties().values())
    units = 0
    sums_of_blocks: dict[str, list[Tensor]] = defaultdict(list)
    for block in blocks:
        units += block.units
        # read once for all penalties
        weights = UnitWeights(slices=unit_slices(model, block))
        for penalty in penalties:
            sums_of_blocks[penalty.name].append(penalty.function(weights))
    return {name: torch.stack(sums).sum() / units for name, sums in sums_of_blocks.items()}


@register_penalty("unit_l1", weight_field="unit_l1")
def unit_l1(weights: UnitWeights) -> Tensor:
    """The sum of the absolute weights, Σ|w|."""
    by_slice = [part.abs().sum() for part in weights.slices]
    return torch.stack(by_slice).sum()


@register_penalty("unit_l2", weight_field="unit_l2")
def unit_l2(weights: UnitWeights) -> Tensor:
    """The sum of the squared weights, Σw².

    Args:
        weights: The weights of the units of a model.

    Returns:
        A scalar.

    Examples:
        >>> import torch
        >>> from hfprune.recovery.losses import UnitWeights
        >>> from hfprune.recovery.losses.penalties import unit_l2
        >>> unit_l2(UnitWeights(slices=[torch.tensor([[3.0, 4.0]])]))
        tensor(25.)
    """
    return weights.squares.sum()


@register_penalty("unit_group_lasso", weight_field="unit_group_lasso")
def unit_group_lasso(weights: UnitWeights) -> Tensor:
    """The sum over units u of the L2 norms of their p weights, Σ_u √p ‖w_u‖₂.

    Args:
        weights: The weights of the units of a model.

    Returns:
        A scalar.

    Examples:
        >>> import torch
        >>> from hfprune.recovery.losses import UnitWeights
        >>> from hfprune.recovery.losses.penalties import unit_group_lasso
        >>> round(float(unit_group_lasso(UnitWeights(slices=[torch.tensor([[3.0, 4.0]])]))), 4)
        7.0711
    """
    # the square root has no gradient at 0, where a unit is gone already
    norm = weights.squares.clamp(min=1e-24).sqrt().sum()
    root: float = weights.weights_per_unit**0.5
    return root * norm
