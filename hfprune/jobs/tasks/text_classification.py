"""Text classification: one class or one number for a text or a pair of texts."""

from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from hfprune.data.classification import load_text_dataset, tokenize
from hfprune.data.labels import align_labels, label_arguments
from hfprune.data.packages import resolve_model
from hfprune.jobs.settings import ModelArguments, TextArguments
from hfprune.jobs.tasks.task import Task
from hfprune.measuring.metrics import compute_metrics_for, default_metrics


def text_classification(model: ModelArguments, data: TextArguments, *, seed: int) -> Task:
    """Read and tokenize texts; labels get the model's numbers, or the model will be told the data's.

    Args:
        model: Which model.
        data: Which data; float labels make a regression, `pair_column` a task on pairs.
        seed: Of the splits that the data lacks.

    Returns:
        The task.

    Raises:
        ValueError: Data, columns, classes or metrics do not fit.
    """
    raw = load_text_dataset(
        data.dataset, config_name=data.dataset_config, files=data.files, label_column=data.label_column, seed=seed
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
    collator = DataCollatorWithPadding(tokenizer)
    return Task(
        auto_class=AutoModelForSequenceClassification,
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
        collator=collator,
        calibration_collator=collator,
        metrics=metrics,
        compute_metrics=compute_metrics_for(metrics, regression=classes == 1),
    )
