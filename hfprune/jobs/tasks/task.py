"""What a task is: its data, how its models are loaded, and how they are trained and measured."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from datasets import Dataset, DatasetDict
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    EvalPrediction,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hfprune.data.models import has_no_weights, load_whole
from hfprune.data.packages import resolve_model
from hfprune.errors import HfpruneError
from hfprune.jobs.settings import ModelArguments
from hfprune.recovery.arguments import RecoveryArguments
from hfprune.recovery.trainer import RecoveryTrainer
from hfprune.scoring import Collator
from hfprune.structure.devices import check_tokens, input_embeddings
from hfprune.structure.examples import check_length

#: From predictions, and the rows that they are for, to metrics by name.
Metrics: TypeAlias = Callable[[EvalPrediction, Dataset], dict[str, float]]
#: From predictions, and the rows that they are for, to one number a sample; higher is better.
SampleMetric: TypeAlias = Callable[[EvalPrediction, Dataset], Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class Task:
    """Data of a task as its model takes it, and everything about it that a Trainer needs beside a model.

    Attributes:
        auto_class: The Auto class that loads its models.
        source: Where the dense model is loaded from: a folder, or a name on the Hub.
        labels: Arguments of `from_pretrained` that tell the model its labels; empty if the model knows them.
        data: The splits `train`, `validation` and `test`, with the labels numbered as in the model.
        processor: What makes the model's inputs, and is saved beside it: a tokenizer, an image processor, a feature
            extractor, or a processor that holds several of them.
        collator: Makes a batch for training and evaluation.
        calibration_collator: Makes a batch for scoring. The same rows give the same batch, in every process.
        metrics: The names of the metrics. The first is the one that results report.
        compute_metrics: Computes them from predictions, and from the rows of the split that was predicted.
        sample_metrics: By name, metrics that give one number a sample, as a comparison of two models with a confidence
            interval needs. The first is the usual one. Empty: the task has none.
        preprocess_logits: Reduces logits and labels to what `compute_metrics` and `sample_metrics` need, so that an
            evaluation does not hold all logits in memory. None: nothing is reduced.
        generated_length: For tasks whose predictions are texts that the model writes: the most tokens of such a text.
            Predictions are then token ids, and not logits.
        generation: Settings of generation that its models get and keep, such as the token that begins texts of a
            language.
        collator_reads_columns: Whether the collator reads columns that the model does not take, such as pictures. If
            not, Trainer drops them.
        is_labelled: Whether the data has the labels that metrics need.
        batch_size: Samples in a batch of a command that only measures.
    """

    auto_class: Any
    source: str
    labels: dict[str, Any]
    data: DatasetDict
    processor: Any
    collator: Collator
    calibration_collator: Collator
    metrics: list[str]
    compute_metrics: Metrics
    sample_metrics: Mapping[str, SampleMetric] = field(default_factory=dict)
    preprocess_logits: Callable[[Any, Any], Any] | None = None
    generated_length: int | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    collator_reads_columns: bool = False
    is_labelled: bool = True
    batch_size: int = 64

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer: the processor itself, or the one that it holds; None for pictures and sounds alone."""
        if isinstance(self.processor, PreTrainedTokenizerBase):
            return self.processor
        return getattr(self.processor, "tokenizer", None)

    def check(self, model: PreTrainedModel) -> None:
        """Refuse texts, read or written, that a model has no positions or no embeddings for.

        Args:
            model: The model.

        Raises:
            ValueError: A text is longer than the model takes, or has a token that the model has no embedding of.
        """
        longest = 0
        largest = 0
        for split in self.data.values():
            # pictures and sounds have none
            if "input_ids" not in split.column_names:
                continue
            for ids in _sequences(split["input_ids"]):
                longest = max(longest, len(ids))
                largest = max(largest, max(ids, default=0))
        check_length(model, longest, option="max_length")
        if self.generated_length is not None:
            # the last token that is written is not read again
            check_length(model, self.generated_length - 1, option="max_target_length")
        check_tokens(model, largest)

    def model(
        self,
        *,
        fine_tuned: Path | None = None,
        loading: Mapping[str, Any] | None = None,
        will_be_fine_tuned: bool = False,
    ) -> PreTrainedModel:
        """Load the dense model.

        Args:
            fine_tuned: The folder where an earlier run keeps a dense model that it fine-tuned. It is preferred.
            loading: Arguments of `from_pretrained` for the model that the user named, as `ModelArguments.loading`.
            will_be_fine_tuned: Whether it is trained before it is used, so that it may begin with a new head, or from
                a folder with a config and no weights: from scratch.

        Returns:
            The fine-tuned model if its folder is there, or else the model that the user named.

        Raises:
            CheckpointError: The checkpoint lacks weights, and the model is used as it is.
        """
        source = self.source
        options = {**(loading or {}), **self.labels}
        if fine_tuned is not None and fine_tuned.is_dir():
            source = str(fine_tuned)
            # its config holds the labels already, and it is no revision of a repository
            options = {"trust_remote_code": options.get("trust_remote_code", False)}
        model: PreTrainedModel
        if not will_be_fine_tuned:
            model = load_whole(self.auto_class, source, **options)
        elif has_no_weights(source):
            config = AutoConfig.from_pretrained(source, **options)
            model = self.auto_class.from_config(config)
        else:
            model = self.auto_class.from_pretrained(source, **options)
        for name, value in self.generation.items():
            setattr(model.generation_config, name, value)
        return model

    def teacher(self, named: ModelArguments, dense: PreTrainedModel) -> PreTrainedModel:
        """The model that a pruned model learns from: the teacher that the user named, or else the dense model.

        Args:
            named: The arguments that name the teacher.
            dense: The dense model.

        Returns:
            The teacher.

        Raises:
            HfpruneError: The teacher has other labels than the dense model, or another vocabulary, or its checkpoint
                lacks weights.
        """
        if named.teacher_model is None:
            return dense
        source = resolve_model(named.teacher_model)
        teacher = load_whole(
            self.auto_class, source, name=named.teacher_model, trust_remote_code=named.trust_remote_code
        )
        _check_labels(named.teacher_model, dense.config, teacher.config)
        tokenizer = self.tokenizer
        if tokenizer is None:
            return teacher
        if not _has_same_vocabulary(source, tokenizer, dense.config, teacher.config):
            raise HfpruneError(
                f"the teacher {named.teacher_model!r} has another vocabulary than the model: it would read other words "
                "in the same token ids. Choose a teacher with the same tokenizer."
            )
        # Larger models of a family may pad their embeddings further. Rows behind the last token stand for no token, and
        # without them the logits of teacher and student have one shape.
        dense_rows = getattr(input_embeddings(dense), "num_embeddings", 0)
        teacher_rows = getattr(input_embeddings(teacher), "num_embeddings", 0)
        if teacher_rows > dense_rows >= len(tokenizer):
            teacher.resize_token_embeddings(dense_rows)
        return teacher

    def trainer(
        self, model: PreTrainedModel, args: RecoveryArguments, *, teacher: PreTrainedModel | None = None
    ) -> RecoveryTrainer:
        """Make a trainer that trains on the train split and evaluates on the validation split.

        Args:
            model: The model to train.
            args: The training arguments.
            teacher: The model to learn from; None trains on the labels alone.

        Returns:
            The trainer.
        """
        args = copy.copy(args)
        if self.collator_reads_columns:
            args.remove_unused_columns = False
        if self.generated_length is not None:
            args.predict_with_generate = True
            args.generation_max_length = args.generation_max_length or self.generated_length
        validation = self.data["validation"]
        return RecoveryTrainer(
            model,
            args,
            teacher=teacher,
            train_dataset=self.data["train"],
            eval_dataset=validation,
            data_collator=self.collator,
            processing_class=self.processor,
            compute_metrics=self._metrics_of(validation),
            preprocess_logits_for_metrics=self.preprocess_logits,
        )

    def _metrics_of(self, rows: Dataset) -> Callable[[EvalPrediction], dict[str, float]]:
        """`compute_metrics` for Trainer, which hands over predictions only."""

        def compute(prediction: EvalPrediction) -> dict[str, float]:
            return self.compute_metrics(prediction, rows)

        return compute

    def test(self, trainer: RecoveryTrainer) -> dict[str, float]:
        """Measure the trainer's model on the test split.

        Args:
            trainer: A trainer that this task made.

        Returns:
            The metrics by name.
        """
        test: Dataset = self.data["test"]
        of_validation = trainer.compute_metrics
        trainer.compute_metrics = self._metrics_of(test)
        try:
            # `predict`, unlike `evaluate`, logs nothing, and early stopping does not count it
            measured = trainer.predict(test, metric_key_prefix="test").metrics
        finally:
            trainer.compute_metrics = of_validation
        return {name: measured[f"test_{name}"] for name in self.metrics}


