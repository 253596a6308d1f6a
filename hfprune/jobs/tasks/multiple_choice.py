"""Multiple choice: a question, and answers to choose from."""

from dataclasses import dataclass, field
from typing import ClassVar

from transformers import AutoModelForMultipleChoice, AutoTokenizer, DataCollatorForMultipleChoice

from hfprune.data.choices import ChoiceColumns, read_choices, tokenize_choices
from hfprune.jobs.settings import ModelArguments, SequenceArguments
from hfprune.jobs.tasks.registry import register_task
from hfprune.jobs.tasks.samples import sample_metrics_for
from hfprune.jobs.tasks.task import Task, choose_metrics, without_rows
from hfprune.measuring.metrics import compute_metrics_for

METRICS = ("accuracy",)


@dataclass
class ChoiceArguments(SequenceArguments):
    """Questions, each with answers to choose from, of which one is right."""

    example_file: ClassVar[str] = "train.jsonl"

    dataset: str | None = field(default=None, metadata={"help": "Hub name, or movie_replies."})
    question_column: str = field(default="question", metadata={"help": "Column with the question."})
    context_column: str | None = field(
        default=None, metadata={"help": "Column with a text that the question is about, if there is one."}
    )
    choices_column: str = field(default="choices", metadata={"help": "Column with the list of choices."})
    choice_columns: list[str] = field(
        default_factory=list, metadata={"help": "Instead of it: columns with one choice each, such as ending0 ending1."}
    )
    label_column: str = field(
        default="label", metadata={"help": "Column with the right choice: its name, letter, or number from 0."}
    )


@register_task("multiple_choice", arguments=ChoiceArguments, architectures=r"ForMultipleChoice$")
def multiple_choice(model: ModelArguments, data: ChoiceArguments, *, seed: int) -> Task:
    """Load and tokenize questions with answers to choose from.

    Args:
        model: The model.
        data: The questions.
        seed: Draws the splits that the data lacks.

    Returns:
        The task.

    Raises:
        CheckpointError: The model is a pruned checkpoint that `hfprune.load` would refuse.
        ValueError: Data, columns, choices, labels or metrics do not fit.

    Examples:
        >>> from datasets import Dataset
        >>> from transformers import BertForMultipleChoice
        >>> from hfprune.jobs.tasks import ChoiceArguments, ModelArguments, multiple_choice
        >>> BertForMultipleChoice(dense.config).save_pretrained("dense")
        >>> _ = tokenizer.save_pretrained("dense")
        >>> rows = [{"question": text, "choices": ["a mouse", "the old man"], "label": "B"} for text in texts]
        >>> _ = Dataset.from_list(rows).to_json("train.jsonl")
        >>> data = ChoiceArguments(train_file="train.jsonl", max_length=16)
        >>> task = multiple_choice(ModelArguments("dense"), data, seed=0)
        >>> task.data.num_rows, task.metrics
        ({'train': 14, 'validation': 2, 'test': 2}, ['accuracy'])
        >>> {name: tuple(value.shape) for name, value in task.collator(list(task.data["test"])).items()}
        {'input_ids': (2, 2, 8), 'attention_mask': (2, 2, 8), 'labels': (2,)}
    """
    metrics = choose_metrics(data.metrics, METRICS, task="multiple choice")
    columns = ChoiceColumns(
        question=data.question_column,
        choices=data.choice_columns or [data.choices_column],
        label=data.label_column,
        context=data.context_column,
    )
    if len(data.choice_columns) == 1:
        raise ValueError(
            f"choice_columns names one column, {data.choice_columns[0]}: a column with a list of choices is "
            "choices_column."
        )
    raw = data.load(columns.names, seed=seed, label_column=columns.label)
    questions = read_choices(raw, columns)
    source = model.checked_source()
    tokenizer = AutoTokenizer.from_pretrained(source, **model.loading)
    collator = DataCollatorForMultipleChoice(tokenizer)
    return Task(
        auto_class=AutoModelForMultipleChoice,
        source=source,
        labels={},
        data=tokenize_choices(questions, tokenizer, max_length=data.max_length),
        processor=tokenizer,
        collator=collator,
        calibration_collator=collator,
        metrics=metrics,
        compute_metrics=without_rows(compute_metrics_for(metrics)),
        sample_metrics=sample_metrics_for(),
    )
