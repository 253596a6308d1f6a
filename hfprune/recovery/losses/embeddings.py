"""How far the embeddings of texts are from a teacher's, and how far the similarities between them are."""

import torch
import torch.nn.functional as F
from torch import Tensor


def embeddings_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The squared distance between embeddings, relative to the squared length of the teacher's.

    - What: Σ‖s − t‖² / Σ‖t‖² over the texts of a batch; of embeddings of length 1 it is 2 · (1 − cosine).
    - Inputs: `(N, features)` embeddings of both models.
    - Requirements: the same number of features.
    - Reference: Reimers & Gurevych 2020, "Making Monolingual Sentence Embeddings Multilingual using Knowledge
      Distillation", with the dense model as the teacher.

    Args:
        student: Embeddings of the student.
        teacher: Embeddings of the teacher.

    Returns:
        A scalar.

    Raises:
        ValueError: The shapes differ.

    Examples:
        >>> embeddings_loss(torch.tensor([[0.6, 0.8]]), torch.tensor([[1.0, 0.0]]))
        tensor(0.8000)
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"student embeddings are {tuple(student.shape)}, teacher embeddings {tuple(teacher.shape)}: the teacher "
            "must make as many numbers of a text. Pass the dense model that was pruned as teacher."
        )
    return _relative_error(student.float(), teacher.float())


def similarities_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The squared difference between the cosine similarities of the texts of a batch, relative to the teacher's.

    - What: Σ(cos sᵢsⱼ − cos tᵢtⱼ)² / Σ(cos tᵢtⱼ)² over all pairs i ≠ j of a batch.
    - Inputs: `(N, features)` embeddings of both models, of at least two texts.
    - Requirements: none; the numbers of features may differ.
    - Reference: Tung & Mori 2019, "Similarity-Preserving Knowledge Distillation".

    Args:
        student: Embeddings of the student.
        teacher: Embeddings of the teacher.

    Returns:
        A scalar; 0 of a single text.

    Examples:
        >>> similarities_loss(torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([[1.0, 0.0], [0.8, 0.6]]))
        tensor(0.0625)
    """
    pairs = ~torch.eye(len(student), dtype=torch.bool, device=student.device)
    return _relative_error(_similarities(student)[pairs], _similarities(teacher)[pairs])


def _similarities(embeddings: Tensor) -> Tensor:
    """Cosines between all texts, `(N, N)`."""
    directions = F.normalize(embeddings.float(), dim=-1)
    return directions @ directions.T


def _relative_error(mine: Tensor, theirs: Tensor) -> Tensor:
    """Σ(mine − theirs)² / Σ theirs²."""
    scale = theirs.square().sum().clamp(min=torch.finfo(torch.float32).tiny)
    return (mine - theirs).square().sum() / scale
