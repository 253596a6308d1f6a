"""The loss that compares what attention blocks put out."""

from collections.abc import Sequence

from torch import Tensor

from hfprune.recovery.losses.hidden_states import mean_square
from hfprune.recovery.losses.registry import LossInputs, Term, register_loss
from hfprune.structure.batches import fitting_mask, token_mask


def attention_outputs_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], *, mask: Tensor | None = None
) -> Tensor:
    """Mean squared error between what attention blocks put out, averaged over blocks, non-padding tokens and features.

    - What: mean over blocks of MSE(student, teacher), at the output of the output projection, before the residual sum:
      the heads that stay are pushed to say what all heads said.
    - Inputs: `(N, tokens, hidden)` for each attention block that has heads left.
    - Requirements: the same blocks and the same hidden size.
    - Reference: Wang et al. 2020, "MiniLM", distils attention itself; its output has the same shape with fewer heads.
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


@register_loss("attention_outputs", weight_field="attention_outputs_weight", needs=["teacher", "attention_outputs"])
def compare_attention_outputs(inputs: LossInputs) -> list[Term]:
    """One term for every attention block that has units left."""
    terms = []
    for path, mask_name in inputs.attention_masks.items():
        student = inputs.attention_outputs[path]
        teacher = inputs.teacher_attention_outputs[path]
        mask = token_mask(inputs.batch, mask_name)
        # some models flatten samples and tokens before the projection; the mask tells padding by both
        if mask is not None and student.ndim == 2 and len(student) == mask.numel():
            student = student.reshape(*mask.shape, -1)
            teacher = teacher.reshape(*mask.shape, -1)
        fitting = fitting_mask(inputs.batch, mask_name, student)
        terms.append(Term(attention_outputs_loss([student], [teacher], mask=fitting), mean_over=mask_name))
    return terms
