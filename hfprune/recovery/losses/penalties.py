"""Regularisation while recovering: penalties on units, and token dropout with words of the batch."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfprune.structure.blocks import Block, unit_slices


def unit_penalties(model: PreTrainedModel, blocks: Sequence[Block]) -> dict[str, Tensor]:
    """How large the units of a model are, each a mean over all its units.

    What: `unit_l1` Σ|w|, `unit_l2` Σw², and `unit_group_lasso` √p ‖w‖₂ over the p weights w of a unit (its rows of
    the producers and its columns of the consumer).
    Inputs: a model and its blocks.
    Requirements: whole weights on one device; not shards (FSDP).
    Reference: Yuan & Lin 2006, "Model selection and estimation in regression with grouped variables", for the last.
    Example: `unit_penalties(model, find_blocks(model))["unit_group_lasso"]`

    Args:
        model: The model.
        blocks: Its blocks.

    Returns:
        Three scalars by name.
    """
    sums: dict[str, list[Tensor]] = {"unit_l1": [], "unit_l2": [], "unit_group_lasso": []}
    for block in blocks:
        parts = unit_slices(model, block)
        squares = torch.stack([part.square().sum(1) for part in parts]).sum(0)
        sums["unit_l1"].append(torch.stack([part.abs().sum() for part in parts]).sum())
        sums["unit_l2"].append(squares.sum())
        weights = sum(part.shape[1] for part in parts)
        # the square root has no gradient at 0, where a unit is gone already
        sums["unit_group_lasso"].append(weights**0.5 * squares.clamp(min=1e-24).sqrt().sum())
    units = sum(block.units for block in blocks)
    return {name: torch.stack(values).sum() / units for name, values in sums.items()}
