"""Speech recognition: the text that is spoken in a sound, frame by frame (CTC) or written word by word."""

import importlib.util
import logging
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset, DatasetDict, concatenate_datasets
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCTC,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    EvalPrediction,
    PretrainedConfig,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CTC_MAPPING,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
)

from hfprune.data.loading import with_splits
from hfprune.data.media import SOUNDS
from hfprune.data.sounds import check_sounds, seconds_of
from hfprune.errors import MissingDependencyError
from hfprune.jobs.settings import DataArguments, ModelArguments
from hfprune.jobs.tasks.audio import Sounds, check_seconds, without_layerdrop
from hfprune.jobs.tasks.padding import filled
from hfprune.jobs.tasks.registry import register_task
from hfprune.jobs.tasks.task import Task, choose_metrics, logits_of
from hfprune.structure.batches import Batch

logger = logging.getLogger(__name__)
METRICS = ("wer", "cer")
_LABELS = "labels"
_TYPESET_APOSTROPHE = "\N{RIGHT SINGLE QUOTATION MARK}"
#: What the loss does not count.
_IGNORED = -100

#: Names of the classes; many end as those of models that write texts from texts do.
_RECOGNISERS = rf"ForCTC$|({'|'.join(map(str, MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES.values()))})$"


@dataclass
class SpeechArguments(DataArguments):
    """Sounds with what is spoken in them.

    `--help` of a script describes every field.
    """

    example_file: ClassVar[str] = "train.jsonl"

    dataset: str | None = field(default=None, metadata={"help": "Hub name, or phone_prompts (from make data)."})
    train_file: str | None = field(
        default=None, metadata={"help": "csv, jsonl ... with names of sound files, relative to it, and their texts."}
    )
    audio_column: str = field(default="audio", metadata={"help": "Column with the sounds, or with their files."})
    text_column: str = field(default="text", metadata={"help": "Column with what is spoken."})
    max_seconds: float = field(
        default=30.0, metadata={"help": "Longer sounds are left out; Whisper takes no more than 30 seconds."}
    )
    max_target_length: int = field(
        default=225, metadata={"help": "The most tokens that a model such as Whisper writes."}
    )
    language: str | None = field(
        default=None, metadata={"help": "What is spoken, for a Whisper of many languages, such as english."}
    )
    plain_texts: bool = field(
        default=True, metadata={"help": "Measure without capitals and punctuation; false: letter by letter."}
    )
    latency_batch_size: int = field(default=8, metadata={"help": "Batch size of the latency measurement."})


