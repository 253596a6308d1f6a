"""Windows of a text: the stretches that a language model reads at a time, each with the token that begins texts."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def added_bos(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id of the token that a tokenizer puts in front of every text.

    A model whose tokenizer does so saw that token (BOS) at the start of every text that it was trained on. Without it,
    many of these models predict badly: Gemma and Llama put much of their attention there.

    Args:
        tokenizer: The tokenizer.

    Returns:
        The id; None for a tokenizer that has no such token, or does not add it.

    Examples:
        >>> from hfprune.structure.windows import added_bos
        >>> tokenizer.bos_token, added_bos(tokenizer)
        ('[BOS]', None)
    """
    bos: int | None = tokenizer.bos_token_id
    if bos is None:
        return None
    # asked of the tokenizer itself: its settings (add_bos_token, a post-processor) differ from class to class
    ids = tokenizer("a", verbose=False)["input_ids"]
    return bos if list(ids[:1]) == [bos] else None


def windows_of(ids: Sequence[int], length: int, *, bos: int | None) -> list[list[int]]:
    """Cut token ids into windows, one after the other.

    Args:
        ids: The token ids.
        length: The most tokens in a window, BOS included.
        bos: The id that every window begins with; where the next token is that one, it is not doubled. None: the
            windows are the ids as they are.

    Returns:
        The windows. All but the last have `length` tokens.

    Raises:
        ValueError: A window has no room for a token beside BOS.

    Examples:
        >>> windows_of([0, 5, 6, 7, 8], 3, bos=0)
        [[0, 5, 6], [0, 7, 8]]
        >>> windows_of([5, 6, 7, 8], 3, bos=None)
        [[5, 6, 7], [8]]
    """
    if bos is not None and length < 2:
        raise ValueError(
            f"windows of {length} token have no room for a token beside BOS, which this tokenizer puts in front of "
            "every text: set at least 2."
        )
    windows = []
    start = 0
    while start < len(ids):
        front = [bos] if bos is not None and ids[start] != bos else []
        end = start + length - len(front)
        windows.append([*front, *ids[start:end]])
        start = end
    return windows
