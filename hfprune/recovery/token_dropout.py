"""Token dropout: texts with some of their tokens replaced by others of the batch."""

from collections.abc import Collection

import torch
from torch import Tensor


def swap_tokens(ids: Tensor, share: float, *, keep: Collection[int]) -> Tensor:
    """Replace some tokens at random by others of the same batch.

    - What: every text draws its own probability, evenly from share ± min(share, 1 − share), so some texts stay nearly
      whole and some become nearly noise. With this probability each of its tokens, special ones apart, is replaced by
      one that is drawn from all tokens of the batch, so by a frequent one more often.
    - Inputs: `(N, tokens)` token ids.
    - Requirements: none; the random generator of the ids' device is used.
    - Reference: token dropout (Dai & Le 2015, "Semi-supervised Sequence Learning") with words instead of gaps, as in
      Wang et al. 2018, "SwitchOut".

    Args:
        ids: Token ids.
        share: The share of the tokens to replace, on average, in [0, 1).
        keep: Ids that are never replaced or drawn: padding and other special tokens (`tokenizer.all_special_ids`).

    Returns:
        New ids of the same shape.

    Examples:
        >>> ids = torch.tensor([[0, 7, 7, 7]])
        >>> swap_tokens(ids, 0.5, keep=[0])
        tensor([[0, 7, 7, 7]])
    """
    special = torch.tensor(sorted(keep), dtype=ids.dtype, device=ids.device)
    replaceable = ~torch.isin(ids, special)
    pool = ids[replaceable]
    if len(pool) == 0:
        return ids
    spread = min(share, 1 - share)
    # one probability a text, in share ± spread
    probability = share + spread * (2 * torch.rand(len(ids), 1, dtype=torch.float32, device=ids.device) - 1)
    swapped = (torch.rand(ids.shape, dtype=torch.float32, device=ids.device) < probability) & replaceable
    drawn = pool[torch.randint(len(pool), ids.shape, dtype=torch.long, device=ids.device)]
    return torch.where(swapped, drawn, ids)
