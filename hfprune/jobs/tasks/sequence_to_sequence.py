"""Summaries and translations: a model reads a text and writes another one."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    EvalPrediction,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from hfprune.data.pairs import REFERENCE, pair_columns, tokenize_pairs
from hfprune.jobs.settings import ModelArguments, SequenceArguments
from hfprune.jobs.tasks.padding import WithTeacherColumns
from hfprune.jobs.tasks.registry import register_task
from hfprune.jobs.tasks.task import SampleMetric, Task
from hfprune.measuring.written_texts import (
    check_written_text_metrics,
    scores_of_texts,
    written_text_metrics,
)

#: What texts in the languages of tokenizers with many of them are told apart by.
_TELLS_LANGUAGES = "set_src_lang_special_tokens"
#: Names of the classes of models that write any text; those that recognise speech are called alike.
_WRITE = r"(T5|T5Gemma\d?|[Bb]art|BART|Pegasus|PegasusX|LED|ProphetNet|Mvp|SwitchTransformers)ForConditionalGeneration$"
#: Of models that translate and do nothing else.
_TRANSLATE = r"(M2M100|NllbMoe|FSMT)ForConditionalGeneration$|MarianMTModel$"


@dataclass
class PairArguments(SequenceArguments):
    """Pairs of texts, of which a model reads one and writes the other.

    `--help` of a script describes every field.
    """

    example_file: ClassVar[str] = "train.jsonl"
    trainer_settings: ClassVar[tuple[str, ...]] = ("generation_num_beams",)

    source_column: str = field(default="source", metadata={"help": "Column with the text to read."})
    target_column: str = field(default="target", metadata={"help": "Column with the text to write."})
    source_prefix: str | None = field(
        default=None,
        metadata={"help": "Before every text to read, as T5 needs it; by default as the checkpoint says."},
    )
    source_language: str | None = field(
        default=None,
        metadata={"help": "Of the text to read, as the tokenizer of mBART, NLLB or M2M100 calls it: en_XX, eng_Latn."},
    )
    target_language: str | None = field(default=None, metadata={"help": "Of the text to write, in the same way."})
    max_target_length: int = field(
        default=128, metadata={"help": "The most tokens in a text to write, in the data and where the model writes."}
    )
    bleu_tokenizer: str = field(
        default="13a",
        metadata={"help": "How BLEU splits words: 13a, or as sacrebleu's zh, char, intl ..."},
    )
    latency_batch_size: int = field(default=8, metadata={"help": "Batch size of the latency measurement."})


@dataclass
class SummaryArguments(PairArguments):
    """Texts with their summaries."""

    source_column: str = field(default="text", metadata={"help": "Column with the text."})
    target_column: str = field(default="summary", metadata={"help": "Column with its summary."})
    max_length: int = field(
        default=512,
        metadata={"help": "The most tokens in a text, also where multiply-adds and latency are counted."},
    )


@dataclass
class TranslationArguments(PairArguments):
    """Texts with their translations."""

    source_column: str = field(
        default="source",
        metadata={"help": "Column with the text; where it is missing, source_language of the column translation."},
    )
    target_column: str = field(
        default="target",
        metadata={"help": "Column with its translation; where it is missing, target_language of the same column."},
    )


@register_task("summarization", arguments=SummaryArguments, architectures=_WRITE)
def summarization(model: ModelArguments, data: SummaryArguments, *, seed: int) -> Task:
    """Load texts and summaries. Evaluation lets the model write, and compares by ROUGE.

    Args:
        model: The model, an encoder-decoder such as T5, BART or Pegasus.
        data: The data.
        seed: Draws the splits that the data lacks.

    Returns:
        The task.

    Raises:
        CheckpointError: The model is a pruned checkpoint that `hfprune.load` would refuse.
        MissingDependencyError: rouge-score, or what other metrics need, is not installed.
        ValueError: Model, data, columns, languages or metrics do not fit.

    Examples:
        >>> from datasets import Dataset
        >>> from transformers import T5Config, T5ForConditionalGeneration
        >>> from hfprune.jobs.tasks import ModelArguments, SummaryArguments, summarization
        >>> sizes = {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 1, "num_heads": 4}
        >>> roles = {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}
        >>> t5 = T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer), **sizes, **roles))
        >>> t5.save_pretrained("dense")
        >>> _ = tokenizer.save_pretrained("dense")
        >>> rows = {"text": texts, "summary": [text.split()[1] for text in texts]}
        >>> _ = Dataset.from_dict(rows).to_json("train.jsonl")
        >>> data = SummaryArguments(train_file="train.jsonl", metrics=["exact_match"])
        >>> task = summarization(ModelArguments("dense"), data, seed=0)
        >>> task.data.num_rows, task.metrics
        ({'train': 14, 'validation': 2, 'test': 2}, ['exact_match'])
        >>> tokenizer.decode(task.data["test"][0]["labels"])
        'cat'
    """
    metrics = data.metrics or ["rougeL", "rouge1", "rouge2"]
    of_samples = ["rougeL", "chrf", "exact_match"]
    return _load(model, data, metrics, of_samples, seed=seed, task="summarization")


@register_task("translation", arguments=TranslationArguments, architectures=f"{_WRITE}|{_TRANSLATE}")
def translation(model: ModelArguments, data: TranslationArguments, *, seed: int) -> Task:
    """Load texts and translations. Evaluation lets the model write, and compares by chrF and BLEU.

    Args:
        model: The model, an encoder-decoder such as Marian, mBART, NLLB or T5.
        data: The data: two columns, or a column `translation` with a text in several languages.
        seed: Draws the splits that the data lacks.

    Returns:
        The task.

    Raises:
        CheckpointError: The model is a pruned checkpoint that `hfprune.load` would refuse.
        MissingDependencyError: sacrebleu, or what other metrics need, is not installed.
        ValueError: Model, data, columns, languages or metrics do not fit.

    Examples:
        >>> from datasets import Dataset
        >>> from transformers import T5Config, T5ForConditionalGeneration
        >>> from hfprune.jobs.tasks import ModelArguments, TranslationArguments, translation
        >>> sizes = {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 1, "num_heads": 4}
        >>> roles = {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}
        >>> t5 = T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer), **sizes, **roles))
        >>> t5.save_pretrained("dense")
        >>> _ = tokenizer.save_pretrained("dense")
        >>> pairs = [{"en": text, "yoda": " ".join(reversed(text.split()))} for text in texts]
        >>> _ = Dataset.from_dict({"translation": pairs}).to_json("train.jsonl")
        >>> languages = {"source_language": "en", "target_language": "yoda"}
        >>> data = TranslationArguments(train_file="train.jsonl", metrics=["exact_match"], **languages)
        >>> task = translation(ModelArguments("dense"), data, seed=0)
        >>> tokenizer.decode(task.data["test"][0]["labels"])
        'mouse a hears cat the'
    """
    metrics = data.metrics or ["chrf", "bleu"]
    of_samples = ["chrf", "rougeL", "exact_match"]
    return _load(model, data, metrics, of_samples, seed=seed, task="translation")


def _load(
    model: ModelArguments,
    data: PairArguments,
    metrics: Sequence[str],
    of_samples: Sequence[str],
    *,
    seed: int,
    task: str,
) -> Task:
    """Load the data of one of the two tasks."""
    raw, source_column, target_column = pair_columns(
        data.load([], seed=seed),
        source_column=data.source_column,
        target_column=data.target_column,
        source_language=data.source_language,
        target_language=data.target_language,
    )
    check_written_text_metrics(metrics, raw["test"][target_column][:], bleu_tokenizer=data.bleu_tokenizer)
    source = model.checked_source()
    config = AutoConfig.from_pretrained(source, **model.loading)
    _check_writes(config, model.model_name_or_path)
    tokenizer = AutoTokenizer.from_pretrained(source, **model.loading)
    generation = _set_languages(tokenizer, data.source_language, data.target_language)
    prefix = data.source_prefix
    if prefix is None:
        prefix = _prefix_of(config, task, data)
    tokenized = tokenize_pairs(
        raw,
        tokenizer,
        source_column=source_column,
        target_column=target_column,
        source_prefix=prefix,
        max_length=data.max_length,
        max_target_length=data.max_target_length,
    )
    writing = _Writing(tokenizer=tokenizer, metrics=metrics, bleu_tokenizer=data.bleu_tokenizer)
    collator = WithTeacherColumns(collator=DataCollatorForSeq2Seq(tokenizer))
    return Task(
        auto_class=AutoModelForSeq2SeqLM,
        source=source,
        labels={},
        data=tokenized,
        processor=tokenizer,
        collator=collator,
        calibration_collator=collator,
        metrics=list(metrics),
        compute_metrics=writing.measure,
        sample_metrics={name: writing.of_samples(name) for name in of_samples},
        # the token that the decoder begins with is no part of the text
        generated_length=data.max_target_length + 1,
        generation=generation,
    )


def _check_writes(config: PretrainedConfig, name: str) -> None:
    """Refuse a model that is no encoder-decoder, before its weights are read."""
    if not config.is_encoder_decoder:
        raise ValueError(
            f"{name} is a model of the type {config.model_type}, which does not read one text and write another. Take "
            "an encoder-decoder: T5, BART, mBART, Marian, Pegasus ... A decoder alone is recovered by the task "
            "causal_language_modelling."
        )


def _set_languages(
    tokenizer: PreTrainedTokenizerBase, source_language: str | None, target_language: str | None
) -> dict[str, int]:
    """Tell the languages to a tokenizer with many of them.

    Args:
        tokenizer: The tokenizer; it is changed. One without languages stays as it is.
        source_language: Of the texts to read; None: what the tokenizer says.
        target_language: Of the texts to write; None: what the tokenizer says.

    Returns:
        The settings of generation that make a model write in that language.

    Raises:
        ValueError: The tokenizer does not know a language, or nobody says which one is written.
    """
    if not hasattr(tokenizer, _TELLS_LANGUAGES):
        return {}
    source_language = source_language or tokenizer.src_lang
    target_language = target_language or tokenizer.tgt_lang
    if target_language is None:
        raise ValueError(
            f"{type(tokenizer).__name__} knows many languages: say which are read and written with source_language and "
            "target_language."
        )
    _language_id(tokenizer, source_language)
    number = _language_id(tokenizer, target_language)
    tokenizer.src_lang = source_language
    tokenizer.tgt_lang = target_language
    # most put the language before the text, and the model is made to begin with it; mBART puts it behind, from where
    # the model takes it as the first token of its decoder
    if tokenizer(text_target="")["input_ids"][0] == number:
        return {"forced_bos_token_id": number}
    return {"decoder_start_token_id": number}


def _language_id(tokenizer: PreTrainedTokenizerBase, language: str) -> int:
    """The id of the token of a language."""
    # M2M100 has tokens such as `__en__` for what its users call `en`, and does not count them as special ones
    known: dict[str, int] = dict(getattr(tokenizer, "lang_token_to_id", {}))
    for token in tokenizer.all_special_tokens:
        known[token] = tokenizer.convert_tokens_to_ids(token)
    for token in (language, f"__{language}__"):
        if token in known:
            return int(known[token])
    raise ValueError(
        f"{type(tokenizer).__name__} knows no language {language!r}. Its languages are called as in "
        f"{', '.join(list(known)[-3:])}."
    )


def _prefix_of(config: PretrainedConfig, task: str, data: PairArguments) -> str:
    """What the checkpoint says that stands before every text: T5 was pretrained on several tasks at once."""
    said = getattr(config, "task_specific_params", None) or {}
    name = task
    if data.source_language and data.target_language:
        languages = [language.partition("_")[0] for language in (data.source_language, data.target_language)]
        name = f"{task}_{'_to_'.join(languages)}"
    return str(said.get(name, {}).get("prefix", ""))


@dataclass(frozen=True, kw_only=True)
class _Writing:
    """Measures the texts that a model wrote.

    Attributes:
        tokenizer: Makes texts of token ids.
        metrics: Names of the metrics.
        bleu_tokenizer: What splits texts into words for BLEU.
    """

    tokenizer: PreTrainedTokenizerBase
    metrics: Sequence[str]
    bleu_tokenizer: str

    def texts(self, prediction: EvalPrediction) -> list[str]:
        """The texts that were written."""
        ids = np.asarray(prediction.predictions)
        # Trainer pads with −100, which no tokenizer knows
        ids = np.where(ids < 0, self.tokenizer.pad_token_id, ids)
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def measure(self, prediction: EvalPrediction, rows: Dataset) -> dict[str, float]:
        """The metrics over all texts."""
        references = rows[REFERENCE][:]
        return written_text_metrics(
            self.metrics, self.texts(prediction), references, bleu_tokenizer=self.bleu_tokenizer
        )

    def of_samples(self, name: str) -> SampleMetric:
        """A metric of single texts."""

        def measure(prediction: EvalPrediction, rows: Dataset) -> list[float]:
            return scores_of_texts(name, self.texts(prediction), rows[REFERENCE][:])

        return measure
