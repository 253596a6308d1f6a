"""Regularisation while recovering: penalties on units, and token dropout with words of the batch."""

from collections.abc import Collection, Sequence

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


def swap_tokens(ids: Tensor, share: float, *, keep: Collection[int]) -> Tensor:
    """Replace some tokens at random by others of the same batch.

    What: every text draws its own probability, evenly from share ± min(share, 1 − share), so there are texts that are
    nearly whole and some that are nearly noise; with it every token, special ones apart, is replaced by a token drawn
    from all that the batch has, so by frequent ones more often.
    Inputs: `(N, tokens)` token ids.
    Requirements: none; the random generator of the ids' device is used.
    Reference: token dropout (Dai & Le 2015, "Semi-supervised Sequence Learning") with words instead of gaps, as in
    Wang et al. 2018, "SwitchOut".
    Example: `swap_tokens(ids, 0.15, keep=tokenizer.all_special_ids)`

    Args:
        ids: Token ids.
        share: Of the tokens to replace, on average, in [0, 1).
        keep: Ids that are left: padding and other special tokens.

    Returns:
        New ids of the same shape.
    """
    replaceable = ~torch.isin(ids, torch.tensor(sorted(keep), dtype=ids.dtype, device=ids.device))
    pool = ids[replaceable]
    if len(pool) == 0:
        return ids
    each = share + min(share, 1 - share) * (2 * torch.rand(len(ids), 1, device=ids.device) - 1)
    chosen = (torch.rand(ids.shape, device=ids.device) < each) & replaceable
    return torch.where(chosen, pool[torch.randint(len(pool), ids.shape, device=ids.device)], ids)