def choose_metrics(asked: Sequence[str], known: Sequence[str], *, task: str) -> list[str]:
    """The metrics that the user asked for, or else all metrics of the task.

    Args:
        asked: The names that the user gave; empty for all.
        known: The names that the task can measure.
        task: What the task is called in the message.

    Returns:
        The names.

    Raises:
        ValueError: The task cannot measure one of them.

    Examples:
        >>> choose_metrics([], ["perplexity", "loss"], task="causal language modelling")
        ['perplexity', 'loss']
    """
    for name in asked:
        if name not in known:
            raise ValueError(f"unknown metric {name!r} of {task}; these are: {', '.join(known)}.")
    return list(asked or known)


def without_rows(compute: Callable[[EvalPrediction], dict[str, float]]) -> Metrics:
    """Metrics that follow from predictions and labels alone, in the form that a task has them in.

    Args:
        compute: Computes them from predictions.

    Returns:
        The same, as `Task.compute_metrics`.
    """

    def of_predictions(prediction: EvalPrediction, rows: Dataset) -> dict[str, float]:  # noqa: ARG001
        return compute(prediction)

    return of_predictions


def logits_of(outputs: Any) -> Tensor:
    """The logits among what Trainer hands to `preprocess_logits`: a tuple if the model returns more than logits."""
    logits: Tensor = outputs[0] if isinstance(outputs, tuple) else outputs
    return logits


