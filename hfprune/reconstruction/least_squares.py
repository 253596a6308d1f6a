"""The linear algebra of reconstruction: sums over tokens, and the ridge regression of a change to the weights."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

logger = logging.getLogger(__name__)
#: How often a ridge that is too small is multiplied by ten.
_ATTEMPTS = 12


class Gram(NamedTuple):
    """Sums over tokens that a ridge regression needs, all float64.

    x is the input of a consumer, followed by a 1 if the consumer has a bias. e is the target in the dense model, minus
    the present value of the same in the pruned model.

    Attributes:
        xx: Σ x xᵀ, `(inputs, inputs)`.
        ex: Σ e xᵀ, `(outputs, inputs)`.
        ee: Σ ‖e‖², a scalar.
        tokens: The number of tokens, a scalar.
    """

    xx: Tensor
    ex: Tensor
    ee: Tensor
    tokens: Tensor

    @classmethod
    def zeros(cls, inputs: int, outputs: int, device: torch.device) -> "Gram":
        """The sums over no tokens."""
        # Apple's GPUs have no float64
        if device.type == "mps":
            device = torch.device("cpu")

        def empty_sum(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        return cls(xx=empty_sum(inputs, inputs), ex=empty_sum(outputs, inputs), ee=empty_sum(), tokens=empty_sum())

    def add(self, x: Tensor, e: Tensor) -> None:
        """Add some tokens, in place: `(tokens, inputs)` and `(tokens, outputs)`, both float32."""
        self.xx.add_((x.T @ x).to(self.xx.device))
        self.ex.add_((e.T @ x).to(self.ex.device))
        self.ee.add_(e.square().sum().to(self.ee.device))
        self.tokens.add_(len(x))

    def merge(self, other: "Gram") -> None:
        """Add the tokens of other sums, in place."""
        for total, addend in zip(self, other, strict=True):
            total.add_(addend)

    def error(self, change: Tensor | None = None) -> float:
        """The mean over tokens of ‖e − ΔW x‖².

        Args:
            change: ΔW, `(outputs, inputs)` float64. None: no change.

        Returns:
            The mean squared distance.
        """
        total = self.ee
        if change is not None:
            # ‖e − ΔW x‖² = ‖e‖² − 2 eᵀΔW x + xᵀΔWᵀΔW x, summed over tokens
            total = total - 2 * torch.sum(change * self.ex) + torch.sum((change @ self.xx).mul_(change))
        return float(total.clamp(min=0) / self.tokens.clamp(min=1))


def best_ridge(fit: Gram, held_out: Gram, ridges: Sequence[float], block: str) -> float:
    """Choose the ridge whose solution on some tokens has the smallest error on other tokens.

    Args:
        fit: The sums over the tokens that are solved for.
        held_out: The sums over the other tokens. If there are none, the last ridge is chosen.
        ridges: The ridges to try, as multiples of the mean of the diagonal of XᵀX.
        block: The block's name, for messages.

    Returns:
        One of the ridges.
    """
    if not held_out.tokens > 0:
        return ridges[-1]

    def held_out_error(ridge: float) -> float:
        change, _ = solve(fit, ridge, block)
        return held_out.error(change)

    return min(ridges, key=held_out_error)


def solve(gram: Gram, ridge: float, block: str) -> tuple[Tensor, float]:
    """EᵀX (XᵀX + λI)⁻¹, where λ is a multiple of the mean of the diagonal of XᵀX.

    Args:
        gram: The sums.
        ridge: The multiple.
        block: The block's name, for messages.

    Returns:
        The change, `(outputs, inputs)` float64, and the ridge that was used. If a ridge is too small for the matrix to
        be factored, it is multiplied by ten until it is large enough.

    Raises:
        ArithmeticError: No ridge is large enough.

    Examples:
        >>> gram = Gram.zeros(inputs=2, outputs=1, device=torch.device("cpu"))
        >>> gram.add(torch.eye(2), torch.tensor([[2.0], [4.0]]))
        >>> change, ridge = solve(gram, ridge=1.0, block="layer.0.ffn")
        >>> change.float(), ridge
        (tensor([[1., 2.]]), 1.0)
    """
    # a block that puts out nothing but zeros has a diagonal of zeros
    mean_diagonal = gram.xx.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
    for _ in range(_ATTEMPTS):
        lifted = gram.xx.clone()
        lifted.diagonal().add_(ridge * mean_diagonal)
        factor, failed = torch.linalg.cholesky_ex(lifted)
        if not failed:
            return torch.cholesky_solve(gram.ex.T, factor).T, ridge
        logger.warning("the ridge %g is too small to solve block %r; trying %g.", ridge, block, 10 * ridge)
        ridge *= 10
    raise ArithmeticError(f"the Gram matrix of block {block!r} cannot be factored; please report this model and data.")
