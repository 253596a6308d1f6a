"""Token classification: a tag for every word, such as named entities."""

from collections.abc import Mapping
from itertools import chain, pairwise
from typing import Any

from datasets import ClassLabel, DatasetDict
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    PreTrainedTokenizerBase,
)

from hfprune.data.labels import named_labels, numbers_of
from hfprune.data.loading import load_splits
from hfprune.data.packages import resolve_model
from hfprune.jobs.settings import ModelArguments, TokenArguments
from hfprune.jobs.tasks.task import Task
from hfprune.measuring.metrics import entity_metrics_for

_SPACE_BELONGS_TO_THE_WORD = ("gpt2", "opt", "roberta")  # their tokenizers must be told for words that stand alone


def token_classification(model: ModelArguments, data: TokenArguments, *, seed: int) -> Task:
    """Read words and tags; the first piece of a word has its tag, all others have none.

    Args:
        model: Which model.
        data: Which data: columns of lists of the same length.
        seed: Of the splits that the data lacks.

    Returns:
        The task.

    Raises:
        ValueError: Data, columns, tags or metrics do not fit, or the tokenizer cannot say which word a piece is of.
    """
    raw = load_splits(
        data.dataset,
        config_name=data.dataset_config,
        files=data.files,
        columns=[data.token_column, data.tag_column],
        seed=seed,
    )
    source, remote = resolve_model(model.model_name_or_path), {"trust_remote_code": model.trust_remote_code}
    config = AutoConfig.from_pretrained(source, **remote)
    names = _tags(raw, data.tag_column)  # by the value that stands for them in the data
    ordered = list(dict.fromkeys(names.values()))
    if model.dense_epochs > 0:
        labels, numbers = named_labels(ordered), {name: i for i, name in enumerate(ordered)}
    else:
        labels, numbers = {}, numbers_of(config, ordered)
    spaced = {"add_prefix_space": True} if config.model_type in _SPACE_BELONGS_TO_THE_WORD else {}
    tokenizer = AutoTokenizer.from_pretrained(source, **remote, **spaced)
    known = {} if labels else {int(i): str(name) for i, name in config.id2label.items()}
    tags = known | {number: name for name, number in numbers.items()}
    metrics, compute_metrics = entity_metrics_for(data.metrics, tags)
    collator = DataCollatorForTokenClassification(tokenizer)
    return Task(
        auto_class=AutoModelForTokenClassification,
        source=source,
        labels=labels,
        data=tokenize_words(
            raw,
            tokenizer,
            token_column=data.token_column,
            tag_column=data.tag_column,
            numbers={value: numbers[name] for value, name in names.items()},
            max_length=data.max_length,
        ),
        tokenizer=tokenizer,
        collator=collator,
        calibration_collator=collator,
        metrics=metrics,
        compute_metrics=compute_metrics,
        preprocess_logits=_choices,
    )


def _choices(logits: Any, labels: Tensor) -> Tensor:  # noqa: ARG001 (Trainer passes both)
    """The likeliest tag of every token, `(N, tokens)`: all that the metrics read of the logits."""
    best: Tensor = (logits[0] if isinstance(logits, tuple) else logits).argmax(-1)
    return best


def _tags(data: DatasetDict, column: str) -> dict[Any, str]:
    """The names of the tags, by the value that stands for them: a number of a ClassLabel, or what is found."""
    inner = getattr(data["train"].features[column], "feature", None)
    if isinstance(inner, ClassLabel):
        return dict(enumerate(inner.names))
    if inner is None or not str(getattr(inner, "dtype", "")).startswith(("string", "large_string", "int", "uint")):
        raise ValueError(
            f"the column {column!r} holds {data['train'].features[column]}; expected a list of one tag a word."
        )
    found = sorted(set(chain.from_iterable(chain.from_iterable(part[column] for part in data.values()))))
    return {value: str(value) for value in found}


def tokenize_words(
    data: DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    *,
    token_column: str,
    tag_column: str,
    numbers: Mapping[Any, int],
    max_length: int,
) -> DatasetDict:
    """Token ids and `labels`, unpadded; pad batches with `DataCollatorForTokenClassification(tokenizer)`.

    Args:
        data: Splits with columns of words and of tags.
        tokenizer: The model's tokenizer; it must be a fast one.
        token_column: The column with the words.
        tag_column: The column with the tags.
        numbers: The model's number of every tag.
        max_length: Longer texts are cut; what is cut off is not measured either.

    Returns:
        The same splits with the tokenizer's columns and `labels`: −100 where a token is not the first of a word.

    Raises:
        ValueError: The tokenizer is a slow one, or a text has not as many tags as words.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} cannot say which word a token belongs to. Token classification needs a fast "
            "tokenizer (with tokenizer.json)."
        )

    def encode(rows: Mapping[str, list[Any]]) -> dict[str, Any]:
        for words, tags in zip(rows[token_column], rows[tag_column], strict=True):
            if len(words) != len(tags):
                raise ValueError(
                    f"a text has {len(words)} words in {token_column!r} and {len(tags)} tags in {tag_column!r}; each "
                    f"word needs one: {' '.join(map(str, words))[:80]}"
                )
        encoded = tokenizer(rows[token_column], is_split_into_words=True, truncation=True, max_length=max_length)
        labels = []
        for row, tags in enumerate(rows[tag_column]):
            words = encoded.word_ids(row)
            labels.append(
                [
                    numbers[tags[word]] if word is not None and word != before else -100
                    for before, word in pairwise([None, *words])
                ]
            )
        return {**encoded, "labels": labels}

    columns = [token_column, tag_column]  # splits may have other columns than each other
    return data.select_columns(columns).map(encode, batched=True, remove_columns=columns, desc="Tokenizing")
