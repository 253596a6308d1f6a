"""The arguments of the scripts, from the command line or from one file."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from transformers import HfArgumentParser

from hfprune.config import PruningConfig
from hfprune.recovery.arguments import RecoveryArguments

#: PruningConfig without its seed: --seed of the training arguments is for both.
PruningArguments = make_dataclass(
    "PruningArguments", [(f.name, f.type, f) for f in fields(PruningConfig) if f.name != "seed"]
)


@dataclass
class ModelArguments:
    """Which model, whether it must be fine-tuned first, what it learns from, and when it has learned enough."""

    model_name_or_path: str = field(metadata={"help": "Hub name, folder, or minilm-l6, smollm2-135m (from packages)."})
    teacher_model: str | None = field(
        default=None, metadata={"help": "Fine-tuned teacher for recovery, with the same labels; by default the dense."}
    )
    dense_epochs: float = field(default=0.0, metadata={"help": "Epochs of dense fine-tuning first; 0: it is done."})
    dense_learning_rate: float = field(default=5e-5, metadata={"help": "Learning rate of the dense fine-tuning."})
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many evaluations without a better metric_for_best_model."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the model."})
    overwrite: bool = field(default=False, metadata={"help": "Clear what an earlier run left in output_dir."})


@dataclass
class MethodArguments:
    """When units go."""

    method: str = field(
        default="before",
        metadata={"help": "before: prune, then recover; rounds: in turn, several times; gradual: while it trains."},
    )
    gradual_schedule: str = field(default="cubic", metadata={"help": "cubic, linear, geometric or steps."})
    gradual_start: float = field(default=0.0, metadata={"help": "Fraction of the training before units go."})
    gradual_end: float = field(default=0.6, metadata={"help": "Fraction of it after which the sparsity is reached."})
    gradual_every: int = field(default=10, metadata={"help": "Steps between two choices of units."})


@dataclass
class DataArguments:
    """Which data, and what is measured on it."""

    dataset: str | None = field(default=None, metadata={"help": "Hub name, or trec, movie_reviews, sms_spam."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    train_file: str | None = field(default=None, metadata={"help": "csv, tsv, json, jsonl, parquet or txt."})
    validation_file: str | None = field(default=None, metadata={"help": "The same; cut from train if not given."})
    test_file: str | None = field(default=None, metadata={"help": "The same; cut from train if not given."})
    max_length: int = field(default=128, metadata={"help": "The most tokens in a sequence."})
    metrics: list[str] = field(
        default_factory=list, metadata={"help": "What is measured, the first is reported; by default what is usual."}
    )
    latency_batch_size: int = field(default=32, metadata={"help": "Batch size of the latency measurement."})
    latency_length: int = field(default=64, metadata={"help": "Sequence length of the latency measurement."})

    @property
    def files(self) -> dict[str, str]:
        """The files that were named, by split."""
        named = {"train": self.train_file, "validation": self.validation_file, "test": self.test_file}
        return {split: file for split, file in named.items() if file}


@dataclass
class TextArguments(DataArguments):
    """Data of texts, or of pairs of texts, with one label each."""

    text_column: str = field(default="text", metadata={"help": "Column with the text."})
    pair_column: str | None = field(default=None, metadata={"help": "Column with the second text of a pair."})
    label_column: str = field(default="label", metadata={"help": "Column with the labels; floats: a regression."})


@dataclass
class TokenArguments(DataArguments):
    """Data of words with one tag each."""

    token_column: str = field(default="tokens", metadata={"help": "Column with the words of a text, a list."})
    tag_column: str = field(default="ner_tags", metadata={"help": "Column with the tag of each word, a list."})


@dataclass
class MaskedTextArguments(DataArguments):
    """Plain text, of which some tokens are masked."""

    text_column: str = field(default="text", metadata={"help": "Column with the text."})
    mask_probability: float = field(default=0.15, metadata={"help": "The share of tokens to predict."})


@dataclass
class CausalTextArguments(DataArguments):
    """Plain text, whose next tokens are predicted."""

    dataset: str | None = field(default=None, metadata={"help": "Hub name, or state_of_the_union."})
    dataset_config: str | None = field(
        default=None,
        metadata={"help": "Configuration of a Hub data set; of state_of_the_union the first year to train on."},
    )
    text_column: str = field(default="text", metadata={"help": "Column with the text; a txt file is one text."})
    max_length: int = field(default=256, metadata={"help": "Tokens in a window."})
    self_generated: int = field(
        default=0, metadata={"help": "Instead of texts to learn from: so many windows that the dense model writes."}
    )
    latency_batch_size: int = field(default=4, metadata={"help": "Batch size of the latency measurement."})


class Arguments(NamedTuple):
    """All arguments of a script.

    Attributes:
        training: How to train.
        model: Which model.
        data: Which data, as the task takes it.
        pruning: How to prune.
        method: When to prune.
    """

    training: RecoveryArguments
    model: ModelArguments
    data: Any
    pruning: PruningConfig
    method: MethodArguments


def parse(data: type[DataArguments], description: str | None, argv: Sequence[str] | None = None) -> Arguments:
    """The arguments of a script, from the command line, or from a YAML or JSON file and what follows it there.

    Args:
        data: The task's data arguments.
        description: What `--help` says first.
        argv: The command line, by default this process's.

    Returns:
        The arguments.

    Raises:
        ValueError: An argument is not known, or a file holds no names and values.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    kinds = (RecoveryArguments, ModelArguments, data, PruningArguments, MethodArguments)
    parser = HfArgumentParser(kinds, description=description)
    if argv and argv[0].endswith((".yaml", ".yml", ".json")):
        argv = [*_flags(Path(argv[0])), *argv[1:]]
    training, model, data_arguments, pruning, method = parser.parse_args_into_dataclasses(argv)
    return Arguments(training, model, data_arguments, PruningConfig(**asdict(pruning), seed=training.seed), method)


def _flags(path: Path) -> list[str]:
    """What a file says, as a command line says it."""
    text = path.read_text(encoding="utf-8")
    values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold names and values, such as `sparsity: 0.5`.")
    words: list[str] = []
    for name, value in values.items():
        if value is None or value == []:
            continue  # as if it were not there
        items = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
        words += [f"--{name}", *map(str, items)]
    return words
