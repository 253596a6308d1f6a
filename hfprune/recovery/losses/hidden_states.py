"""The loss that compares hidden states."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hfprune.recovery.losses.registry import OVER_DECODER_TOKENS, OVER_TOKENS, LossInputs, Term, register_loss
from hfprune.structure.batches import fitting_mask

#: Where the outputs of a model have hidden states, and the mask of the tokens that these are of.
_HIDDEN_STATES = {
    "hidden_states": OVER_TOKENS,
    "encoder_hidden_states": OVER_TOKENS,
    "decoder_hidden_states": OVER_DECODER_TOKENS,
}


def hidden_states_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], *, mask: Tensor | None = None) -> Tensor:
    """Mean squared error between hidden states, averaged over layers, non-padding tokens and features.

    - What: mean over layers of MSE(student, teacher); pruning leaves the residual stream's width alone, so layers match
      one to one and no projection has to be learned.
    - Inputs: `(N, tokens, hidden)` for each layer.
    - Requirements: the same number of layers and the same hidden size.
    - Reference: Jiao et al. 2020, "TinyBERT: Distilling BERT for Natural Language Understanding".
      Of transformers: `hidden_states_loss(small.hidden_states[1:], dense.hidden_states[1:], mask=attention_mask)`.

    Args:
        student: Hidden states of the student.
        teacher: Hidden states of the teacher.
        mask: `(N, tokens)`; 0 for padding.

    Returns:
        A scalar.

    Raises:
        ValueError: The numbers of layers or the shapes differ.

    Examples:
        >>> ones = torch.ones(1, 2, 4)
        >>> zeros = torch.zeros(1, 2, 4)
        >>> hidden_states_loss([ones, ones], [ones, zeros])
        tensor(0.5000)
    """
    return mean_square(student, teacher, mask, "hidden_states")


@register_loss("hidden_states", weight_field="hidden_states_weight", needs=["teacher", "hidden_states"])
def compare_hidden_states(inputs: LossInputs) -> list[Term]:
    """One term for the layers of an encoder, and one for those of a decoder."""
    terms = []
    for name, mask_name in _HIDDEN_STATES.items():
        student = inputs.outputs.get(name)
        if student is None:
            continue
        mask = fitting_mask(inputs.batch, mask_name, student[-1])
        # the first entry is what the embeddings give, which pruning does not touch
        value = hidden_states_loss(student[1:], inputs.teacher_outputs[name][1:], mask=mask)
        terms.append(Term(value, mean_over=mask_name))
    if not terms:
        raise ValueError(f"{type(inputs.student).__name__} returns no hidden states: set hidden_states_weight=0.")
    return terms


def mean_square(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor | None, what: str) -> Tensor:
    """The mean over pairs of tensors of their mean squared difference.

    Args:
        student: Tensors of the student, `(N, tokens, features)` each.
        teacher: Tensors of the teacher, of the same shapes.
        mask: `(N, tokens)`; 0 for padding.
        what: What they are, as the name of their weight says, for the message.

    Returns:
        A scalar.

    Raises:
        ValueError: The numbers of tensors or their shapes differ.
    """
    student_shapes = _shapes(student)
    teacher_shapes = _shapes(teacher)
    if student_shapes != teacher_shapes or not student_shapes:
        raise ValueError(
            f"{what.replace('_', ' ')} do not match: the student has {len(student)} layers of {student_shapes[:1]}, "
            f"the teacher {len(teacher)} of {teacher_shapes[:1]}. Set {what}_weight=0, or use the dense model that was "
            "pruned."
        )
    errors = []
    for mine, theirs in zip(student, teacher, strict=True):
        if mask is not None:
            mine = mine[mask.bool()]
            theirs = theirs[mask.bool()]
        errors.append(F.mse_loss(mine.float(), theirs.float()))
    return torch.stack(errors).mean()


def _shapes(tensors: Sequence[Tensor]) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in tensors]
