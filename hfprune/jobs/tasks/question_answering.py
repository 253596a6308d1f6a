"""Extractive question answering: an answer is a part of a text that comes with the question."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset, DatasetDict
from torch import Tensor
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, EvalPrediction, PreTrainedTokenizerBase

from hfprune.data.questions import QuestionColumns, load_questions
from hfprune.data.windows import tokenize_questions
from hfprune.jobs.settings import ModelArguments, SequenceArguments
from hfprune.jobs.tasks.registry import register_task
from hfprune.jobs.tasks.task import SampleMetric, Task, choose_metrics
from hfprune.measuring.answers import Window, answer_f1, answer_metrics, answer_of, exact_match
from hfprune.structure.batches import Batch

METRICS = ("f1", "exact_match")
#: Where some questions have an answer and others none.
METRICS_OF_BOTH = ("has_answer_f1", "no_answer_f1")


@dataclass
class QuestionArguments(SequenceArguments):
    """Questions, each with a text that holds its answer; as files of SQuAD, or as rows."""

    example_file: ClassVar[str] = "train.json"

    dataset: str | None = field(default=None, metadata={"help": "Hub name (rajpurkar/squad_v2), or news_cloze."})
    train_file: str | None = field(default=None, metadata={"help": "A json file of SQuAD; or json, jsonl, parquet."})
    question_column: str = field(default="question", metadata={"help": "Column with the question."})
    context_column: str = field(default="context", metadata={"help": "Column with the text that holds the answer."})
    answers_column: str = field(
        default="answers", metadata={"help": "Column with the answers: text, and answer_start, a character."}
    )
    max_length: int = field(
        default=384,
        metadata={"help": "Tokens in a window, also where multiply-adds and latency are counted."},
    )
    doc_stride: int = field(default=128, metadata={"help": "Tokens that two windows of a long context share."})
    max_question_length: int = field(default=64, metadata={"help": "Tokens at which longer questions are cut."})
    n_best_size: int = field(default=20, metadata={"help": "First, and last, tokens that are looked at in a window."})
    max_answer_length: int = field(default=30, metadata={"help": "The most tokens of an answer."})
    null_score_diff_threshold: float = field(
        default=0.0,
        metadata={"help": "Where questions may have no answer: by how much its score must be above the best answer's."},
    )
    latency_batch_size: int = field(default=8, metadata={"help": "Batch size of the latency measurement."})


@register_task("question_answering", arguments=QuestionArguments, architectures=r"ForQuestionAnswering(Simple)?$")
def question_answering(model: ModelArguments, data: QuestionArguments, *, seed: int) -> Task:
    """Load questions with their contexts, in windows of `max_length` tokens.

    A sample is a question: all windows of its context have a say in its answer. If a question of the data has no
    answer, as in SQuAD 2.0, models may say that there is none.

    Args:
        model: The model.
        data: The questions.
        seed: Draws the splits that the data lacks; questions about one context stay together.

    Returns:
        The task.

    Raises:
        CheckpointError: The model is a pruned checkpoint that `hfprune.load` would refuse.
        ValueError: Data, columns, answers, metrics or lengths do not fit, or the tokenizer cannot say where a token
            stands in the text.

    Examples:
        >>> import json
        >>> from transformers import BertForQuestionAnswering
        >>> from hfprune.jobs.tasks import ModelArguments, QuestionArguments, question_answering
        >>> BertForQuestionAnswering(dense.config).save_pretrained("dense")
        >>> _ = tokenizer.save_pretrained("dense")
        >>> paragraphs = []
        >>> for text in texts:
        ...     answers = [{"text": text.split()[1], "answer_start": text.index(text.split()[1])}]
        ...     paragraphs.append({"context": text, "qas": [{"question": "the old man", "answers": answers}]})
        >>> with open("train.json", "w") as file:
        ...     json.dump({"version": "1.1", "data": [{"title": "", "paragraphs": paragraphs}]}, file)
        >>> data = QuestionArguments(train_file="train.json", max_length=16, doc_stride=2, max_question_length=4)
        >>> task = question_answering(ModelArguments("dense"), data, seed=0)
        >>> task.data.num_rows, task.metrics
        ({'train': 14, 'validation': 2, 'test': 2}, ['f1', 'exact_match'])
    """
    questions = load_questions(
        data.dataset,
        config_name=data.dataset_config,
        files=data.files,
        columns=QuestionColumns(
            question=data.question_column, context=data.context_column, answers=data.answers_column
        ),
        seed=seed,
        reuse_validation=data.reuse_validation,
        encoding=data.encoding,
    )
    metrics = choose_metrics(data.metrics, _metrics_of(questions), task="question answering on this data")
    if data.n_best_size < 1 or data.max_answer_length < 1:
        raise ValueError(
            f"n_best_size and max_answer_length must be at least 1, got {data.n_best_size} and "
            f"{data.max_answer_length}."
        )
    source = model.checked_source()
    tokenizer = AutoTokenizer.from_pretrained(source, **model.loading)
    windows = tokenize_questions(
        questions,
        tokenizer,
        max_length=data.max_length,
        doc_stride=data.doc_stride,
        max_question_length=data.max_question_length,
    )
    reader = _Reader(
        n_best=data.n_best_size,
        max_tokens=data.max_answer_length,
        may_be_unanswerable=any(not all(split["texts"]) for split in questions.values()),
        threshold=data.null_score_diff_threshold,
    )
    labels: dict[str, Any] = {}
    if model.dense_epochs > 0:
        # one number each for the first and for the last token; the config may have been one of classes
        labels = {"num_labels": 2}
    collator = _Collator(tokenizer)
    return Task(
        auto_class=AutoModelForQuestionAnswering,
        source=source,
        labels=labels,
        data=windows,
        processor=tokenizer,
        collator=collator,
        calibration_collator=collator,
        metrics=metrics,
        compute_metrics=reader.metrics,
        sample_metrics={"f1": reader.each(answer_f1), "exact_match": reader.each(exact_match)},
        preprocess_logits=_start_and_end,
    )


def _metrics_of(questions: DatasetDict) -> list[str]:
    """The metrics that validation and test split both have."""
    known = list(METRICS)
    if all(_has_both(questions[split]) for split in ("validation", "test")):
        known += METRICS_OF_BOTH
    return known


def _has_both(questions: Dataset) -> bool:
    """Whether some questions have an answer and others none."""
    has_answer = {len(texts) > 0 for texts in questions["texts"]}
    return len(has_answer) == 2


@dataclass(frozen=True)
class _Collator:
    """Makes a batch of windows, padded on the right whatever the tokenizer does: positions count from the left.

    Attributes:
        tokenizer: The model's tokenizer.
    """

    tokenizer: PreTrainedTokenizerBase

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        taken = (*self.tokenizer.model_input_names, "start_positions", "end_positions")
        inputs = []
        for row in rows:
            inputs.append({name: row[name] for name in taken if name in row})
        # told to be silent, as it would say that padding while tokenizing is faster
        batch = self.tokenizer.pad(inputs, padding_side="right", return_tensors="pt", verbose=False)
        return dict(batch)


def _start_and_end(outputs: Any, labels: Any) -> tuple[Tensor, Tensor]:  # noqa: ARG001 (Trainer passes both)
    """The logits of the first and of the last token; some models return hidden states too."""
    start, end, *_ = outputs
    return start, end


@dataclass(frozen=True, kw_only=True)
class _Reader:
    """Reads answers out of contexts, as the logits of all their windows say.

    Attributes:
        n_best: As for `answer_of`.
        max_tokens: As for `answer_of`.
        may_be_unanswerable: As for `answer_of`.
        threshold: As for `answer_of`.
    """

    n_best: int
    max_tokens: int
    may_be_unanswerable: bool
    threshold: float

    def answers(self, prediction: EvalPrediction, rows: Dataset) -> tuple[list[str], list[list[str]]]:
        """An answer for each question, and the right answers, in the order of the questions."""
        windows: dict[int, list[Window]] = {}
        contexts: dict[int, str] = {}
        rights: dict[int, list[str]] = {}
        starts, ends = prediction.predictions
        for row, start, end in zip(rows, starts, ends, strict=True):
            offsets = np.array(row["offset_mapping"])
            # behind them is padding
            tokens = len(offsets)
            question = row["example_id"]
            window = Window(
                start_logits=start[:tokens], end_logits=end[:tokens], offsets=offsets, no_answer=row["no_answer"]
            )
            windows.setdefault(question, []).append(window)
            contexts[question] = row["context"]
            rights[question] = row["answers"]
        answers = []
        for question, of_question in windows.items():
            answer = answer_of(
                of_question,
                contexts[question],
                n_best=self.n_best,
                max_tokens=self.max_tokens,
                may_be_unanswerable=self.may_be_unanswerable,
                threshold=self.threshold,
            )
            answers.append(answer)
        return answers, [rights[question] for question in windows]

    def metrics(self, prediction: EvalPrediction, rows: Dataset) -> dict[str, float]:
        """As `Task.compute_metrics`."""
        return answer_metrics(*self.answers(prediction, rows))

    def each(self, measure: Callable[[str, list[str]], float]) -> SampleMetric:
        """A metric of a single answer as a metric of single samples."""

        def of_questions(prediction: EvalPrediction, rows: Dataset) -> list[float]:
            answers, rights = self.answers(prediction, rows)
            return [measure(*pair) for pair in zip(answers, rights, strict=True)]

        return of_questions
