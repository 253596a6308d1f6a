"""Chat: recovery of a decoder from conversations, of which only what the assistant says is learned."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from hfprune.data.conversations import tokenize_conversations
from hfprune.jobs.settings import ModelArguments, SequenceArguments
from hfprune.jobs.tasks.next_tokens import METRICS, log_likelihoods, metrics_of_tokens, token_losses
from hfprune.jobs.tasks.padding import WithTeacherColumns, filled
from hfprune.jobs.tasks.registry import register_task
from hfprune.jobs.tasks.task import Task, choose_metrics
from hfprune.structure.batches import Batch

#: A batch of logits over a large vocabulary takes much memory.
_CONVERSATIONS_IN_A_BATCH = 4


@dataclass
class ChatArguments(SequenceArguments):
    """Conversations between a user and an assistant.

    `--help` of a script describes every field.
    """

    example_file: ClassVar[str] = "train.jsonl"

    messages_column: str = field(
        default="messages", metadata={"help": "Column with a list of messages, each with role and content."}
    )
    chat_template: str | None = field(
        default=None, metadata={"help": "File with a chat template, in place of the tokenizer's own."}
    )
    max_length: int = field(
        default=1024,
        metadata={"help": "The most tokens of a conversation, also where multiply-adds and latency are counted."},
    )
    latency_batch_size: int = field(default=1, metadata={"help": "Batch size of the latency measurement."})


@register_task("chat", arguments=ChatArguments)
def chat(model: ModelArguments, data: ChatArguments, *, seed: int) -> Task:
    """Load conversations and write them out by the chat template. Only the assistant's tokens are learned and measured.

    Conversations are not packed into windows: each is a row, and longer ones end with a whole turn of the assistant.

    Args:
        model: The model, a chat model.
        data: The data.
        seed: Draws the splits that the data lacks.

    Returns:
        The task.

    Raises:
        CheckpointError: The model is a pruned checkpoint that `hfprune.load` would refuse.
        ValueError: Data, columns, template or metrics do not fit.

    Examples:
        >>> from datasets import Dataset
        >>> from hfprune.jobs.tasks import ChatArguments, ModelArguments, chat
        >>> decoder.save_pretrained("dense")
        >>> tokenizer.chat_template = "{% for m in messages %}[BOS] {{ m['content'] }} {% endfor %}"
        >>> _ = tokenizer.save_pretrained("dense")
        >>> roles = ("user", "assistant")
        >>> pairs = [text.split(" ", 3) for text in texts]
        >>> rows = [[dict(role=role, content=word) for role, word in zip(roles, pair)] for pair in pairs]
        >>> _ = Dataset.from_dict({"messages": rows}).to_json("train.jsonl")
        >>> task = chat(ModelArguments("dense"), ChatArguments(train_file="train.jsonl"), seed=0)
        >>> task.data.num_rows, task.metrics
        ({'train': 14, 'validation': 2, 'test': 2}, ['perplexity', 'loss'])
        >>> row = task.data["test"][0]
        >>> tokenizer.decode(row["input_ids"]), row["labels"].count(-100)
        ('[BOS] the [BOS] cat', 2)
    """
    metrics = choose_metrics(data.metrics, METRICS, task="chat")
    raw = data.load([data.messages_column], seed=seed)
    source = model.checked_source()
    tokenizer = AutoTokenizer.from_pretrained(source, **model.loading)
    if data.chat_template is not None:
        tokenizer.chat_template = _template_in(data.chat_template)
    tokenized = tokenize_conversations(raw, tokenizer, messages_column=data.messages_column, max_length=data.max_length)
    collator = WithTeacherColumns(collator=_Collator(padding=_padding_of(tokenizer)))
    return Task(
        auto_class=AutoModelForCausalLM,
        source=source,
        labels={},
        data=tokenized,
        processor=tokenizer,
        collator=collator,
        calibration_collator=collator,
        metrics=metrics,
        compute_metrics=metrics_of_tokens,
        sample_metrics={"log_likelihood": log_likelihoods},
        preprocess_logits=token_losses,
        batch_size=_CONVERSATIONS_IN_A_BATCH,
    )


def _template_in(file: str) -> str:
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"chat_template={file!r} is no file. Name one that holds a template in Jinja.")
    return path.read_text(encoding="utf-8")


def _padding_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that fills up shorter rows, where the mask is 0 and so no model looks."""
    for number in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if number is not None:
            return int(number)
    return 0


@dataclass(frozen=True, kw_only=True)
class _Collator:
    """Fills up conversations to one length, at the right: at the left, as chat tokenizers do, positions would shift.

    Attributes:
        padding: The id of the tokens that are filled in.
    """

    padding: int

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        fillings = {"input_ids": self.padding, "attention_mask": 0, "labels": -100}
        batch: Batch = {}
        for name, filling in fillings.items():
            # a teacher that only reads gets no labels
            if name not in rows[0]:
                continue
            batch[name] = filled([row[name] for row in rows], filling)
        return batch
