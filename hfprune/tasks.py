"""What the scripts share: their arguments, and a text-classification task ready for Trainer."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hfprune.data import align_labels, label_arguments, load_text_dataset, resolve_model, tokenize
from hfprune.errors import HfpruneError
from hfprune.metrics import compute_metrics_for, default_metrics
from hfprune.recovery.arguments import RecoveryArguments
from hfprune.recovery.trainer import RecoveryTrainer


@dataclass
class ModelArguments:
    """Which model, and whether it must be fine-tuned first."""

    model_name_or_path: str = field(metadata={"help": "Hub name, folder, or minilm-l6 (from an installed package)."})
    dense_epochs: float = field(default=0.0, metadata={"help": "Epochs of dense fine-tuning first; 0: it is done."})
    dense_learning_rate: float = field(default=5e-5, metadata={"help": "Learning rate of the dense fine-tuning."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the model."})
    overwrite: bool = field(default=False, metadata={"help": "Clear what an earlier run left in output_dir."})


@dataclass
class DataArguments:
    """Which data, and what is measured on it."""

    dataset: str | None = field(default=None, metadata={"help": "Hub name, or trec, movie_reviews, sms_spam."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    train_file: str | None = field(default=None, metadata={"help": "csv, tsv, json, jsonl or parquet."})
    validation_file: str | None = field(default=None, metadata={"help": "The same; cut from train if not given."})
    test_file: str | None = field(default=None, metadata={"help": "The same; cut from train if not given."})
    text_column: str = field(default="text", metadata={"help": "Column with the text."})
    pair_column: str | None = field(default=None, metadata={"help": "Column with the second text of a pair."})
    label_column: str = field(default="label", metadata={"help": "Column with the labels; floats: a regression."})
    max_length: int = field(default=128, metadata={"help": "Longer texts are cut to so many tokens."})
    metrics: list[str] = field(default_factory=list, metadata={"help": "The first is reported; accuracy or pearson."})
    latency_batch_size: int = field(default=32, metadata={"help": "Batch size of the latency measurement."})
    latency_length: int = field(default=64, metadata={"help": "Sequence length of the latency measurement."})


@dataclass(frozen=True, kw_only=True)
class TextClassification:
    """Tokenized splits, and what Trainer needs beside a model.

    Attributes:
        source: Where the model is loaded from.
        labels: Arguments of `from_pretrained` for a model that is fine-tuned here; empty if it was before.
        data: Splits `train`, `validation` and `test`, with labels as the model numbers them.
        tokenizer: The model's tokenizer.
        metrics: Names of what is measured.
        compute_metrics: Measures it, for Trainer.
    """

    source: str
    labels: dict[str, Any]
    data: DatasetDict
    tokenizer: PreTrainedTokenizerBase
    metrics: list[str]
    compute_metrics: Callable[[Any], dict[str, float]]

    @classmethod
    def load(cls, model: ModelArguments, data: DataArguments, *, seed: int) -> "TextClassification":
        """Read and tokenize the data; labels get the model's numbers, or the model will be told the data's.

        Args:
            model: Which model.
            data: Which data.
            seed: Of the splits that the data lacks.

        Returns:
            The task.

        Raises:
            ValueError: Data, columns, classes or metrics do not fit.
        """
        named = {"train": data.train_file, "validation": data.validation_file, "test": data.test_file}
        raw = load_text_dataset(
            data.dataset,
            config_name=data.dataset_config,
            files={split: file for split, file in named.items() if file},
            label_column=data.label_column,
            seed=seed,
        )
        source, labels = resolve_model(model.model_name_or_path), {}
        if model.dense_epochs > 0:
            labels = label_arguments(raw, data.label_column)
            classes: int = labels["num_labels"]
        else:
            config = AutoConfig.from_pretrained(source, trust_remote_code=model.trust_remote_code)
            raw, classes = align_labels(raw, config, data.label_column), config.num_labels
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=model.trust_remote_code)
        metrics = data.metrics or default_metrics(classes)
        return cls(
            source=source,
            labels=labels,
            data=tokenize(
                raw,
                tokenizer,
                text_column=data.text_column,
                pair_column=data.pair_column,
                label_column=data.label_column,
                max_length=data.max_length,
            ),
            tokenizer=tokenizer,
            metrics=metrics,
            compute_metrics=compute_metrics_for(metrics, regression=classes == 1),
        )

    @property
    def collator(self) -> DataCollatorWithPadding:
        """Pads a batch."""
        return DataCollatorWithPadding(self.tokenizer)

    def model(self, *, fine_tuned: Path, trust_remote_code: bool) -> PreTrainedModel:
        """The dense model: the one that was fine-tuned here before, if it is there, or the one that was named."""
        done = fine_tuned.is_dir()
        return AutoModelForSequenceClassification.from_pretrained(
            fine_tuned if done else self.source, **({} if done else self.labels), trust_remote_code=trust_remote_code
        )

    def trainer(
        self, model: PreTrainedModel, args: RecoveryArguments, *, teacher: PreTrainedModel | None = None
    ) -> RecoveryTrainer:
        """A trainer on the train split that evaluates on the validation split."""
        return RecoveryTrainer(
            model,
            args,
            teacher=teacher,
            train_dataset=self.data["train"],
            eval_dataset=self.data["validation"],
            data_collator=self.collator,
            processing_class=self.tokenizer,
            compute_metrics=self.compute_metrics,
        )

    def test(self, trainer: RecoveryTrainer) -> dict[str, float]:
        """The metrics of the trainer's model on the test split."""
        found = trainer.evaluate(self.data["test"], metric_key_prefix="test")
        return {name: found[f"test_{name}"] for name in self.metrics}


def clear_earlier_run(output: Path, *, allowed: bool) -> None:
    """Make way for a new run of a script.

    Args:
        output: Its output folder.
        allowed: Whether what an earlier run left there may go. Nothing else in the folder is touched.

    Raises:
        HfpruneError: There is an earlier run, and it may not go.
    """
    names = ("dense", "dense_training", "pruned", "model", "checkpoint-*")
    earlier = [path for name in names for path in sorted(output.glob(name))]
    if earlier and not allowed:
        raise HfpruneError(
            f"{output} holds an earlier run ({', '.join(path.name for path in earlier)}). Choose another output_dir, "
            "go on with --resume_from_checkpoint, or pass --overwrite."
        )
    for path in earlier:
        shutil.rmtree(path)
