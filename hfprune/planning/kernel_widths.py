"""Widths that what runs a model can use: in multiples of how many neurons, by what it is exported to."""

from types import MappingProxyType

#: By target, the number of weights in a row that are quantised together.
MULTIPLES = MappingProxyType({"gguf-q8_0": 32, "gguf-q4_0": 32, "gguf-q4_1": 32, "bitsandbytes-4bit": 64})
#: The targets by name.
TARGET_NAMES = tuple(MULTIPLES)


def multiple_for(target: str, round_to: int) -> int:
    """In multiples of how many neurons blocks are kept for a target.

    >>> multiple_for("gguf-q8_0", 1), multiple_for("gguf-q8_0", 64)
    (32, 64)

    Args:
        target: What the model is exported to.
        round_to: What the user asks for; 1 for nothing in particular.

    Returns:
        The target's number, or the user's if that is a multiple of it.

    Raises:
        ValueError: The target is unknown, or the user's number contradicts it.
    """
    if target not in MULTIPLES:
        raise ValueError(f"target must be one of {', '.join(MULTIPLES)}, got {target!r}; or leave it out.")
    wanted = MULTIPLES[target]
    if round_to == 1:
        return wanted
    if round_to % wanted:
        raise ValueError(
            f"target={target!r} keeps neurons in multiples of {wanted}, and round_to={round_to} is none of these. "
            "Leave round_to out, or drop the target."
        )
    return round_to
