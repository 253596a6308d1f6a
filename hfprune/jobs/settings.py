"""The arguments of the scripts, from the command line or from one file."""

import difflib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, NoReturn

import yaml
from datasets import DatasetDict
from transformers import HfArgumentParser

from hfprune.config import PruningConfig
from hfprune.data.loading import load_splits
from hfprune.data.media import Medium, load_media
from hfprune.data.packages import resolve_model
from hfprune.publishing.sources import check_source
from hfprune.recovery.arguments import RecoveryArguments


def _pruning_fields() -> list[tuple[str, Any, Any]]:
    """The fields of PruningConfig as the parser takes them."""
    taken: list[tuple[str, Any, Any]] = []
    for setting in fields(PruningConfig):
        # one `--seed`, which training and pruning share
        if setting.name == "seed":
            continue
        if setting.name == "sequence_length":
            described = field(default=None, metadata={"help": f"{setting.metadata['help']} By default max_length."})
            taken.append((setting.name, int | None, described))
        elif setting.name == "latency_table":
            # of a command line it is a file
            taken.append((setting.name, str | None, setting))
        else:
            taken.append((setting.name, setting.type, setting))
    return taken


#: The fields of PruningConfig, for the parser.
PruningArguments = make_dataclass("PruningArguments", _pruning_fields())

#: Of the tasks that read labels.
LABEL_MAP_HELP = (
    "For every label of the data a number or name of the model, such as good=1,poor=0, where the names do not tell; of "
    "a model that is fine-tuned here first, the numbers that it shall give."
)


@dataclass
class ModelArguments:
    """The model and its teacher, the fine-tuning of the dense model, and when training stops early.

    `--help` of a script describes every field.
    """

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
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a repository."})
    overwrite: bool = field(default=False, metadata={"help": "Clear what an earlier run left in output_dir."})

    def other(self, name_or_path: str) -> "ModelArguments":
        """The arguments of another model, whose code may run if that of this one may.

        Args:
            name_or_path: Its folder, or its name on the Hub, of which the newest revision is taken.

        Returns:
            The arguments.
        """
        return ModelArguments(name_or_path, trust_remote_code=self.trust_remote_code)

    def checked_source(self) -> str:
        """Where the model is loaded from, after a look at it: nothing of a pruned checkpoint is read before.

        Returns:
            Its folder, or its name on the Hub.

        Raises:
            CheckpointError: It is a pruned checkpoint that `hfprune.load` would refuse.
            FileNotFoundError: It is a model in a package that is not installed.
        """
        source = resolve_model(self.model_name_or_path)
        check_source(source, revision=self.model_revision)
        return source

    @property
    def loading(self) -> dict[str, Any]:
        """Arguments of `from_pretrained` that config, tokenizer and model are loaded with."""
        return {"revision": self.model_revision, "trust_remote_code": self.trust_remote_code}


