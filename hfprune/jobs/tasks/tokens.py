"""Token classification: a tag for every word, such as named entities."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    EvalPrediction,
    PreTrainedTokenizerBase,
)

from hfprune.data.labels import has_names, named_labels, numbers_of, ordered_classes, parse_label_map
from hfprune.jobs.settings import LABEL_MAP_HELP, ModelArguments, SequenceArguments
from hfprune.jobs.tasks.registry import register_task
from hfprune.jobs.tasks.task import Task, logits_of, without_rows
from hfprune.measuring.metrics import entity_metrics_for

#: Model types whose tokenizers make the space before a word part of its first token. They must be told to put that
#: space before the words of a list, which come without it.
_SPACE_BELONGS_TO_THE_WORD = ("gpt2", "opt", "roberta")
#: Types of columns, by how their names begin, whose values can be tags.
_TAG_TYPES = ("string", "large_string", "int", "uint")


@dataclass
class TokenArguments(SequenceArguments):
    """Data of words with one tag each."""

    example_file: ClassVar[str] = "train.jsonl"

    token_column: str = field(default="tokens", metadata={"help": "Column with the words of a text, a list."})
    tag_column: str = field(default="ner_tags", metadata={"help": "Column with the tag of each word, a list."})
    label_map: str | None = field(default=None, metadata={"help": LABEL_MAP_HELP})


@register_task("token_classification", arguments=TokenArguments, architectures=r"ForTokenClassification$")
def token_classification(model: ModelArguments, data: TokenArguments, *, seed: int) -> Task:
    """Load words and tags. The first token of a word has the word's tag, its other tokens have none.

    Args:
        model: The model.
        data: The data: columns of lists of the same length.
        seed: Draws the splits that the data lacks.

    Returns:
        The task.

    Raises:
        CheckpointError: The model is a pruned checkpoint that `hfprune.load` would refuse.
        ValueError: Data, columns, tags or metrics do not fit, or the tokenizer cannot say which word a token belongs
            to.

    Examples:
        >>> from datasets import Dataset
        >>> from hfprune.jobs.tasks import ModelArguments, TokenArguments, token_classification
        >>> dense.save_pretrained("dense")
        >>> _ = tokenizer.save_pretrained("dense")
        >>> kinds = {"mouse": "LABEL_1", "man": "LABEL_2"}
        >>> words = [text.split() for text in texts]
        >>> tags = [[kinds.get(word, "LABEL_0") for word in row] for row in words]
        >>> _ = Dataset.from_dict({"tokens": words, "ner_tags": tags}).to_json("train.jsonl")
        >>> task = token_classification(ModelArguments("dense"), TokenArguments(train_file="train.jsonl"), seed=0)
        >>> task.data.num_rows, task.metrics
        ({'train': 14, 'validation': 2, 'test': 2}, ['accuracy'])
    """
    raw = data.load([data.token_column, data.tag_column], seed=seed)
    source = model.checked_source()
    config = AutoConfig.from_pretrained(source, **model.loading)
    names = _tag_names(raw, data.tag_column)
    distinct = list(dict.fromkeys(names.values()))
    label_map = parse_label_map(data.label_map)
    if model.dense_epochs > 0:
        distinct = ordered_classes(distinct, label_map)
        labels = named_labels(distinct)
        numbers = {name: number for number, name in enumerate(distinct)}
        name_of_number: dict[int, str] = {}
    else:
        labels = {}
        have_numbers = _has_named_numbers(raw, data.tag_column)
        numbers = numbers_of(config, distinct, label_map=label_map, have_numbers=have_numbers)
        # the model may predict tags that the data lacks, so the metrics need their names too
        name_of_number = {int(number): str(name) for number, name in config.id2label.items()}
    # bare numbers of the data are no names
    if model.dense_epochs > 0 or not has_names(config):
        name_of_number |= {number: name for name, number in numbers.items()}
    tokenizer = _load_tokenizer(source, config.model_type, model.loading)
    metrics, compute_metrics = entity_metrics_for(data.metrics, name_of_number)
    tokenized = tokenize_words(
        raw,
        tokenizer,
        token_column=data.token_column,
        tag_column=data.tag_column,
        numbers={value: numbers[name] for value, name in names.items()},
        max_length=data.max_length,
    )
    collator = DataCollatorForTokenClassification(tokenizer)
    return Task(
        auto_class=AutoModelForTokenClassification,
        source=source,
        labels=labels,
        data=tokenized,
        processor=tokenizer,
        collator=collator,
        calibration_collator=collator,
        metrics=metrics,
        compute_metrics=without_rows(compute_metrics),
        sample_metrics={"accuracy": _right_tags},
        preprocess_logits=_likeliest_tags,
    )


def _load_tokenizer(source: str, model_type: str, loading: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer, ready for lists of words."""
    options = dict(loading)
    if model_type in _SPACE_BELONGS_TO_THE_WORD:
        options["add_prefix_space"] = True
    return AutoTokenizer.from_pretrained(source, **options)


