"""What the commands share: options, how models and data are read, and how mistakes are said."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from datasets import Dataset, DatasetDict
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from hfprune.data import align_labels, load_text_dataset, resolve_model, tokenize
from hfprune.errors import HfpruneError
from hfprune.publishing.checkpoint import load
from hfprune.publishing.verification import PLAN_FILE, class_of


class Budget(StrEnum):
    """What a sparsity can count."""

    macs = "macs"
    params = "params"


class Unit(StrEnum):
    """What a unit of attention with shared key/value heads can be."""

    group = "group"
    query = "query"


ModelName = Annotated[str, typer.Argument(help="Folder or Hub name; minilm-l6 comes from an installed package.")]
DataName = Annotated[
    str, typer.Option("--data", help="Hub name, trec, movie_reviews, sms_spam, or a csv/json/parquet file.")
]
TextColumn = Annotated[str, typer.Option(help="Column with the text.")]
PairColumn = Annotated[str | None, typer.Option(help="Column with the second text of a pair.")]
LabelColumn = Annotated[str, typer.Option(help="Column with the labels.")]
MaxLength = Annotated[int, typer.Option(help="Longer texts are cut to so many tokens.")]
Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn.")]
MaxDrop = Annotated[
    float | None,
    typer.Option(help="The most accuracy that may be lost: 0.01 is one point. Shown with 95 % confidence."),
]


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """What the user did wrong is said in one line on stderr, and the exit code is 1."""
    try:
        yield
    except (HfpruneError, ValueError, OSError) as error:
        typer.echo(f"hfprune: {error}", err=True)
        raise typer.Exit(1) from None


def load_model(name: str, *, revision: str | None = None) -> PreTrainedModel:
    """A pruned checkpoint with its plan, or any other model in the class that its config names."""
    source = resolve_model(name)
    if cached_file(source, PLAN_FILE, revision=revision, _raise_exceptions_for_missing_entries=False) is not None:
        return load(source, revision=revision)
    config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    model: PreTrainedModel = class_of(config.architectures or [], name).from_pretrained(source, revision=revision)
    return model


def tokenized(
    data: str,
    source: str,
    text: str,
    pair: str | None,
    label: str,
    max_length: int,
    seed: int,
) -> tuple[DatasetDict, PreTrainedTokenizerBase]:
    """The data as the model of a folder or repository takes it, and its tokenizer."""
    is_file = Path(data).suffix in (".csv", ".tsv", ".json", ".jsonl", ".parquet")
    files = {"train": data} if is_file else None
    splits = load_text_dataset(None if is_file else data, files=files, label_column=label, seed=seed)
    splits = align_labels(splits, AutoConfig.from_pretrained(source), label)
    tokenizer = AutoTokenizer.from_pretrained(source)
    columns = {"text_column": text, "label_column": label}
    return tokenize(splits, tokenizer, pair_column=pair, max_length=max_length, **columns), tokenizer


def split_of(splits: DatasetDict, name: str) -> Dataset:
    """A split by name, or an error that names those there are."""
    if name not in splits:
        raise ValueError(f"there is no split {name!r}, only {', '.join(splits)}.")
    return splits[name]