@register_task("speech_recognition", arguments=SpeechArguments, architectures=_RECOGNISERS)
def speech_recognition(model: ModelArguments, data: SpeechArguments, *, seed: int) -> Task:
    r"""Load sounds and what is spoken in them. The model's processor makes a batch of them when it is needed.

    A model with a CTC head (wav2vec2, HuBERT) is measured by the likeliest token of every frame. One that writes
    (Whisper) is measured by what it writes without a search. The word error rate (`wer`) and the character error rate
    (`cer`) are those of the package jiwer.

    Args:
        model: The model.
        data: The data: a table with names of files and texts, or a data set with columns of sounds and texts.
        seed: Draws the splits that the data lacks.

    Returns:
        The task.

    Raises:
        CheckpointError: The model is a pruned checkpoint that `hfprune.load` would refuse.
        MissingDependencyError: jiwer is not installed; or a file is no wav file, and soundfile is not installed.
        OSError: The model has no processor beside it.
        ValueError: Data, columns or metrics do not fit, a text is empty or too long, a file is no sound, or the model
            recognises no speech.

    Examples:
        >>> import json
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from scipy.io import wavfile
        >>> from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC
        >>> from transformers import Wav2Vec2Processor
        >>> from hfprune.jobs.tasks import ModelArguments, SpeechArguments, speech_recognition
        >>> sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": 1}
        >>> sizes |= {"conv_dim": [8], "conv_kernel": [10], "conv_stride": [5], "num_feat_extract_layers": 1}
        >>> config = Wav2Vec2Config(vocab_size=5, num_conv_pos_embedding_groups=2, **sizes)
        >>> Wav2Vec2ForCTC(config).save_pretrained("dense")
        >>> _ = Path("vocab.json").write_text(json.dumps({"<pad>": 0, "<unk>": 1, "|": 2, "y": 3, "o": 4}))
        >>> letters = Wav2Vec2CTCTokenizer("vocab.json", bos_token=None, eos_token=None)
        >>> _ = Wav2Vec2Processor(Wav2Vec2FeatureExtractor(sampling_rate=8000), letters).save_pretrained("dense")
        >>> rows = []
        >>> for number in range(20):
        ...     wavfile.write(f"{number}.wav", 8000, (9000 * np.sin(np.arange(800) * number)).astype(np.int16))
        ...     rows.append({"audio": f"{number}.wav", "text": "yo yo"})
        >>> _ = Path("train.jsonl").write_text("\n".join(map(json.dumps, rows)))
        >>> task = speech_recognition(ModelArguments("dense"), SpeechArguments(train_file="train.jsonl"), seed=0)
        >>> task.metrics, task.data["test"][0]["labels"]
        (['wer', 'cer'], [3, 4, 2, 3, 4])
    """
    check_jiwer()
    check_seconds(data.max_seconds)
    metrics = choose_metrics(data.metrics, METRICS, task="speech recognition")
    source = model.checked_source()
    config = AutoConfig.from_pretrained(source, **model.loading)
    writes = _writes(config, model.model_name_or_path)
    processor = _load_processor(source, model)
    generation: dict[str, Any] = {}
    if data.language is not None:
        _set_language(processor.tokenizer, data.language)
        generation = {"language": data.language, "task": "transcribe"}
    raw = data.load_files(SOUNDS, column=data.audio_column, label_column=data.text_column, seed=seed)
    check_sounds(raw, data.audio_column)
    short = _without_long(raw, data)
    most_tokens = data.max_target_length if writes else None
    joined = _with_tokens(short, processor.tokenizer, data.text_column, most=most_tokens)
    splits = with_splits(joined, seed, reuse_validation=data.reuse_validation)
    measured = _ErrorRates(processor.tokenizer, data.text_column, plain=data.plain_texts, writes=writes)
    collator = _Collator(
        Sounds(processor.feature_extractor, data.audio_column, data.max_seconds),
        first=config.decoder_start_token_id if writes else None,
    )
    return Task(
        auto_class=AutoModelForSpeechSeq2Seq if writes else AutoModelForCTC,
        source=source,
        labels=_config_changes(source, model, processor.tokenizer, writes=writes),
        data=splits,
        processor=processor,
        collator=collator,
        calibration_collator=collator,
        metrics=metrics,
        compute_metrics=measured.of_all,
        sample_metrics={"negative_wer": measured.words_of_each, "negative_cer": measured.characters_of_each},
        preprocess_logits=None if writes else _likeliest_tokens,
        generated_length=most_tokens,
        collator_reads_columns=True,
        generation=generation,
    )


def check_jiwer() -> None:
    """Find out before anything else whether error rates can be measured.

    Raises:
        MissingDependencyError: Jiwer is not installed; the message has the command that installs it.
    """
    if importlib.util.find_spec("jiwer") is None:
        raise MissingDependencyError(
            "error rates of texts are measured by jiwer, which is not installed. Run: pip install 'hfprune[speech]'"
        )


def _writes(config: PretrainedConfig, name: str) -> bool:
    """Whether a model writes texts, as Whisper does; else it has a CTC head."""
    architectures = config.architectures or []
    if any(architecture.endswith("ForCTC") for architecture in architectures):
        return False
    if type(config) in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING:
        return True
    if type(config) in MODEL_FOR_CTC_MAPPING:
        return False
    raise ValueError(
        f"{name} is a {config.model_type}, which recognises no speech by AutoModelForCTC or AutoModelForSpeechSeq2Seq. "
        "Models of other kinds are pruned with hfprune.prune in Python."
    )