def _likeliest_tags(outputs: Any, labels: Tensor) -> Tensor:  # noqa: ARG001 (Trainer passes both)
    """The number of the likeliest tag of every token, `(N, tokens)`: all that the metrics need of the logits."""
    return logits_of(outputs).argmax(-1)


def _right_tags(prediction: EvalPrediction, rows: Dataset) -> list[float]:  # noqa: ARG001 (all metrics get both)
    """For every text the share of its words whose tag is right."""
    has_tag = prediction.label_ids != -100
    is_right = (prediction.predictions == prediction.label_ids) & has_tag
    shares: list[float] = (is_right.sum(-1) / np.maximum(has_tag.sum(-1), 1)).tolist()
    return shares


def _has_named_numbers(data: DatasetDict, column: str) -> bool:
    """Whether the tags of the data are numbers that have names."""
    return isinstance(getattr(data["train"].features[column], "feature", None), ClassLabel)


def _tag_names(data: DatasetDict, column: str) -> dict[Any, str]:
    """The names of the tags by their values in the data: by number for a ClassLabel, or else the values as strings."""
    column_type = data["train"].features[column]
    tag_type = getattr(column_type, "feature", None)
    if isinstance(tag_type, ClassLabel):
        return dict(enumerate(tag_type.names))
    if tag_type is None or not str(getattr(tag_type, "dtype", "")).startswith(_TAG_TYPES):
        raise ValueError(f"the column {column!r} holds {column_type}; expected a list of one tag a word.")
    values: set[Any] = set()
    for split in data.values():
        for tags in split[column]:
            values.update(tags)
    # sorted, so that every process and every run numbers them alike
    return {value: str(value) for value in sorted(values)}


def tokenize_words(
    data: DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    *,
    token_column: str,
    tag_column: str,
    numbers: Mapping[Any, int],
    max_length: int,
) -> DatasetDict:
    """Make token ids and `labels`, unpadded; pad batches with `DataCollatorForTokenClassification(tokenizer)`.

    Args:
        data: Splits with columns of words and of tags.
        tokenizer: The model's tokenizer; it must be a fast one.
        token_column: The column with the words.
        tag_column: The column with the tags.
        numbers: The model's number of every tag.
        max_length: The most tokens of a text. The rest of a longer text is dropped, and is not measured either.

    Returns:
        The same splits with the tokenizer's columns and `labels`, as `labels_of_tokens` makes them.

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
            labels.append(labels_of_tokens(encoded.word_ids(row), tags, numbers))
        return {**encoded, "labels": labels}

    columns = [token_column, tag_column]
    # without the selection, splits with different further columns could not be mapped together
    return data.select_columns(columns).map(encode, batched=True, remove_columns=columns, desc="Tokenizing")


def labels_of_tokens(words: Iterable[int | None], tags: Sequence[Any], numbers: Mapping[Any, int]) -> list[int]:
    """The label of every token: the tag of its word for the first token of a word, and −100 for all others.

    Args:
        words: For every token the number of its word in the text; None for special tokens.
        tags: The tag of every word.
        numbers: The model's number of every tag.

    Returns:
        The labels; the loss ignores −100.

    Examples:
        A text of two words, the second of which makes two tokens, between two special tokens:

        >>> labels_of_tokens([None, 0, 1, 1, None], tags=["O", "B-X"], numbers={"O": 0, "B-X": 1})
        [-100, 0, 1, -100, -100]
    """
    labels = []
    previous: int | None = None
    for word in words:
        if word is None or word == previous:
            labels.append(-100)
        else:
            labels.append(numbers[tags[word]])
        previous = word
    return labels
