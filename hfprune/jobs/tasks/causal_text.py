"""Causal language modelling: recovery of a decoder from plain text, or from text that the dense model writes."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from datasets import DatasetDict
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, default_data_collator

from hfprune.data.corpus import cut_splits, load_documents, pack, self_generated
from hfprune.jobs.settings import ModelArguments, SequenceArguments
from hfprune.jobs.tasks.next_tokens import METRICS, log_likelihoods, metrics_of_tokens, token_losses
from hfprune.jobs.tasks.registry import register_task
from hfprune.jobs.tasks.task import Task, choose_metrics
from hfprune.structure.batches import Batch

#: A batch of logits over a large vocabulary takes much memory.
_WINDOWS_IN_A_BATCH = 4


@dataclass
class CausalTextArguments(SequenceArguments):
    """Plain text, whose next tokens are predicted."""

    example_file: ClassVar[str] = "train.txt"

    dataset: str | None = field(default=None, metadata={"help": "Hub name, or state_of_the_union."})
    dataset_config: str | None = field(
        default=None,
        metadata={"help": "Configuration of a Hub data set; of state_of_the_union the first year to train on."},
    )
    text_column: str = field(default="text", metadata={"help": "Column with the text; a txt file is one text."})
    max_length: int = field(
        default=256, metadata={"help": "Tokens in a window, also where multiply-adds and latency are counted."}
    )
    self_generated: int = field(
        default=0, metadata={"help": "Instead of texts to learn from: so many windows that the dense model writes."}
    )
    latency_batch_size: int = field(default=4, metadata={"help": "Batch size of the latency measurement."})


@register_task("causal_language_modelling", arguments=CausalTextArguments, architectures=r"(ForCausalLM|LMHeadModel)$")
def causal_language_modelling(model: ModelArguments, data: CausalTextArguments, *, seed: int) -> Task:
    """Load text and pack it into windows of `max_length` tokens. Every token of a window but the first is predicted.

    Where the tokenizer puts BOS, the token that begins texts, in front of every text, every window begins with it.
    The perplexity equals that of `hfprune.perplexity` of these windows, with window = `max_length`. Splits that the
    data lacks are cut from the windows of train. With `self_generated` the dense model writes the windows of train.

    Args:
        model: The model.
        data: The text: txt files as a whole, or a column.
        seed: Draws the splits that the data lacks, and the text that is generated.

    Returns:
        The task.

    Raises:
        ValueError: Data, columns or metrics do not fit, windows have less than two tokens, or there is too little text.
        FileNotFoundError: A named corpus is not installed.

    Examples:
        >>> from datasets import Dataset
        >>> from hfprune.jobs.tasks import CausalTextArguments, ModelArguments, causal_language_modelling
        >>> decoder.save_pretrained("dense")
        >>> _ = tokenizer.save_pretrained("dense")
        >>> _ = Dataset.from_dict({"text": texts * 4}).to_csv("train.csv")
        >>> data = CausalTextArguments(train_file="train.csv", max_length=8)
        >>> task = causal_language_modelling(ModelArguments("dense"), data, seed=0)
        >>> task.data.num_rows, len(task.data["train"][0]["input_ids"]), task.metrics
        ({'train': 39, 'validation': 5, 'test': 5}, 8, ['perplexity', 'loss'])
    """
    metrics = choose_metrics(data.metrics, METRICS, task="causal language modelling")
    if data.max_length < 2:
        raise ValueError(
            f"max_length must be at least 2, got {data.max_length}: tokens are predicted from those before."
        )
    source = model.checked_source()
    tokenizer = AutoTokenizer.from_pretrained(source, **model.loading)
    if data.self_generated:
        windows = _generated_windows(model, source, tokenizer, data, seed)
    else:
        windows = _loaded_windows(tokenizer, data, seed)
    return Task(
        auto_class=AutoModelForCausalLM,
        source=source,
        labels={},
        data=cut_splits(windows, seed),
        processor=tokenizer,
        collator=labelled,
        calibration_collator=labelled,
        metrics=metrics,
        compute_metrics=metrics_of_tokens,
        sample_metrics={"log_likelihood": log_likelihoods},
        preprocess_logits=token_losses,
        batch_size=_WINDOWS_IN_A_BATCH,
    )


def _loaded_windows(tokenizer: PreTrainedTokenizerBase, data: CausalTextArguments, seed: int) -> DatasetDict:
    """The user's text in windows."""
    documents = load_documents(
        data.dataset,
        config_name=data.dataset_config,
        files=data.files,
        text_column=data.text_column,
        seed=seed,
        separator=data.separator,
        encoding=data.encoding,
    )
    return _packed(documents, tokenizer, data)


def _packed(documents: DatasetDict, tokenizer: PreTrainedTokenizerBase, data: CausalTextArguments) -> DatasetDict:
    """Documents in windows; splits of other names, which a data set of the Hub may have, are left out."""
    splits = DatasetDict()
    for name in ("train", "validation", "test"):
        if name in documents:
            splits[name] = documents[name]
    return pack(splits, tokenizer, text_column=data.text_column, max_length=data.max_length, whole=True)


def _generated_windows(
    model: ModelArguments, source: str, tokenizer: PreTrainedTokenizerBase, data: CausalTextArguments, seed: int
) -> DatasetDict:
    """Windows that the dense model writes for train, beside windows of the user's validation and test texts, if any."""
    if data.dataset or data.train_file:
        raise ValueError(
            f"self_generated={data.self_generated} has the dense model write what is learned from, and "
            f"{data.dataset or data.train_file!r} has it too. Drop one of the two; other files may stay."
        )
    windows = DatasetDict()
    if data.files:
        # loading needs a train split, so one of the files stands in for it and is dropped again
        some_file = next(iter(data.files.values()))
        documents = load_documents(
            files={"train": some_file, **data.files},
            text_column=data.text_column,
            separator=data.separator,
            encoding=data.encoding,
        )
        del documents["train"]
        windows = _packed(documents, tokenizer, data)
    writer = AutoModelForCausalLM.from_pretrained(source, **model.loading)
    written = self_generated(writer, tokenizer, samples=data.self_generated, tokens=data.max_length, seed=seed)
    return DatasetDict({"train": written, **windows})


def labelled(rows: list[dict[str, Any]]) -> Batch:
    """Make a batch of windows of one length, with their own tokens as labels.

    Args:
        rows: Rows with `input_ids`.

    Returns:
        The batch.

    Examples:
        >>> labelled([{"input_ids": [5, 6]}, {"input_ids": [7, 8]}])["labels"].tolist()
        [[5, 6], [7, 8]]
    """
    batch: Batch = default_data_collator(rows)
    return {**batch, "labels": batch["input_ids"].clone()}
