"""Widths that what runs a model can use: in multiples of how many neurons, by what it is exported to."""

from collections.abc import Collection
from types import MappingProxyType

#: By target, the number of weights in a row that are quantised together.
MULTIPLES = MappingProxyType({"gguf-q8_0": 32, "gguf-q4_0": 32, "gguf-q4_1": 32, "bitsandbytes-4bit": 64})
#: The targets by name.
TARGET_NAMES = tuple(MULTIPLES)
#: Without a target: what kernels for matrices in half precision want, and what quantised files of language models take;
#: then what small models get instead.
_OF_DENSE_KERNELS = (16, 8)
_OF_LANGUAGE_MODELS = (32, 16, 8)
#: Blocks have at least as many steps, so that rounding does not decide how much is removed.
_STEPS = 32


def check_multiple(target: str, round_to: int | None) -> None:
    """Refuse a multiple that a target cannot use.

    Args:
        target: What the model is exported to.
        round_to: What the user asks for; None for nothing.

    Raises:
        ValueError: The target is unknown, or the user's number contradicts it.
    """
    if target not in MULTIPLES:
        raise ValueError(f"target must be one of {', '.join(MULTIPLES)}, got {target!r}; or leave it out.")
    wanted = MULTIPLES[target]
    if round_to is not None and round_to % wanted:
        raise ValueError(
            f"target={target!r} keeps neurons in multiples of {wanted}, and round_to={round_to} is none of these. "
            "Leave round_to out, or drop the target."
        )


def multiple_for(target: str | None, widths: Collection[int], *, is_language_model: bool) -> int:
    """In multiples of how many neurons blocks are kept, if the user does not say it.

    >>> multiple_for("gguf-q8_0", [64], is_language_model=True)
    32
    >>> multiple_for(None, [1536, 1536], is_language_model=False)
    16
    >>> multiple_for(None, [1536, 768], is_language_model=True)
    16
    >>> multiple_for(None, [64], is_language_model=True)
    1

    Args:
        target: What the model is exported to; None if that is not known.
        widths: The number of neurons of every feed-forward block of the dense model.
        is_language_model: Whether it predicts the next token.

    Returns:
        The target's number. Without a target 16, in language models 32, if the narrowest block has 32 such steps; or
        the next smaller of 16, 8 and 1.
    """
    if target is not None:
        return MULTIPLES[target]
    wanted = _OF_LANGUAGE_MODELS if is_language_model else _OF_DENSE_KERNELS
    narrowest = min(widths, default=0)
    return next((multiple for multiple in wanted if narrowest >= _STEPS * multiple), 1)
