"""What the names of projections and attributes say: query, key or value, the width of a head, a number of heads."""

import re
from typing import Literal, NamedTuple, TypeAlias

#: What a projection of attention makes; `all` is one projection that makes the three of them.
AttentionRole: TypeAlias = Literal["query", "key", "value", "all"]

_ROLE_OF_WORD: dict[str, AttentionRole] = {
    **dict.fromkeys(("q", "qs", "query", "queries"), "query"),
    **dict.fromkeys(("k", "ks", "key", "keys"), "key"),
    **dict.fromkeys(("v", "vs", "value", "values"), "value"),
}
#: Words that say nothing of what a projection makes.
_FILLERS = {"proj", "projection", "project", "lin", "linear", "layer", "to", "w", "dense", "in", "fc", "self", "attn"}
#: Names of one projection of query, key and value together.
_FUSED = re.compile(r"(?i).*w?qkv.*|query_key_value|c_attn|in_proj")
#: One word of a name, whether words are joined by `_` or by capitals.
_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")
#: Words of attributes that hold numbers of layers, positions or tokens, or an index.
_NEVER_OF_UNITS = {
    "layer",
    "layers",
    "idx",
    "index",
    "id",
    "group",
    "groups",
    "position",
    "positions",
    "window",
    "vocab",
    "chunk",
}
#: Attributes that hold the width of the hidden states.
_HIDDEN_WIDTHS = {
    "hidden_size",
    "hidden_dim",
    "embed_dim",
    "embed_size",
    "d_model",
    "n_embd",
    "dim",
    "model_dim",
    "input_dim",
}


class NamedRole(NamedTuple):
    """What the name of a projection says.

    Attributes:
        role: What the projection makes.
        around: Path of the module that the name stands in.
    """

    role: AttentionRole
    around: str


def role_of(path: str) -> NamedRole | None:
    """What a projection makes, where its name says query, key or value and no more.

    >>> role_of("attention.self.query")
    NamedRole(role='query', around='attention.self')
    >>> role_of("attn.to_k.linear").role, role_of("mlp.key_states_up")
    ('key', None)
    """
    parts = path.split(".")
    for index in reversed(range(len(parts))):
        words = [word for word in words_of(parts[index]) if word not in _FILLERS]
        # a name of fillers only is explained by the module around it
        if not words:
            continue
        if len(words) > 1:
            return None
        # some models write Wq
        role = _ROLE_OF_WORD.get(words[0].removeprefix("w"))
        if role is None:
            return None
        return NamedRole(role=role, around=".".join(parts[:index]))
    return None


def says_fused(path: str) -> bool:
    """Whether the name of a projection says query, key and value together.

    >>> says_fused("attn.qkv_proj"), says_fused("attn.c_proj")
    (True, False)
    """
    return _FUSED.fullmatch(_last_name(path)) is not None


def says_head_width(attribute: str) -> bool:
    """Whether the name of an attribute says the width of one head.

    >>> says_head_width("self.head_dim"), says_head_width("self.attention_head_size")
    (True, True)
    >>> says_head_width("self.all_head_size")
    False
    """
    words = set(words_of(attribute))
    is_width = bool(words & {"dim", "size", "width"})
    of_head = bool(words & {"head", "proj"})
    of_many = bool(words & {"all", "num", "n"})
    return is_width and of_head and not of_many


def says_head_count(attribute: str) -> bool:
    """Whether the name of an attribute says a number of heads.

    >>> says_head_count("self.num_attention_heads"), says_head_count("self.n_head")
    (True, True)
    >>> says_head_count("self.head_dim")
    False
    """
    words = set(words_of(attribute))
    return "heads" in words or ("head" in words and bool(words & {"n", "num"}))


def says_key_value(attribute: str) -> bool:
    """Whether the name of an attribute says that it is about keys and values.

    >>> says_key_value("self.num_kv_heads"), says_key_value("self.num_heads")
    (True, False)
    """
    return not {"kv", "key", "value"}.isdisjoint(words_of(attribute))


def says_hidden_width(attribute: str) -> bool:
    """Whether the name of an attribute says the width of the hidden states."""
    return _last_name(attribute) in _HIDDEN_WIDTHS


def says_no_units(attribute: str) -> bool:
    """Whether the name of an attribute says a number that never counts units.

    >>> says_no_units("layer_idx"), says_no_units("num_heads")
    (True, False)
    """
    return not _NEVER_OF_UNITS.isdisjoint(words_of(attribute))


def words_of(path: str) -> list[str]:
    """The words of the last name of a path, in lower case.

    >>> words_of("attention.num_heads"), words_of("numHeads"), words_of("QKVProj")
    (['num', 'heads'], ['num', 'heads'], ['qkv', 'proj'])
    """
    return [word.lower() for word in _WORD.findall(_last_name(path))]


def _last_name(path: str) -> str:
    return path.rpartition(".")[2]
