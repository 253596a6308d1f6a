"""A task: its data, and what of a model and a Trainer it takes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hfprune.data.packages import resolve_model
from hfprune.errors import HfpruneError
from hfprune.jobs.settings import ModelArguments
from hfprune.recovery.arguments import RecoveryArguments
from hfprune.recovery.trainer import RecoveryTrainer
from hfprune.scoring import Collator
from hfprune.structure.devices import input_embeddings


@dataclass(frozen=True, kw_only=True)
class Task:
    """Tokenized splits, and what Trainer needs beside a model.

    Attributes:
        auto_class: The Auto class of its models.
        source: Where the dense model is loaded from.
        labels: Arguments of `from_pretrained` for a model that is fine-tuned here; empty if it was before.
        data: Splits `train`, `validation` and `test`, with labels as the model numbers them.
        tokenizer: The model's tokenizer.
        collator: Makes a batch for training and evaluation.
        calibration_collator: Makes a batch for scoring: the same one for the same rows, in every process.
        metrics: Names of what is measured.
        compute_metrics: Measures it, for Trainer.
        preprocess_logits: Of logits and labels, what `compute_metrics` reads; None: the logits.
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

    def model(self, *, fine_tuned: Path, trust_remote_code: bool = False) -> PreTrainedModel:
        """The dense model: the one that was fine-tuned here before, if it is there, or the one that was named."""
        done = fine_tuned.is_dir()
        model: PreTrainedModel = self.auto_class.from_pretrained(
            fine_tuned if done else self.source, **({} if done else self.labels), trust_remote_code=trust_remote_code
        )
        return model

    def teacher(self, named: ModelArguments, dense: PreTrainedModel) -> PreTrainedModel:
        """What a pruned model learns from: the teacher that was named, or else the dense model.

        Args:
            named: Which models.
            dense: The dense model.

        Returns:
            The teacher.

        Raises:
            HfpruneError: It has other labels than the dense model, or another vocabulary.
        """
        if named.teacher_model is None:
            return dense
        source = resolve_model(named.teacher_model)
        teacher: PreTrainedModel = self.auto_class.from_pretrained(source, trust_remote_code=named.trust_remote_code)
        mine, theirs = _labels_of(dense.config), _labels_of(teacher.config)
        if mine != theirs and (len(mine) != len(theirs) or not (_unnamed(mine) or _unnamed(theirs))):
            raise HfpruneError(
                f"the teacher {named.teacher_model!r} has the labels {', '.join(theirs)}, the model has "
                f"{', '.join(mine)}. Both need the same labels in the same order: fine-tune it on the same data."
            )
        if not self._reads_alike(source, dense.config, teacher.config):
            raise HfpruneError(
                f"the teacher {named.teacher_model!r} has another vocabulary than the model: it would read other words "
                "in the same token ids. Choose a teacher with the same tokenizer."
            )
        rows, more = (getattr(input_embeddings(one), "num_embeddings", 0) for one in (dense, teacher))
        if more > rows >= len(self.tokenizer):
            teacher.resize_token_embeddings(rows)  # those that only it has are behind all tokens
        return teacher

    def _reads_alike(self, source: str, dense: PretrainedConfig, teacher: PretrainedConfig) -> bool:
        folder = Path(source)
        if folder.is_dir() and not any(
            folder.glob("*token*")
        ):  # weights only: AutoTokenizer would make up an empty one
            return bool(dense.vocab_size == teacher.vocab_size)
        return bool(AutoTokenizer.from_pretrained(source).get_vocab() == self.tokenizer.get_vocab())

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
            preprocess_logits_for_metrics=self.preprocess_logits,
        )

    def test(self, trainer: RecoveryTrainer) -> dict[str, float]:
        """The metrics of the trainer's model on the test split. Nothing is logged and no callback counts it."""
        test: Dataset = self.data["test"]
        found = trainer.predict(test, metric_key_prefix="test").metrics
        return {name: found[f"test_{name}"] for name in self.metrics}


def _labels_of(config: PretrainedConfig) -> list[str]:
    """Names of the labels by number."""
    return [str(name) for _, name in sorted((int(number), name) for number, name in config.id2label.items())]


def _unnamed(names: list[str]) -> bool:
    return all(name == f"LABEL_{i}" for i, name in enumerate(names))