def _load_processor(source: str, model: ModelArguments) -> Any:
    """The feature extractor and the tokenizer of a model in one."""
    try:
        processor = AutoProcessor.from_pretrained(source, **model.loading)
    # transformers opens a file without a name where a tokenizer has none
    except (OSError, TypeError, ValueError) as error:
        raise _no_processor(model.model_name_or_path) from error
    if getattr(processor, "tokenizer", None) is None:
        raise _no_processor(model.model_name_or_path)
    return processor


def _no_processor(name: str) -> ValueError:
    return ValueError(
        f"{name} has no processor of a feature extractor and a tokenizer, so nothing says which letters its head is "
        "for. Save the processor of the fine-tuned model into its folder, with save_pretrained."
    )


def _set_language(tokenizer: Any, language: str) -> None:
    """Tell the tokenizer of a Whisper of many languages what is spoken: its texts begin with that."""
    if not hasattr(tokenizer, "set_prefix_tokens"):
        raise ValueError(f"{type(tokenizer).__name__} knows of no languages: leave language={language!r} out.")
    tokenizer.set_prefix_tokens(language=language, task="transcribe")


def _config_changes(source: str, model: ModelArguments, tokenizer: Any, *, writes: bool) -> dict[str, Any]:
    """Arguments of `from_pretrained`: how the model trains, and the size of a head that is new."""
    changes = without_layerdrop(source, model.loading)
    if writes:
        return changes
    # a sound with fewer frames than letters would have an infinite loss
    changes["ctc_zero_infinity"] = True
    if model.dense_epochs > 0:
        changes |= {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "ctc_loss_reduction": "mean"}
    return changes


def _without_long(data: DatasetDict, arguments: SpeechArguments) -> DatasetDict:
    """The splits without sounds that are too long: a part of one would not go with its text."""
    short = DatasetDict()
    for split, rows in data.items():
        seconds = [seconds_of(stored) for stored in rows[arguments.audio_column]]
        kept = [row for row, length in enumerate(seconds) if length <= arguments.max_seconds]
        left_out = len(rows) - len(kept)
        if not kept:
            raise ValueError(
                f"all {len(rows)} sounds of the {split} split are longer than max_seconds={arguments.max_seconds:g}."
            )
        if left_out:
            logger.warning(
                "%d of %d sounds of the %s split are longer than %g seconds, and are left out",
                left_out,
                len(rows),
                split,
                arguments.max_seconds,
            )
            rows = rows.select(kept)
        short[split] = rows
    return short


def _with_tokens(data: DatasetDict, tokenizer: Any, column: str, *, most: int | None) -> DatasetDict:
    """The splits with the token ids of their texts, `labels`, of which there may be so many at most."""
    joined = DatasetDict()
    for split, rows in data.items():
        texts = rows[column][:]
        empty = [row for row, text in enumerate(texts) if not isinstance(text, str) or not text.strip()]
        if empty:
            raise ValueError(
                f"{len(empty)} of {len(rows)} rows of the {split} split have no text in {column!r}, the "
                f"first is row {empty[0]} (from 0), {texts[empty[0]]!r}. Leave them out."
            )
        labels = tokenizer(texts)["input_ids"]
        longest = max(range(len(labels)), key=lambda row: len(labels[row]))
        if most is not None and len(labels[longest]) > most:
            raise ValueError(
                f"row {longest} (from 0) of the {split} split has {len(labels[longest])} tokens, more than "
                f"max_target_length={most}. Raise it, as far as the model has positions, or "
                "leave longer texts out."
            )
        joined[split] = concatenate_datasets([rows, Dataset.from_dict({_LABELS: labels})], axis=1)
    return joined


