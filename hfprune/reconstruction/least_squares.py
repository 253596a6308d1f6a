"""The linear algebra of reconstruction: sums over tokens, and the ridge solution of a change to the weights."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


class Gram(NamedTuple):
    """Float64 sums over tokens of a consumer's inputs x (with a 1 where it has a bias) and of what is missing, e."""

    xx: Tensor
    ex: Tensor
    ee: Tensor
    tokens: Tensor

    @classmethod
    def zeros(cls, inputs: int, outputs: int, device: torch.device) -> "Gram":
        """No tokens yet."""
        place = torch.device("cpu") if device.type == "mps" else device  # which has no float64
        shapes: tuple[tuple[int, ...], ...] = ((inputs, inputs), (outputs, inputs), (), ())
        return cls(*(torch.zeros(shape, dtype=torch.float64, device=place) for shape in shapes))

    def add(self, x: Tensor, e: Tensor) -> None:
        """Add tokens: `(tokens, inputs)` and `(tokens, outputs)` float32."""
        for total, factors in ((self.xx, (x.T, x)), (self.ex, (e.T, x))):
            total += (factors[0] @ factors[1]).to(total.device)
        self.ee.add_(e.square().sum().to(self.ee.device))
        self.tokens.add_(len(x))

    def merge(self, other: "Gram") -> None:
        """Add the tokens of another."""
        for total, more in zip(self, other, strict=True):
            total += more

    def error(self, change: Tensor | None = None) -> float:
        """Mean squared distance of a token, after adding a change `(outputs, inputs)` to the weights."""
        total = self.ee
        if change is not None:
            total = total - 2 * torch.sum(change * self.ex) + torch.sum((change @ self.xx).mul_(change))
        return float(total.clamp(min=0) / self.tokens.clamp(min=1))


def best_ridge(fit: Gram, held_out: Gram, ridges: Sequence[float], block: str) -> float:
    """The ridge whose solution over some tokens is best on others; the last one if there are no others."""
    if not held_out.tokens > 0:
        return ridges[-1]
    return min(ridges, key=lambda ridge: held_out.error(solve(fit, ridge, block)[0]))


def solve(gram: Gram, ridge: float, block: str) -> tuple[Tensor, float]:
    """EᵀX (XᵀX + λI)⁻¹, with λ a multiple of the mean diagonal of XᵀX.

    Args:
        gram: The sums.
        ridge: The multiple.
        block: Named in what is said when the ridge is too small.

    Returns:
        The change `(outputs, inputs)` float64, and the ridge that was used: ten times what was asked for, as often as
        it must be.

    Raises:
        ArithmeticError: No ridge will do.
    """
    scale = gram.xx.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
    for _ in range(12):
        lifted = gram.xx.clone()
        lifted.diagonal().add_(ridge * scale)
        factor, failed = torch.linalg.cholesky_ex(lifted)
        if not failed:
            return torch.cholesky_solve(gram.ex.T, factor).T, ridge
        logger.warning("the ridge %g is too small to solve block %r; trying %g.", ridge, block, 10 * ridge)
        ridge *= 10
    raise ArithmeticError(f"the Gram matrix of block {block!r} cannot be factored; please report this model and data.")
