"""Surgery on the vocabulary of a model: rows of embeddings and output projections, and every id that a config names."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfprune.errors import StructureError
from hfprune.structure.blocks import check_in_one_place
from hfprune.structure.devices import input_embeddings
from hfprune.structure.surgery import empty, fill

_SIZES = ("vocab_size", "decoder_vocab_size")
#: Ends of the names of config fields that give an id a role.
_ROLES = ("token_id", "token_ids", "token_index", "to_id", "force_words_ids", "forced_decoder_ids")


def keep_tokens(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """A model that knows only some tokens, with copies of their rows of the weights.

    To find out which tensors have rows of tokens, and in which dimension, an empty model is built from the config with
    the new `vocab_size`, as loading will build it. The dimensions in which its shapes differ have rows of tokens.

    Args:
        model: The model; it stays as it is.
        kept: The increasing ids of the tokens that stay; they are numbered from 0 in this order.

    Returns:
        The new model of the same class, in the same dtype, device, training mode and `requires_grad` state. Ids in its
        config and generation config are the new ones; lists of unwanted tokens lose the tokens that are gone.

    Raises:
        StructureError: The model has no embeddings with a row for each token of its `vocab_size`, was changed in a way
            that its config does not say, or is spread over devices.
        ValueError: The ids do not increase or are no rows, or an id with a role in a config is not kept.

    Examples:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> shape = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16}
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=50, bos_token_id=1, eos_token_id=2, **shape))
        >>> small = keep_tokens(model, [1, 2, 30, 40])
        >>> small.lm_head.weight.shape, small.config.eos_token_id
        (torch.Size([4, 8]), 1)
        >>> torch.equal(small.lm_head.weight[2], model.lm_head.weight[30])
        True
    """
    check_in_one_place(model)
    size = rows_of(model)
    _check_ids(model, kept, size)
    config = copy.deepcopy(model.config)
    for name in _SIZES:
        if getattr(config, name, None) == size:
            setattr(config, name, len(kept))
    numbering = _Numbering({old: new for new, old in enumerate(kept)}, size)
    _renumber_config(config, numbering)
    small = empty(type(model), config, model)
    fill(small, _weights_of_tokens(model, small, kept), model)
    if getattr(small, "generation_config", None) is not None:
        _renumber_config(small.generation_config, numbering)
    return small


def _check_ids(model: PreTrainedModel, kept: Sequence[int], size: int) -> None:
    increase = all(earlier < later for earlier, later in pairwise(kept))
    if not kept or not increase or kept[0] < 0 or kept[-1] >= size:
        raise ValueError(f"the kept ids must increase, from 0 to {size - 1}, got {list(kept[:8])} ...")
    lost = sorted((named_ids(model) | fixed_ids(model)) - set(kept))
    if lost:
        raise ValueError(f"the ids {lost[:8]} have a role in the model's config, so they must be kept.")


def rows_of(model: PreTrainedModel) -> int:
    """How many tokens a model has embeddings for.

    Args:
        model: The model.

    Returns:
        Its `vocab_size`.

    Raises:
        StructureError: The model has no embeddings with a row for each token of its `vocab_size`.
    """
    size = getattr(model.config, "vocab_size", None)
    weight = getattr(input_embeddings(model), "weight", None)
    rows: int | None = None
    # The first layer of a model of pictures or speech has weights too, in more dimensions.
    if isinstance(weight, Tensor) and weight.ndim == 2:
        rows = len(weight)
    if size is None or rows != size:
        raise StructureError(
            f"{type(model).__name__} has vocab_size={size} and {rows} rows of input embeddings. Vocabulary pruning is "
            "for models of text that have one row a token."
        )
    return int(size)


def named_ids(model: PreTrainedModel) -> set[int]:
    """Ids that config and generation config give a role, such as the padding, the start or the end of a text.

    Args:
        model: The model.

    Returns:
        The ids that are rows of its embeddings.

    Raises:
        StructureError: The model has no embeddings with a row for each token of its `vocab_size`.
    """
    size = rows_of(model)
    named: set[int] = set()

    def note(number: int) -> int:
        # Configs also say -1 or a number above all ids, for no token at all.
        if 0 <= number < size:
            named.add(number)
        return number

    for config in (model.config, getattr(model, "generation_config", None)):
        if config is None:
            continue
        for name, value in vars(config).items():
            if name.endswith(_ROLES):
                # Only so that `note` sees every id: the value that is made of them is not used.
                _with_ids(name, value, note)
    return named


def fixed_ids(model: PreTrainedModel) -> set[int]:
    """Ids that must keep their number.

    RoBERTa counts positions from the id of the padding. If the padding had another id, every token would get another
    position, so all ids up to the padding stay.

    Args:
        model: The model.

    Returns:
        The ids; none for a model that counts positions from 0.
    """
    last = -1
    for path, module in model.named_modules():
        _, _, name = path.rpartition(".")
        padding = getattr(module, "padding_idx", None)
        if "position" in name and isinstance(padding, int):
            last = max(last, padding)
    return set(range(last + 1))


def _weights_of_tokens(model: PreTrainedModel, small: PreTrainedModel, kept: Sequence[int]) -> dict[str, Tensor]:
    """Copies of a model's weights; tensors with rows of tokens have only the kept rows.

    Args:
        model: The model.
        small: The empty model with the new vocabulary: its shapes say which dimensions are rows of tokens.
        kept: The ids of the tokens that stay.

    Returns:
        A state dict for the small model.
    """
    small_state = small.state_dict()
    rows = torch.as_tensor(kept, dtype=torch.long, device="cpu")
    size = rows_of(model)
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        weights = tensor.detach()
        wanted = small_state.get(name, weights)
        for dimension, (before, after) in enumerate(zip(weights.shape, wanted.shape, strict=False)):
            # Another dimension of the same size as the vocabulary keeps its size in the small model.
            if before == size and after == len(kept) != size:
                weights = weights.index_select(dimension, rows.to(weights.device))
        # `index_select` has copied the others; these would be shared with the model.
        if weights.shape == tensor.shape:
            weights = weights.clone()
        state[name] = weights
    return state


@dataclass(frozen=True)
class _Numbering:
    """The new numbers of the tokens that stay.

    Numbers in configs that never were rows of the embeddings, such as -1, are no tokens and stay as they are.

    Attributes:
        new_ids: New ids by old ids.
        size: How many tokens there were before.
    """

    new_ids: Mapping[int, int]
    size: int

    def renumber(self, old: int) -> int:
        """The new number; a token that is gone has none."""
        return self.new_ids[old] if self._is_token(old) else old

    def renumber_all(self, ids: Sequence[int]) -> list[int]:
        """The new numbers of some tokens, none of which is gone."""
        return [self.renumber(old) for old in ids]

    def stay(self, ids: Sequence[int]) -> bool:
        """Whether none of some tokens is gone."""
        return all(old in self.new_ids or not self._is_token(old) for old in ids)

    def _is_token(self, number: int) -> bool:
        return 0 <= number < self.size


def _renumber_config(config: Any, numbering: _Numbering) -> None:
    """Put the new ids into a config or generation config."""
    # A list, as the fields change inside the loop.
    for name, value in list(vars(config).items()):
        if value is None:
            continue
        if name.endswith(_ROLES):
            setattr(config, name, _with_ids(name, value, numbering.renumber))
        elif name in _UNWANTED:
            renumber_unwanted = _UNWANTED[name]
            setattr(config, name, renumber_unwanted(value, numbering))


def _with_ids(name: str, value: Any, change: Callable[[int], int]) -> Any:
    """A value of a config with each of its ids put through a function.

    Args:
        name: The name of the field.
        value: An id, ids by name, or lists of ids at any depth; anything else stays.
        change: The function.

    Returns:
        The value with the changed ids.
    """
    if name == "forced_decoder_ids" and value is not None:
        return _pairs_with_ids(value, change)
    if isinstance(value, Mapping):
        return {key: _with_ids("", item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_with_ids("", item, change) for item in value)
    # True and False are integers to Python.
    if isinstance(value, int) and not isinstance(value, bool):
        return change(value)
    return value


def _pairs_with_ids(pairs: Any, change: Callable[[int], int]) -> list[list[int | None]]:
    """Pairs of a position in the output and the id that is forced there; None forces none."""
    changed: list[list[int | None]] = []
    for position, token in pairs:
        if token is not None:
            token = change(token)
        changed.append([position, token])
    return changed


def _unwanted_tokens(tokens: Sequence[int], numbering: _Numbering) -> list[int]:
    return [numbering.renumber(token) for token in tokens if numbering.stay([token])]


def _unwanted_words(words: Sequence[Sequence[int]], numbering: _Numbering) -> list[list[int]] | None:
    left: list[list[int]] = []
    for word in words:
        # Without one of its tokens a word cannot be generated.
        if numbering.stay(word):
            left.append(numbering.renumber_all(word))
    # transformers refuses an empty list of words.
    return left or None


def _biased_sequences(biases: Any, numbering: _Numbering) -> list[list[Any]] | None:
    """Pairs of a sequence of tokens and the bias on its score; the config has such pairs, or a mapping."""
    pairs = biases.items() if isinstance(biases, Mapping) else biases
    left: list[list[Any]] = []
    for tokens, bias in pairs:
        if numbering.stay(tokens):
            left.append([numbering.renumber_all(tokens), bias])
    # transformers refuses an empty list of biases.
    return left or None


#: Config fields with tokens that a model shall not generate, or less: how the ids of each are renumbered.
_UNWANTED: dict[str, Callable[[Any, _Numbering], Any]] = {
    "suppress_tokens": _unwanted_tokens,
    "begin_suppress_tokens": _unwanted_tokens,
    "bad_words_ids": _unwanted_words,
    "sequence_bias": _biased_sequences,
}
