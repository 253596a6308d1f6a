"""Token dropout: texts with some of their tokens replaced by others of the batch."""

from collections.abc import Collection

import torch
from torch import Tensor


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
