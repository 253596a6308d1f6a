"""Parts of pruned models that the loader needs: what emptied projections leave, and what caches must know.

A checkpoint carries this code within its `modeling_pruned.py`, so it imports nothing of hfprune.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


def check_shape(shape: tuple[Any, ...], dense: tuple[int, ...]) -> None:
    """Refuse a shape that no pruning of the dense model gives."""
    if not all(type(size) is int for size in shape):
        raise ValueError(f"pruning_config asks for a weight of shape {shape!r:.100}; sizes are whole numbers.")
    grows = any(new > old for new, old in zip(shape, dense, strict=True))
    if min(shape) < 0 or grows:
        raise ValueError(
            f"pruning_config asks for a weight of shape {shape} where the dense model has {dense};"
            " pruning only makes them smaller. The config is damaged, or not to be trusted."
        )


class Emptied(nn.Module):
    """What is left of a projection without inputs or without outputs: its bias, if it has outputs.

    It is no Linear, as quantizers and exporters trip over a Linear with a size of 0, and it has no weight.

    Attributes:
        inputs: How many input features it has.
        outputs: How many output features it has.
        is_biased: Whether the projection had a bias.
    """

    def __init__(self, inputs: int, outputs: int, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.inputs = inputs
        self.outputs = outputs
        self.is_biased = bias is not None
        # T5 asks for the weight's dtype, if there is a weight
        self.register_parameter("weight", None)
        self.register_parameter("bias", None)
        if bias is not None and outputs:
            self.bias = nn.Parameter(bias.new_zeros(outputs))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """The bias for every token: `(..., inputs)` -> `(..., outputs)`."""
        if not self.outputs:
            return features[..., :0]
        # the sum of no features, so that gradients of 0 reach what comes before: torch's DDP waits for them
        nothing = features.new_zeros(*features.shape[:-1], self.outputs) + features.sum()
        if self.bias is None:
            return nothing
        return nothing + self.bias.to(nothing.dtype)

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{self.inputs} -> {self.outputs}, of a removed block"

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """Itself if it has a bias, else nothing.

        Libraries such as peft replace projections that they find by name. They cannot replace this one.

        Args:
            memo: As for `torch.nn.Module.named_modules`.
            prefix: As there.
            remove_duplicate: As there.

        Yields:
            Its name, and itself.
        """
        if self.bias is not None:
            yield from super().named_modules(memo, prefix, remove_duplicate)

    def _load_from_state_dict(self, state_dict: dict[str, torch.Tensor], prefix: str, *args: Any) -> None:
        # earlier versions had parameters without numbers here
        for name in (f"{prefix}weight", f"{prefix}bias"):
            if name in state_dict and not state_dict[name].numel():
                del state_dict[name]
        super()._load_from_state_dict(state_dict, prefix, *args)


class LayerConfig:
    """A layer's view of the model's config: it gives what the config has, but for the sizes that are set on it."""

    def __init__(self, shared: Any) -> None:
        self.shared = shared

    def __getattr__(self, name: str) -> Any:
        # copy and pickle ask for these before there is a shared config
        if name == "shared" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.shared, name)
