"""What a task is: its data, how its models are loaded, and how they are trained and measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from torch import Tensor
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hfprune.data.models import load_whole
from hfprune.data.packages import resolve_model
from hfprune.errors import HfpruneError
from hfprune.jobs.settings import ModelArguments
from hfprune.recovery.arguments import RecoveryArguments
from hfprune.recovery.trainer import RecoveryTrainer
from hfprune.scoring import Collator
from hfprune.structure.devices import input_embeddings


@dataclass(frozen=True, kw_only=True)
class Task:
    """Tokenized data of a task, and everything about it that a Trainer needs beside a model.

    Attributes:
        auto_class: The Auto class that loads its models.
        source: Where the dense model is loaded from: a folder, or a name on the Hub.
        labels: Arguments of `from_pretrained` that tell the model its labels; empty if the model knows them.
        data: The splits `train`, `validation` and `test`, with the labels numbered as in the model.
        tokenizer: The model's tokenizer.
        collator: Makes a batch for training and evaluation.
        calibration_collator: Makes a batch for scoring. The same rows give the same batch, in every process.
        metrics: The names of the metrics. The first is the one that results report.
        compute_metrics: Computes them from predictions, for Trainer.
        preprocess_logits: Reduces logits and labels to what `compute_metrics` needs, so that an evaluation does not
            hold all logits in memory. None: nothing is reduced.
    """

    auto_class: Any
    source: str
    labels: dict[str, Any]
    data: DatasetDict
    tokenizer: PreTrainedTokenizerBase
    collator: Collator
    calibration_collator: Collator
    metrics: list[str]
    compute_metrics: Callable[[Any], dict[str, float]]
    preprocess_logits: Callable[[Any, Any], Any] | None = None

    def model(
        self, *, fine_tuned: Path, trust_remote_code: bool = False, will_be_fine_tuned: bool = False
    ) -> PreTrainedModel:
        """Load the dense model.

        Args:
            fine_tuned: The folder where an earlier run keeps a dense model that it fine-tuned. It is preferred.
            trust_remote_code: Whether code that comes with the model may run.
            will_be_fine_tuned: Whether it is trained before it is used, so that it may begin with a new head.

        Returns:
            The fine-tuned model if its folder is there, or else the model that the user named.

        Raises:
            CheckpointError: The checkpoint lacks weights, and the model is used as it is.
        """
        if fine_tuned.is_dir():
            source: str | Path = fine_tuned
            # its config holds the labels already
            labels: dict[str, Any] = {}
        else:
            source = self.source
            labels = self.labels
        if not will_be_fine_tuned:
            return load_whole(self.auto_class, str(source), **labels, trust_remote_code=trust_remote_code)
        model: PreTrainedModel = self.auto_class.from_pretrained(source, **labels, trust_remote_code=trust_remote_code)
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
        if not self._has_same_vocabulary(source, dense.config, teacher.config):
            raise HfpruneError(
                f"the teacher {named.teacher_model!r} has another vocabulary than the model: it would read other words "
                "in the same token ids. Choose a teacher with the same tokenizer."
            )
        # Larger models of a family may pad their embeddings further. Rows behind the last token stand for no token, and
        # without them the logits of teacher and student have one shape.
        dense_rows = getattr(input_embeddings(dense), "num_embeddings", 0)
        teacher_rows = getattr(input_embeddings(teacher), "num_embeddings", 0)
        if teacher_rows > dense_rows >= len(self.tokenizer):
            teacher.resize_token_embeddings(dense_rows)
        return teacher

    def _has_same_vocabulary(self, source: str, dense: PretrainedConfig, teacher: PretrainedConfig) -> bool:
        """Whether both models have the same tokens; as many of them, where the teacher comes without a tokenizer."""
        folder = Path(source)
        # of a folder with weights only, AutoTokenizer would make up an empty tokenizer
        if folder.is_dir() and not any(folder.glob("*token*")):
            return bool(dense.vocab_size == teacher.vocab_size)
        vocabulary = AutoTokenizer.from_pretrained(source).get_vocab()
        return bool(vocabulary == self.tokenizer.get_vocab())

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
        return RecoveryTrainer(
            model,
            args,
            teacher=teacher,
            train_dataset=self.data["train"],
            eval_dataset=self.data["validation"],
            data_collator=self.collator,
            processing_class=self.tokenizer,
            compute_metrics=self.compute_metrics,
            preprocess_logits_for_metrics=self.preprocess_logits,
        )

    def test(self, trainer: RecoveryTrainer) -> dict[str, float]:
        """Measure the trainer's model on the test split.

        Args:
            trainer: A trainer that this task made.

        Returns:
            The metrics by name.
        """
        test: Dataset = self.data["test"]
        # `predict`, unlike `evaluate`, logs nothing, and early stopping does not count it
        measured = trainer.predict(test, metric_key_prefix="test").metrics
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


def logits_of(outputs: Any) -> Tensor:
    """The logits among what Trainer hands to `preprocess_logits`: a tuple if the model returns more than logits."""
    logits: Tensor = outputs[0] if isinstance(outputs, tuple) else outputs
    return logits


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
