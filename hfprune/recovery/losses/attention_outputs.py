"""The loss that compares what attention blocks put out."""

from collections.abc import Sequence

from torch import Tensor

from hfprune.recovery.losses.hidden_states import mean_square


def attention_outputs_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], *, mask: Tensor | None = None
) -> Tensor:
    """Mean squared error between what attention blocks put out, averaged over blocks, non-padding tokens and features.

    What: mean over blocks of MSE(student, teacher), at the output of the output projection, before the residual sum:
    the heads that stay are pushed to say what all heads said.
    Inputs: `(N, tokens, hidden)` for each attention block that has heads left.
    Requirements: the same blocks and the same hidden size.
    Reference: Wang et al. 2020, "MiniLM", distils attention itself; its output has the same shape with fewer heads.
    Example: `attention_outputs_loss(small_outputs, dense_outputs, mask=attention_mask)`

    Args:
        student: Outputs of the student's attention blocks.
        teacher: Outputs of the teacher's.
        mask: `(N, tokens)`; 0 for padding.

    Returns:
        A scalar.

    Raises:
        ValueError: The numbers of blocks or the shapes differ.
    """
    return mean_square(student, teacher, mask, "attention_outputs")
