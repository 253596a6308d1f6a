"""The choice of the rows of embeddings that stay: tokens with all that they need, and rows without a token."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from hfprune.vocabulary.pieces import always_kept, chain_of
from hfprune.vocabulary.tokenizer import protected_tokens


@dataclass(frozen=True)
class Selection:
    """The rows of embeddings that stay.

    Attributes:
        tokens: Old ids of the tokens that stay, by token.
        spare_rows: Further rows that stay, of which the tokenizer has no token. They get ids behind the tokens, as they
            had before.
    """

    tokens: Mapping[str, int]
    spare_rows: tuple[int, ...]

    @property
    def rows(self) -> list[int]:
        """All old ids, increasing."""
        return sorted({*self.tokens.values(), *self.spare_rows})

    @property
    def new_ids(self) -> dict[str, int]:
        """New ids by token."""
        new_id_of = {old: new for new, old in enumerate(self.rows)}
        return {token: new_id_of[old] for token, old in self.tokens.items()}


class Vocabulary:
    """All tokens of a tokenizer, and the tokens that each of them needs.

    Args:
        tokenizer: The tokenizer.
        data: Its tokenizer.json.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, data: Mapping[str, Any]) -> None:
        self.ids: Mapping[str, int] = tokenizer.get_vocab()
        self._tokenizer = tokenizer
        self._data = data
        self._chain: Callable[[str], set[str]] = chain_of(data["model"])

    def check_names(self, names: Iterable[str]) -> set[str]:
        """Refuse tokens that the tokenizer does not have.

        Args:
            names: Tokens; a single string is one token.

        Returns:
            The tokens.

        Raises:
            ValueError: The tokenizer does not have one of them.
        """
        wanted = [names] if isinstance(names, str) else list(names)
        for token in wanted:
            if token not in self.ids:
                raise ValueError(
                    f"the tokenizer has no token {token!r}. Name tokens to keep as its vocabulary spells them: "
                    "tokenizer.tokenize(text) shows how."
                )
        return set(wanted)

    def needed_for(self, wanted: set[str], roles: set[int]) -> dict[str, int]:
        """All tokens that must stay so that some tokens can.

        Args:
            wanted: Tokens that stay.
            roles: Ids that stay, with or without a token.

        Returns:
            Old ids by token.
        """
        whole = protected_tokens(self._tokenizer, self._data)
        spelled = wanted | always_kept(self._data, wanted)
        for token, number in self.ids.items():
            if number in roles:
                spelled.add(token)
        needed = set(whole)
        # Protected tokens are found whole in a text, not formed from others.
        for token in spelled - whole:
            needed |= self._chain(token)
        return {token: self.ids[token] for token in needed}

    def filled(self, selection: Selection, multiple: int, rows: int) -> Selection:
        """Add tokens to a selection until its size is a multiple; after them rows without a token.

        Args:
            selection: The selection.
            multiple: The number that its size shall be a multiple of.
            rows: How many rows the model has.

        Returns:
            The larger selection.

        Raises:
            ValueError: The model has fewer rows than the next multiple.
        """
        size = len(selection.tokens) + len(selection.spare_rows)
        # Rounded up.
        goal = -(-size // multiple) * multiple
        tokens = dict(selection.tokens)
        free = goal - size
        # The lowest ids first: most tokenizers number frequent tokens before rare ones.
        for token in sorted(self.ids, key=self.ids.__getitem__):
            if not free:
                break
            if token in tokens:
                continue
            # A token comes with the tokens that form it, or not at all.
            # one by one: a difference from the keys would go through all that are kept, for every token
            added = {part for part in self._chain(token) if part not in tokens}
            have_rows = all(self.ids[part] < rows for part in added)
            if have_rows and len(added) <= free:
                for part in added:
                    tokens[part] = self.ids[part]
                free -= len(added)
        unnamed = sorted(set(range(rows)) - {*self.ids.values(), *selection.spare_rows})
        if free > len(unnamed):
            raise ValueError(
                f"pad_to_multiple_of={multiple}: {size} tokens are kept, and the next multiple of it, {goal}, is more "
                f"than the model's {rows}. Choose a smaller one."
            )
        return Selection(tokens, (*selection.spare_rows, *unnamed[:free]))
