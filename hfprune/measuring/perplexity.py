"""Perplexity of a causal language model, with what it depends on: the tokenizer, the window and the stride."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfprune.showing.progress import tracked
from hfprune.structure.arguments import checked, optional, whole
from hfprune.structure.devices import check_tokens, input_device
from hfprune.structure.examples import check_length
from hfprune.structure.running import frozen
from hfprune.structure.windows import added_bos

#: exp of more than about 709 is too large for a float, and `math.exp` raises an error for it.
_LARGEST_EXPONENT = 700


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """A measured perplexity, with the choices that it depends on.

    Attributes:
        perplexity: exp(nll).
        nll: Mean negative log-likelihood of a token, in nats.
        tokens: Number of predicted tokens.
        window: Tokens that the model sees at a time.
        stride: Tokens of the text from the start of one window to the start of the next.
        tokenizer: Name of the tokenizer, or its class, and its size. Perplexities under different tokenizers cannot be
            compared.
        bos: The token that every window begins with, as the tokenizer puts it in front of every text; None: none.
    """

    perplexity: float
    nll: float
    tokens: int
    window: int
    stride: int
    tokenizer: str
    bos: str | None = None

    def __str__(self) -> str:
        front = f", {self.bos} in front of each" if self.bos else ""
        return (
            f"perplexity {self.perplexity:.2f} over {self.tokens:,} tokens of {self.tokenizer} (windows of "
            f"{self.window}, stride {self.stride}{front})"
        )


class _Window(NamedTuple):
    """A stretch of a text that the model sees at a time.

    Attributes:
        ids: Its token ids.
        predicted: How many of its last tokens are predicted in it; the earlier ones only give context.
    """

    ids: Sequence[int]
    predicted: int


@checked(window=whole(), stride=optional(whole()), batch_size=whole())
def perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str] | Sequence[Sequence[int]],
    *,
    window: int = 256,
    stride: int | None = None,
    batch_size: int = 4,
) -> Perplexity:
    """Perplexity: exp of the mean negative log-likelihood of the tokens of some texts, each given the tokens before it.

    A text is read in windows, each `stride` tokens after the one before. Every token is predicted once, in the first
    window that reaches it, so with a stride below the window it has at least window − stride tokens before it, if the
    text has. The first token of a text is not predicted, and with stride = window neither is the first of any window.
    Where the tokenizer puts BOS, the token that begins texts, in front of every text, every window begins with it: it
    takes one of the window's tokens, and all tokens of the text are predicted.

    Args:
        model: A causal language model, dense or pruned. It is left as it was.
        tokenizer: Its tokenizer.
        texts: Texts, or lists of token ids (the `input_ids` of windows that were packed). Empty texts are skipped.
        window: Tokens that the model sees at a time, BOS included.
        stride: Tokens of the text from the start of one window to the start of the next; by default, and at most, as
            many as there are in the window.
        batch_size: Windows in a batch. Logits take batch_size × window × vocabulary numbers.

    Returns:
        The perplexity, and how it was measured.

    Raises:
        ValueError: The numbers do not fit each other, a single text stands in the place of a list, no text has two
            tokens, or the model lacks positions for the window or embeddings for a token.

    Examples:
        >>> import hfprune
        >>> measured = hfprune.perplexity(decoder, tokenizer, texts, window=8, stride=4)
        >>> measured.tokens, measured.window, measured.stride
        (81, 8, 4)

        A model that gives all its tokens the same probability has their number as its perplexity:

        >>> _ = decoder.lm_head.weight.data.zero_()
        >>> round(hfprune.perplexity(decoder, tokenizer, texts, window=8).perplexity, 3), len(tokenizer)
        (15.0, 15)
    """
    if stride is None:
        stride = window
    _check_options(window, stride, batch_size)
    if isinstance(texts, str):
        raise ValueError("perplexity takes a list of texts, got one text: write [text].")
    ids_by_text = _token_ids(tokenizer, texts)
    bos = added_bos(tokenizer)
    if bos is not None:
        # BOS takes one place of the window, and a larger stride would leave a token out
        stride = min(stride, window - 1)
    windows: list[_Window] = []
    for ids in ids_by_text:
        if bos is None:
            windows.extend(_windows(ids, window, stride))
        else:
            windows.extend(_windows_behind(bos, ids, window, stride))
    if not windows:
        raise ValueError(f"none of the {len(texts)} texts has two tokens: there is nothing to predict.")
    check_length(model, _longest(windows), option="window")
    check_tokens(model, max(max(ids, default=0) for ids in ids_by_text))
    nll, tokens = _mean_loss(model, windows, batch_size)
    return Perplexity(
        perplexity=math.inf if nll >= _LARGEST_EXPONENT else math.exp(nll),
        nll=nll,
        tokens=tokens,
        window=window,
        stride=stride,
        tokenizer=tokenizer_name(tokenizer),
        bos=None if bos is None else str(tokenizer.bos_token),
    )


def _check_options(window: int, stride: int, batch_size: int) -> None:
    # In a window of one token there is no token to predict, and a larger stride would leave tokens out.
    if window < 2 or not 1 <= stride <= window or batch_size < 1:
        raise ValueError(
            f"perplexity needs window ≥ 2, 1 ≤ stride ≤ window and batch_size ≥ 1, got window={window}, "
            f"stride={stride}, batch_size={batch_size}."
        )


def _token_ids(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str] | Sequence[Sequence[int]]
) -> list[Sequence[int]]:
    """The token ids of each text; texts of nothing but white space are left out."""
    ids_by_text: list[Sequence[int]] = []
    for text in texts:
        if not isinstance(text, str):
            ids_by_text.append(list(text))
        elif text.strip():
            # Not verbose: the tokenizer would warn of texts longer than the model, which windows divide.
            ids_by_text.append(tokenizer(text, verbose=False)["input_ids"])
    return ids_by_text


def _windows(ids: Sequence[int], window: int, stride: int) -> Iterator[_Window]:
    """The windows of one text, in order."""
    # Tokens up to here are predicted. The first one counts as predicted, as nothing stands before it.
    reached = 1
    for start in range(0, len(ids), stride):
        window_ids = ids[start : start + window]
        end = start + len(window_ids)
        # The first token of a window has no context there, so it cannot be predicted even where it is new.
        predicted = min(end - reached, len(window_ids) - 1)
        if predicted > 0:
            yield _Window(window_ids, predicted)
        reached = end
        if reached == len(ids):
            return


def _windows_behind(bos: int, ids: Sequence[int], window: int, stride: int) -> Iterator[_Window]:
    """The windows of one text, in order, each with BOS in front."""
    text = ids[1:] if list(ids[:1]) == [bos] else ids
    # Tokens up to here are predicted. With BOS in front, the first one is predicted too.
    reached = 0
    for start in range(0, len(text), stride):
        stretch = text[start : start + window - 1]
        end = start + len(stretch)
        yield _Window([bos, *stretch], end - reached)
        reached = end
        if reached == len(text):
            return


def _longest(windows: Sequence[_Window]) -> int:
    return max(len(each.ids) for each in windows)


def _mean_loss(model: PreTrainedModel, windows: Sequence[_Window], batch_size: int) -> tuple[float, int]:
    """The mean negative log-likelihood, and how many tokens it is a mean of."""
    # Windows of similar length share a batch, so that little of it is padding. The longest come first, so that a lack
    # of memory shows at once.
    ordered = sorted(windows, key=lambda each: -len(each.ids))
    total = 0.0
    tokens = 0
    places = range(0, len(ordered), batch_size)
    with frozen(model), torch.no_grad(), tracked(places, desc="Perplexity", unit="batch") as starts:
        for start in starts:
            losses = _losses(model, ordered[start : start + batch_size])
            # In float64: a float32 sum over millions of tokens would lose digits.
            total += float(losses.sum(dtype=torch.float64))
            tokens += len(losses)
    return total / tokens, tokens


def _losses(model: PreTrainedModel, windows: Sequence[_Window]) -> Tensor:
    """`(tokens,)` negative log-likelihoods in nats of all predicted tokens, window after window."""
    device = input_device(model)
    longest = _longest(windows)
    padded_ids: list[list[int]] = []
    attention_mask: list[list[int]] = []
    for ids, _ in windows:
        padding = [0] * (longest - len(ids))
        padded_ids.append([*ids, *padding])
        attention_mask.append([1] * len(ids) + padding)
    logits = model(
        input_ids=torch.tensor(padded_ids, dtype=torch.long, device=device),
        attention_mask=torch.tensor(attention_mask, dtype=torch.long, device=device),
        use_cache=False,
    ).logits
    losses: list[Tensor] = []
    for window_logits, (ids, predicted) in zip(logits, windows, strict=True):
        first = len(ids) - predicted
        targets = torch.tensor(ids[first:], dtype=torch.long, device=window_logits.device)
        # The logits at one position predict the token at the next. They become float32 a window at a time, as a whole
        # batch of logits in float32 would be the largest tensor of all.
        predictions = window_logits[first - 1 : len(ids) - 1].float()
        losses.append(F.cross_entropy(predictions, targets, reduction="none"))
    return torch.cat(losses)


def tokenizer_name(tokenizer: PreTrainedTokenizerBase) -> str:
    """The name of a tokenizer, and how many tokens it knows.

    Args:
        tokenizer: The tokenizer.

    Returns:
        The name that it was loaded by (of a folder the last part), or else its class; then its size.
    """
    name = str(tokenizer.name_or_path).rstrip("/")
    # Paths of folders say something of the user's machine, and reports are published.
    if name.startswith(("/", ".")):
        name = name.rpartition("/")[2]
    return f"{name or type(tokenizer).__name__} ({len(tokenizer):,} tokens)"
