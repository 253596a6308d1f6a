"""Perplexity of a causal language model, with what it depends on: the tokenizer, the window and the stride."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import tqdm

from hfprune.measuring.size import check_length
from hfprune.structure.devices import check_tokens, input_device
from hfprune.structure.running import frozen


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """What was found, and how.

    Attributes:
        perplexity: exp(nll).
        nll: Mean negative log-likelihood of a token, in nats.
        tokens: How many tokens were predicted.
        window: Tokens that the model sees at a time.
        stride: Tokens from one window to the next.
        tokenizer: Name of the tokenizer, or its class and size; perplexities of other tokenizers do not compare.
    """

    perplexity: float
    nll: float
    tokens: int
    window: int
    stride: int
    tokenizer: str

    def __str__(self) -> str:
        return (
            f"perplexity {self.perplexity:.2f} over {self.tokens:,} tokens of {self.tokenizer} (windows of "
            f"{self.window}, stride {self.stride})"
        )


def perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str] | Sequence[Sequence[int]],
    *,
    window: int = 256,
    stride: int | None = None,
    batch_size: int = 4,
) -> Perplexity:
    """Perplexity: exp of the mean negative log-likelihood of the tokens of some texts, each given those before it.

    A text is read in windows, each `stride` tokens after the one before. Every token is predicted once, in the first
    window that reaches it, so with a stride below the window it has at least window − stride tokens before it, if the
    text has. The first token of a text is not predicted, and with stride = window neither is the first of any window.

    Args:
        model: A causal language model, dense or pruned. It is as before afterwards.
        tokenizer: Its tokenizer.
        texts: Texts, or lists of token ids (the `input_ids` of windows that were packed). Empty ones are skipped.
        window: Tokens that the model sees at a time.
        stride: Tokens from one window to the next; by default the window.
        batch_size: Windows in a batch. Logits take batch_size × window × vocabulary numbers.

    Returns:
        The perplexity, and how it was measured.

    Raises:
        ValueError: Numbers that do not fit, one text where a list of them is wanted, no text of two tokens, or a window
            or tokens that the model has no positions or embeddings for.
    """
    stride = window if stride is None else stride
    if window < 2 or not 1 <= stride <= window or batch_size < 1:
        raise ValueError(
            f"perplexity needs window ≥ 2, 1 ≤ stride ≤ window and batch_size ≥ 1, got window={window}, "
            f"stride={stride}, batch_size={batch_size}."
        )
    if isinstance(texts, str):
        raise ValueError("perplexity takes a list of texts, got one text: write [text].")
    rows = [
        tokenizer(text, verbose=False)["input_ids"] if isinstance(text, str) else list(text)
        for text in texts
        if not isinstance(text, str) or text.strip()
    ]
    pieces = [piece for row in rows for piece in _windows(row, window, stride)]
    if not pieces:
        raise ValueError(f"none of the {len(texts)} texts has two tokens: there is nothing to predict.")
    check_length(model, max(len(piece) for piece, _ in pieces), option="window")
    check_tokens(model, max(max(row, default=0) for row in rows))
    pieces.sort(key=lambda piece: -len(piece[0]))  # like lengths together
    total, count = 0.0, 0
    with frozen(model), torch.no_grad():
        for start in tqdm(range(0, len(pieces), batch_size), desc="Perplexity", unit="batch"):
            losses = _losses(model, pieces[start : start + batch_size])
            total, count = total + float(losses.sum(dtype=torch.float64)), count + len(losses)
    nll = total / count
    return Perplexity(
        perplexity=math.inf if nll >= 700 else math.exp(nll),
        nll=nll,
        tokens=count,
        window=window,
        stride=stride,
        tokenizer=tokenizer_name(tokenizer),
    )


def tokenizer_name(tokenizer: PreTrainedTokenizerBase) -> str:
    """The name a tokenizer was loaded under (of a folder its last part), or its class; and how many tokens it knows."""
    name = str(tokenizer.name_or_path).rstrip("/")
    name = name.rpartition("/")[2] if name.startswith(("/", ".")) else name
    return f"{name or type(tokenizer).__name__} ({len(tokenizer):,} tokens)"


def _windows(ids: Sequence[int], window: int, stride: int) -> Iterator[tuple[Sequence[int], int]]:
    """Windows of a text, each with how many of its last tokens are new in it and can be predicted."""
    reached = 1  # nothing stands before the first token
    for start in range(0, len(ids), stride):
        piece = ids[start : start + window]
        new = min(start + len(piece) - reached, len(piece) - 1)
        if new > 0:
            yield piece, new
        reached = start + len(piece)
        if reached == len(ids):
            return


def _losses(model: PreTrainedModel, pieces: Sequence[tuple[Sequence[int], int]]) -> Tensor:
    """Negative log-likelihoods in nats of all new tokens, one after the other; in float32 a window at a time."""
    device, longest = input_device(model), max(len(ids) for ids, _ in pieces)
    padded = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids, _ in pieces], device=device)
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in pieces], device=device)
    logits = model(input_ids=padded, attention_mask=mask, use_cache=False).logits
    found = []
    for row, (ids, new) in zip(logits, pieces, strict=True):
        targets = torch.tensor(ids[len(ids) - new :], device=row.device)
        found.append(F.cross_entropy(row[len(ids) - new - 1 : len(ids) - 1].float(), targets, reduction="none"))
    return torch.cat(found)