@dataclass
class MethodArguments:
    """When units are removed: before training, in rounds, or gradually while the model trains.

    `--help` of a script describes every field.
    """

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
    """The data of a task, and what is measured on it. Tasks add their own columns in a class of their own.

    `--help` of a script describes every field.

    Attributes:
        example_file: What a file of the task is called in an example; no field.
        trainer_settings: Arguments of transformers' Trainer that matter to the task in particular; no field. A file
            that `hfprune init` writes names them.
        reuse_validation: Whether the validation split serves as test split too where there is none, and no other one is
            cut from train. Commands that train nothing set it; it is no option.
        needs_labels: Whether labels that are missing, or that are not the model's, are an error. If not, the task comes
            without labels then. No option either.
        sample_metric: The metric of single samples that is wanted of the task, for which a task may look before it
            reads the data. No option either.
    """

    example_file: ClassVar[str] = "train.csv"
    trainer_settings: ClassVar[tuple[str, ...]] = ()

    dataset: str | None = field(default=None, metadata={"help": "Hub name, or one that needs no Hub, such as trec."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    train_file: str | None = field(default=None, metadata={"help": "csv, tsv, json, jsonl, parquet, txt or conll."})
    validation_file: str | None = field(default=None, metadata={"help": "The same; cut from train if not given."})
    test_file: str | None = field(default=None, metadata={"help": "The same; cut from train if not given."})
    separator: str | None = field(default=None, metadata={"help": "Between the columns of csv files; by default ','."})
    encoding: str | None = field(default=None, metadata={"help": "Of the texts in files; by default UTF-8."})
    metrics: list[str] = field(
        default_factory=list, metadata={"help": "What is measured, the first is reported; by default what is usual."}
    )
    latency_batch_size: int = field(default=32, metadata={"help": "Batch size of the latency measurement."})
    latency_length: int | None = field(
        default=None,
        metadata={"help": "Tokens in a sequence of the latency measurement; by default as many as counted."},
    )
    reuse_validation: bool = field(default=False, init=False)
    needs_labels: bool = field(default=True, init=False)
    sample_metric: str | None = field(default=None, init=False)

    @property
    def sequence_length(self) -> int:
        """For how many tokens multiply-adds and latency are counted, where the input may have any length."""
        return PruningConfig.sequence_length

    def load(self, columns: Sequence[str], *, seed: int, label_column: str | None = None) -> DatasetDict:
        """Read the data.

        Args:
            columns: Columns that it must have.
            seed: Draws the splits that it lacks.
            label_column: As for `load_splits`.

        Returns:
            The splits `train`, `validation` and `test`.

        Raises:
            ValueError: As for `load_splits`.
        """
        return load_splits(
            self.dataset,
            config_name=self.dataset_config,
            files=self.files,
            columns=columns,
            label_column=label_column,
            seed=seed,
            reuse_validation=self.reuse_validation,
            separator=self.separator,
            encoding=self.encoding,
        )

    def load_files(self, medium: Medium, *, column: str, label_column: str, seed: int) -> DatasetDict:
        """Read data of pictures or sounds, which stay files.

        Args:
            medium: Which of both.
            column: The column with the files.
            label_column: The column with the labels, or with what is spoken.
            seed: Draws the test split of a data set in an installed package.

        Returns:
            The splits that there are, with these two columns.

        Raises:
            ValueError: As for `load_media`.
        """
        return load_media(
            medium,
            self.dataset,
            config_name=self.dataset_config,
            files=self.files,
            column=column,
            label_column=label_column,
            seed=seed,
            separator=self.separator,
            encoding=self.encoding,
        )

    @property
    def files(self) -> dict[str, str]:
        """The files that the user named, by split."""
        named = {"train": self.train_file, "validation": self.validation_file, "test": self.test_file}
        return {split: file for split, file in named.items() if file}


@dataclass
class SequenceArguments(DataArguments):
    """Data that a tokenizer makes sequences of.

    `--help` of a script describes every field.
    """

    max_length: int = field(
        default=128,
        metadata={"help": "The most tokens in a sequence, also where multiply-adds and latency are counted."},
    )

    @property
    def sequence_length(self) -> int:
        """For how many tokens multiply-adds and latency are counted."""
        return self.max_length


class Arguments(NamedTuple):
    """All arguments of a script.

    Attributes:
        training: How to train.
        model: Which model, and from which teacher it learns.
        data: Which data: the argument class of the task.
        pruning: How to prune.
        method: When to prune.
    """

    training: RecoveryArguments
    model: ModelArguments
    data: Any
    pruning: PruningConfig
    method: MethodArguments


class _Parser(HfArgumentParser):
    """A parser that raises its errors: argparse prints the usage with them, which has a line for each option."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}. See --help.")


def parse(data: type[DataArguments], description: str | None, argv: Sequence[str] | None = None) -> Arguments:
    """Parse the arguments of a script: a command line, which may begin with the name of a YAML or JSON file.

    A file holds values by name. Arguments that follow it on the command line override it.

    Args:
        data: The task's data arguments.
        description: The text at the top of `--help`.
        argv: The command line, by default this process's.

    Returns:
        The arguments.

    Raises:
        ValueError: An argument is not known, lacks its value or has a wrong one; or a file does not hold values by
            name.

    Examples:
        >>> from hfprune.jobs.tasks import DataArguments, parse
        >>> arguments = parse(DataArguments, None, ["--model_name_or_path", "bert-base-uncased", "--sparsity", "0.3"])
        >>> arguments.pruning.sparsity, arguments.method.method
        (0.3, 'before')
    """
    words = words_of(sys.argv[1:] if argv is None else argv)
    groups = (RecoveryArguments, ModelArguments, data, PruningArguments, MethodArguments)
    parser = _Parser(groups, description=description)
    *parsed, rest = parser.parse_args_into_dataclasses(words, return_remaining_strings=True)
    if rest:
        raise ValueError(_unknown(parser, rest))
    training, model, data_arguments, pruning, method = parsed
    if pruning.sequence_length is None:
        pruning.sequence_length = data_arguments.sequence_length
    config = PruningConfig(**asdict(pruning), seed=training.seed)
    return Arguments(training=training, model=model, data=data_arguments, pruning=config, method=method)


def parse_data(data: type[DataArguments], words: Sequence[str], *, others: Sequence[str] = ()) -> DataArguments:
    """Parse the options of a task's data, as the commands take them beside their own.

    Args:
        data: The task's data arguments.
        words: The options.
        others: Options of the command, for the message about one that is misspelt.

    Returns:
        The data arguments.

    Raises:
        ValueError: The task has no such option, or a value is wrong.

    Examples:
        >>> from hfprune.jobs.settings import parse_data
        >>> from hfprune.jobs.tasks import TextArguments
        >>> parse_data(TextArguments, ["--train_file", "texts.csv", "--max-length", "64"]).max_length
        64
    """
    parser = _Parser((data,), description=None)
    arguments, rest = parser.parse_args_into_dataclasses(list(words), return_remaining_strings=True)
    if rest:
        raise ValueError(_unknown(parser, rest, others))
    found: DataArguments = arguments
    return found


def words_of(argv: Sequence[str]) -> list[str]:
    """A command line with the values of the file that it begins with.

    Args:
        argv: The command line, which may begin with the name of a YAML or JSON file.

    Returns:
        The same as words of a command line, those of the file first: argparse lets the last of several values win.

    Raises:
        ValueError: The file does not hold values by name.
    """
    words = list(argv)
    if words and words[0].endswith((".yaml", ".yml", ".json")):
        return [*_words_of_file(Path(words[0])), *words[1:]]
    return words


def _unknown(parser: HfArgumentParser, rest: Sequence[str], others: Sequence[str] = ()) -> str:
    """What is wrong with words that no option takes, and the option that was perhaps meant."""
    name = next((word.partition("=")[0] for word in rest if word.startswith("--")), None)
    if name is None:
        return f"{rest[0]!r} is neither an option nor the value of one. See --help."
    known: list[str] = list(others)
    for action in parser._actions:
        known += action.option_strings
    nearest = difflib.get_close_matches(name.replace("-", "_").replace("__", "--", 1), known, n=1)
    meant = f" Did you mean {nearest[0]}?" if nearest else ""
    return f"there is no option {name}.{meant} See --help."


def _words_of_file(path: Path) -> list[str]:
    """The values of a file as words of a command line, so that one parser checks both."""
    text = path.read_text(encoding="utf-8")
    # JSON may be indented with tabs, which the YAML parser refuses
    values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold names and values, such as `sparsity: 0.5`.")
    words: list[str] = []
    for name, value in values.items():
        # a command line cannot say "nothing", so the default stands
        if value is None or value == []:
            continue
        words.append(f"--{name}")
        words += [str(item) for item in _items(value)]
    return words


def _items(value: object) -> list[object]:
    """The words that follow one name: several for a list, one for everything else."""
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        # TrainingArguments takes dictionaries, such as lr_scheduler_kwargs, as JSON
        return [json.dumps(value)]
    return [value]