@dataclass(frozen=True)
class _Collator:
    """Makes a batch of rows with sounds and the token ids of their texts.

    Attributes:
        sounds: Makes the input.
        first: The token that the decoder begins with, which is none of the labels: the model puts it before them. None
            for a model without a decoder.
    """

    sounds: Sounds
    first: int | None

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        batch = self.sounds.inputs(rows)
        # calibration may leave them out
        if _LABELS not in rows[0]:
            return batch
        batch[_LABELS] = filled([self._without_first(row[_LABELS]) for row in rows], _IGNORED)
        return batch

    def _without_first(self, ids: Sequence[int]) -> Sequence[int]:
        if self.first is not None and len(ids) > 1 and ids[0] == self.first:
            return ids[1:]
        return ids


def _likeliest_tokens(outputs: Any, labels: Tensor) -> Tensor:  # noqa: ARG001 (Trainer passes both)
    """The number of the likeliest token of every frame, `(N, frames)`: all that the metrics need of the logits."""
    return logits_of(outputs).argmax(-1)


@dataclass(frozen=True)
class _ErrorRates:
    """Error rates of texts: how many words or letters were exchanged, left out and put in, for each that was spoken.

    Attributes:
        tokenizer: Makes texts of the tokens that a model predicts.
        column: The column with what was spoken.
        plain: Whether capitals and punctuation do not count.
        writes: Whether the model writes tokens one after the other; else it has one for each frame.
    """

    tokenizer: Any
    column: str
    plain: bool
    writes: bool

    def of_all(self, prediction: EvalPrediction, rows: Dataset) -> dict[str, float]:
        """The error rates of all texts together."""
        import jiwer

        spoken, written = self._texts(prediction, rows)
        return {"wer": float(jiwer.wer(spoken, written)), "cer": float(jiwer.cer(spoken, written))}

    def words_of_each(self, prediction: EvalPrediction, rows: Dataset) -> list[float]:
        """The word error rate of each text, negative, so that more is better."""
        import jiwer

        return [-float(jiwer.wer(*pair)) for pair in zip(*self._texts(prediction, rows), strict=True)]

    def characters_of_each(self, prediction: EvalPrediction, rows: Dataset) -> list[float]:
        """The character error rate of each text, negative, so that more is better."""
        import jiwer

        return [-float(jiwer.cer(*pair)) for pair in zip(*self._texts(prediction, rows), strict=True)]

    def _texts(self, prediction: EvalPrediction, rows: Dataset) -> tuple[list[str], list[str]]:
        """What was spoken, and what the model wrote."""
        spoken: list[str] = rows[self.column][:]
        ids = np.asarray(prediction.predictions)
        # several processes predict some samples twice, the last ones
        ids = ids[: len(spoken)]
        # what pads a batch of predictions, and is no text either
        padding = self.tokenizer.pad_token_id
        if padding is None:
            padding = self.tokenizer.eos_token_id
        ids = np.where(ids == _IGNORED, padding, ids)
        # of frames, a blank between two equal letters says that there are two, and blanks are special tokens
        written: list[str] = self.tokenizer.batch_decode(ids, skip_special_tokens=self.writes)
        if not self.plain:
            return [text.strip() for text in spoken], [text.strip() for text in written]
        return [_reference(text) for text in spoken], [plain_text(text) for text in written]


def plain_text(text: str) -> str:
    """A text in small letters, without punctuation but apostrophes.

    Args:
        text: The text.

    Returns:
        Its words, with one space between them.

    Examples:
        >>> plain_text("It's  Ten o'clock, Mr. Bär!")
        "it's ten o'clock mr bär"
    """
    normal = unicodedata.normalize("NFKC", text).casefold().replace(_TYPESET_APOSTROPHE, "'")
    letters = []
    for letter in normal:
        is_kept = letter == "'" or unicodedata.category(letter)[0] in "LMN"
        letters.append(letter if is_kept else " ")
    return " ".join("".join(letters).split())


def _reference(text: str) -> str:
    """What was spoken, plain; as it stands where nothing of it is left, as an error rate needs something to count."""
    return plain_text(text) or text.strip()
