"""Surgery on the vocabulary of a model: rows of embeddings and output projections, and every id that a config names."""

import copy
from collections.abc import Callable, Mapping, Sequence
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
_UNWANTED = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "sequence_bias")


def keep_tokens(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """A model that knows only some tokens; it holds copies of their rows of the weights.

    Which tensors have rows of tokens, and in which dimension, is found by building the empty model that the config
    with the new `vocab_size` describes, as loading will, and comparing shapes.

    Args:
        model: The model; it stays as it is.
        kept: The increasing ids of the tokens that stay; they are numbered from 0 in this order.

    Returns:
        The new model of the same class, in the same dtype, device, training mode and `requires_grad` state. Ids in its
        config and generation config are the new ones; tokens that are gone are left out of lists of unwanted ones.

    Raises:
        StructureError: The model has no embeddings with a row for each token of its `vocab_size`, was changed in a way
            that its config does not say, or is spread over devices.
        ValueError: The ids do not increase or are no rows, or one that stays somewhere in a config is not kept.
    """
    check_in_one_place(model)
    size = rows_of(model)
    if not kept or any(b <= a for a, b in pairwise(kept)) or kept[0] < 0 or kept[-1] >= size:
        raise ValueError(f"the kept ids must increase, from 0 to {size - 1}, got {list(kept[:8])} ...")
    if lost := sorted((named_ids(model) | fixed_ids(model)) - set(kept)):
        raise ValueError(f"the ids {lost[:8]} have a role in the model's config, so they must be kept.")
    config = copy.deepcopy(model.config)
    for name in _SIZES:
        if getattr(config, name, None) == size:
            setattr(config, name, len(kept))
    new = {old: number for number, old in enumerate(kept)}
    _renumber(config, new, size)
    small = empty(type(model), config, model)
    fill(small, _cut(model, small, kept), model)
    if getattr(small, "generation_config", None) is not None:
        _renumber(small.generation_config, new, size)
    return small


def rows_of(model: PreTrainedModel) -> int:
    """How many tokens a model has embeddings for.

    Args:
        model: The model.

    Returns:
        Its `vocab_size`.

    Raises:
        StructureError: It has no embeddings with a row for each token of its `vocab_size`.
    """
    size = getattr(model.config, "vocab_size", None)
    weight = getattr(input_embeddings(model), "weight", None)
    rows = len(weight) if isinstance(weight, Tensor) and weight.ndim == 2 else None
    if size is None or rows != size:
        raise StructureError(
            f"{type(model).__name__} has vocab_size={size} and {rows} rows of input embeddings. Vocabulary pruning is "
            "for models of text that have one row a token."
        )
    return int(size)


def named_ids(model: PreTrainedModel) -> set[int]:
    """Ids that config and generation config give a role, such as the padding, the start or the end of a text."""
    found: set[int] = set()

    def note(number: int) -> int:
        found.add(number)
        return number

    for config in (model.config, getattr(model, "generation_config", None)):
        for name, value in vars(config).items() if config is not None else ():
            if name.endswith(_ROLES):
                _with_ids(name, value, note)
    return {number for number in found if 0 <= number < rows_of(model)}


def fixed_ids(model: PreTrainedModel) -> set[int]:
    """Ids that must keep their number: those up to the padding, where positions are counted from it (RoBERTa)."""
    last = -1
    for path, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if "position" in path.rpartition(".")[2] and isinstance(padding, int):
            last = max(last, padding)
    return set(range(last + 1))


def _cut(model: PreTrainedModel, small: PreTrainedModel, kept: Sequence[int]) -> dict[str, Tensor]:
    """The weights of the kept tokens: `small` says which dimension of which tensor follows the vocabulary."""
    shapes = {name: tensor.shape for name, tensor in small.state_dict().items()}
    index, size = torch.as_tensor(kept, dtype=torch.long), rows_of(model)
    state = {}
    for name, tensor in model.state_dict().items():
        cut = tensor.detach()
        for dimension, (before, after) in enumerate(zip(cut.shape, shapes.get(name, cut.shape), strict=False)):
            if before == size and after == len(kept) != size:
                cut = cut.index_select(dimension, index.to(cut.device))
        state[name] = tensor.detach().clone() if cut.shape == tensor.shape else cut
    return state


def _renumber(config: Any, new: Mapping[int, int], size: int) -> None:
    """Put the new ids into a config or generation config. Ids that never were those of a row stay."""

    def number(old: int) -> int:
        return new[old] if 0 <= old < size else old

    def there(ids: Sequence[int]) -> bool:
        return all(old in new or not 0 <= old < size for old in ids)

    for name, value in list(vars(config).items()):
        if value is None:
            continue
        if name.endswith(_ROLES):
            setattr(config, name, _with_ids(name, value, number))
        elif name in _UNWANTED[:2]:
            setattr(config, name, [number(old) for old in value if there([old])])
        elif name == "bad_words_ids":
            setattr(config, name, [[number(old) for old in ids] for ids in value if there(ids)] or None)
        elif name == "sequence_bias":
            pairs = value.items() if isinstance(value, Mapping) else value
            kept = [[[number(old) for old in ids], bias] for ids, bias in pairs if there(ids)]
            setattr(config, name, kept or None)


def _with_ids(name: str, value: Any, number: Callable[[int], int]) -> Any:
    """A value of a config with each of its ids put through a function."""
    if name == "forced_decoder_ids" and value is not None:  # pairs of a position and an id
        return [[place, None if old is None else number(old)] for place, old in value]
    if isinstance(value, Mapping):
        return {key: _with_ids("", item, number) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_with_ids("", item, number) for item in value)
    return number(value) if isinstance(value, int) and not isinstance(value, bool) else value
