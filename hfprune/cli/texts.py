"""The texts of a command: read, with the labels as the model numbers them, and tokenized."""

from dataclasses import dataclass, replace

import typer
from datasets import Dataset, DatasetDict
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from hfprune.data.classification import load_text_dataset, tokenize
from hfprune.data.files import is_file_name
from hfprune.data.labels import align_labels, parse_label_map
from hfprune.data.loading import load_splits

_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """A data set of texts, as the options describe it.

    Attributes:
        name: Data set, folder or file.
        text_column: Column with the text.
        pair_column: Column with the second text of a pair, if there are pairs.
        label_column: Column with the labels; None: `label`.
        label_map: For every label of the data a number or name of the model, as `parse_label_map` reads it.
        separator: Of the columns of a csv file.
        encoding: Of the texts in files.
        max_length: Longer texts are cut to so many tokens.
        seed: Of the splits that are drawn.
    """

    name: str
    text_column: str
    pair_column: str | None
    label_column: str | None
    label_map: str | None
    separator: str | None
    encoding: str | None
    max_length: int
    seed: int

    @property
    def is_file(self) -> bool:
        """Whether all texts are in one file."""
        return is_file_name(self.name)

    def called(self, name: str) -> "TextSource":
        """The same description of another data set.

        Args:
            name: Its name.

        Returns:
            The description.
        """
        return replace(self, name=name)

    def tokenized_for(
        self, source: str, *, whole: bool = False, needs_labels: bool = True, revision: str | None = None
    ) -> tuple[DatasetDict, PreTrainedTokenizerBase]:
        """Read the data and tokenize it for a model.

        Where there is no test split with labels, the validation split serves as both. A validation split that is cut
        from the train split would hold texts that the model was probably trained on, and a sparsity must not be chosen
        by those.

        Args:
            source: Folder or repository of the model, whose config gives the numbers of the labels. It must be checked
                (`hfprune.cli.models.check_classifier`): its config and tokenizer are read here.
            whole: Give all rows of a single file in each of its splits, instead of cutting it into splits.
            needs_labels: Whether labels that are missing, or that are not the model's, are an error. Otherwise a line
                on stderr says what is wrong with them, and the splits have no column `labels`.
            revision: Branch, tag or commit of a repository, of its config and tokenizer.

        Returns:
            The tokenized splits, and the tokenizer.

        Raises:
            ValueError: The data cannot be read, has no such columns, or its labels are not those of the model.
        """
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
        label_column: str | None = self.label_column or "label"
        try:
            splits = load_text_dataset(
                self._name(),
                files=self._files(whole=whole),
                label_column=str(label_column),
                seed=self.seed,
                reuse_validation=True,
                separator=self.separator,
                encoding=self.encoding,
            )
            splits = align_labels(splits, config, str(label_column), label_map=parse_label_map(self.label_map))
        except ValueError as error:
            if needs_labels:
                raise
            # raises the same error again if it is not about labels
            splits = self._unlabelled(whole=whole)
            label_column = None
            typer.echo(f"hfprune: goes on without labels, and measures nothing: {error}", err=True)
        tokenized = tokenize(
            splits,
            tokenizer,
            text_column=self.text_column,
            pair_column=self.pair_column,
            label_column=label_column,
            max_length=self.max_length,
        )
        return tokenized, tokenizer

    def _unlabelled(self, *, whole: bool) -> DatasetDict:
        columns = [self.text_column]
        if self.pair_column:
            columns.append(self.pair_column)
        return load_splits(
            self._name(),
            files=self._files(whole=whole),
            columns=columns,
            seed=self.seed,
            reuse_validation=True,
            separator=self.separator,
            encoding=self.encoding,
        )

    def _name(self) -> str | None:
        return None if self.is_file else self.name

    def _files(self, *, whole: bool) -> dict[str, str] | None:
        """The splits of a single file: given for train alone it is cut into three, given for each it stays whole."""
        if not self.is_file:
            return None
        return dict.fromkeys(_SPLITS if whole else _SPLITS[:1], self.name)


def split_of(splits: DatasetDict, name: str) -> Dataset:
    """A split by name.

    Args:
        splits: The splits of a data set.
        name: The name of one.

    Returns:
        The split.

    Raises:
        ValueError: There is none of that name; the message lists the names of all splits.
    """
    if name not in splits:
        raise ValueError(f"there is no split {name!r}, only {', '.join(splits)}.")
    return splits[name]