def _sequences(rows: Sequence[Any]) -> Iterator[Sequence[int]]:
    """The token ids of every text; a row of a task with choices holds several texts.

    >>> list(_sequences([[5, 6], [[7], [8, 9]]]))
    [[5, 6], [7], [8, 9]]
    """
    for row in rows:
        if row and isinstance(row[0], Sequence):
            yield from row
        else:
            yield row


def _has_same_vocabulary(
    source: str, tokenizer: PreTrainedTokenizerBase, dense: PretrainedConfig, teacher: PretrainedConfig
) -> bool:
    """Whether both models have the same tokens; as many of them, where the teacher comes without a tokenizer."""
    folder = Path(source)
    # of a folder with weights only, AutoTokenizer would make up an empty tokenizer
    if folder.is_dir() and not any(folder.glob("*token*")):
        return bool(dense.vocab_size == teacher.vocab_size)
    vocabulary = AutoTokenizer.from_pretrained(source).get_vocab()
    return bool(vocabulary == tokenizer.get_vocab())


def _check_labels(teacher_name: str, dense: PretrainedConfig, teacher: PretrainedConfig) -> None:
    """Refuse a teacher with other labels; labels without names (LABEL_0, LABEL_1 ...) fit any of the same number."""
    dense_labels = _label_names(dense)
    teacher_labels = _label_names(teacher)
    if dense_labels == teacher_labels:
        return
    one_is_unnamed = _are_unnamed(dense_labels) or _are_unnamed(teacher_labels)
    if len(dense_labels) == len(teacher_labels) and one_is_unnamed:
        return
    raise HfpruneError(
        f"the teacher {teacher_name!r} has the labels {', '.join(teacher_labels)}, the model has "
        f"{', '.join(dense_labels)}. Both need the same labels in the same order: fine-tune it on the same data."
    )


def _label_names(config: PretrainedConfig) -> list[str]:
    """The names of the labels in the order of their numbers, which a config from JSON may hold as strings."""
    by_number = {int(number): str(name) for number, name in config.id2label.items()}
    return [by_number[number] for number in sorted(by_number)]


def _are_unnamed(names: list[str]) -> bool:
    """Whether the labels have the names that transformers gives where nobody named them."""
    return names == [f"LABEL_{number}" for number in range(len(names))]
