"""A tiny word-level tokenizer and data set, made on the spot."""

import json
import tempfile
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset
from PIL import Image
from scipy.io import wavfile
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Processor,
    WhisperFeatureExtractor,
    WhisperProcessor,
    WhisperTokenizer,
)

from tests.support.tiny import VOCABULARY

WORDS = ["who", "what", "where", "is", "the", "a", "dog", "cat", "city", "river", "name", "of"]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    words = [*WORDS, "[MASK]"]
    vocabulary = {"[UNK]": 0, "[PAD]": 1, "[BOS]": 2, "[EOS]": 3, **{word: i + 4 for i, word in enumerate(words)}}
    assert len(vocabulary) <= VOCABULARY
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", pair="[BOS] $A [EOS] $B [EOS]", special_tokens=[("[BOS]", 2), ("[EOS]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        bos_token="[BOS]",
        eos_token="[EOS]",
        mask_token="[MASK]",
    )


def tiny_texts(rows: int = 24) -> Dataset:
    """Texts of 2 to 5 words; the label is the first word."""
    texts = [" ".join(WORDS[(row * 7 + i * (row % 5 + 1)) % 12] for i in range(2 + row % 4)) for row in range(rows)]
    labels = [row % 3 for row in range(rows)]
    texts = [f"{WORDS[label]} {text}" for label, text in zip(labels, texts, strict=True)]
    data = Dataset.from_dict({"text": texts, "label": labels})
    return data.cast_column("label", ClassLabel(names=["who", "what", "where"]))


def tiny_tags(rows: int = 80) -> list[dict[str, list[str]]]:
    """The same texts as words with IOB tags: an entity begins at an animal and goes on with `of`."""
    tags = {"dog": "B-X", "cat": "B-X", "of": "I-X"}
    words = [text.split() for text in tiny_texts(rows)["text"]]
    return [{"tokens": text, "ner_tags": [tags.get(word, "O") for word in text]} for text in words]


def tiny_squad(paragraphs: int = 40, *, unanswerable: bool = True) -> dict:
    """A file of SQuAD 2.0: what is asked for is the animal, of which every third context has none if that may be."""
    others = [word for word in WORDS if word not in ("dog", "cat")]
    entries = []
    for number in range(paragraphs):
        words = [others[(number * 7 + place * (number % 3 + 1)) % len(others)] for place in range(4 + number % 9)]
        answers = []
        if not unanswerable or number % 3:
            animal = ["dog", "cat"][number % 2]
            place = number % len(words)
            words.insert(place, animal)
            answers = [{"text": animal, "answer_start": len(" ".join([*words[:place], ""]))}]
        question = {"id": str(number), "question": "what name", "answers": answers, "is_impossible": not answers}
        entries.append({"context": " ".join(words), "qas": [question]})
    return {"version": "v2.0", "data": [{"title": "Animals", "paragraphs": entries}]}


def tiny_choices(rows: int = 80) -> list[dict]:
    """Questions with three choices, of which the right one has a dog in it."""
    others = [word for word in WORDS if word != "dog"]
    found = []
    for row in range(rows):
        choices = [" ".join(others[(row * 5 + place * 3 + i) % 11] for i in range(1 + place)) for place in range(3)]
        choices[row % 3] = f"{choices[row % 3]} dog"
        found.append({"question": f"{WORDS[row % 3]} is it", "choices": choices, "label": row % 3})
    return found


def tiny_pairs(rows: int = 80) -> list[dict[str, str]]:
    """The same texts with summaries of different lengths, which follow from their first word."""
    summaries = {"who": "who is", "what": "what is the dog", "where": "where"}
    return [{"text": text, "summary": summaries[text.split()[0]]} for text in tiny_texts(rows)["text"]]


#: Each turn between [BOS] and [EOS]; the assistant is asked by its role.
CHAT_TEMPLATE = (
    "{% for m in messages %}[BOS] {{ m.role }} {{ m.content }} [EOS]\n{% endfor %}"
    "{% if add_generation_prompt %}[BOS] assistant {% endif %}"
)


def chat_tokenizer() -> PreTrainedTokenizerFast:
    """The same tokenizer with a chat template, and with padding at the left, as chat models have it."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.padding_side = "left"
    return tokenizer


def tiny_conversations(rows: int = 80) -> list[dict[str, list[dict[str, str]]]]:
    """The same texts as questions, with their first word as the answer; every third conversation has two of them."""
    conversations = []
    texts = tiny_texts(rows)["text"]
    for number, text in enumerate(texts):
        messages = []
        for question in (text, *texts[:1])[: 2 if number % 3 == 0 else 1]:
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": f"{question.split()[0]} is"})
        conversations.append({"messages": messages})
    return conversations


def tiny_tokenized(rows: int = 24) -> Dataset:
    tokenizer = tiny_tokenizer()
    return tiny_texts(rows).map(lambda row: {**tokenizer(row["text"]), "labels": row["label"]}, remove_columns=["text"])


def tiny_pictures(folder: Path, rows: int = 60) -> None:
    """Files of noise in which one colour is brighter; they lie in sub-folders that are called by the colour."""
    names = ("red", "green", "blue")
    draw = np.random.default_rng(0)
    for row in range(rows):
        pixels = draw.integers(0, 160, (20, 24, 3), dtype=np.uint8)
        pixels[:, :, row % 3] += 90
        path = folder / names[row % 3] / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def tiny_speech(folder: Path, rows: int = 60) -> None:
    """Tones that spell words of the letters a, b and c, in wav files, and the words of each in `spoken.jsonl`."""
    waves = {"a": 0.2, "b": 0.8, "c": 2.0, " ": 0.0}
    draw = np.random.default_rng(0)
    lines = []
    for row in range(rows):
        letters = "".join(draw.choice(["a", "b", "c"], 2 + row % 2))
        text = f"{letters} {letters[::-1]}"
        tones = [np.sin(np.arange(500) * waves[letter]) for letter in text]
        (folder / "spoken").mkdir(exist_ok=True)
        wavfile.write(folder / "spoken" / f"{row}.wav", 4000, (8000 * np.concatenate(tones)).astype(np.int16))
        lines.append(json.dumps({"audio": f"spoken/{row}.wav", "text": text}))
    (folder / "spoken.jsonl").write_text("\n".join(lines) + "\n")


def tiny_speech_processor(model_type: str = "wav2vec2") -> ProcessorMixin:
    """Of letters, for wav2vec2 with its blank; of bytes, for Whisper with its special tokens."""
    if model_type == "whisper":
        vocabulary = {"<|endoftext|>": 0}
        for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
            vocabulary[letter] = len(vocabulary)
        tokenizer = WhisperTokenizer(vocab=vocabulary, merges=[], pad_token="<|endoftext|>")
        special = ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
        tokenizer.add_special_tokens({"additional_special_tokens": special})
        return WhisperProcessor(WhisperFeatureExtractor(feature_size=8, chunk_length=1), tokenizer)
    vocabulary = {letter: number for number, letter in enumerate(["<pad>", "<unk>", "|", *"abc"])}
    options = {"pad_token": "<pad>", "unk_token": "<unk>", "word_delimiter_token": "|"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "vocab.json")
        path.write_text(json.dumps(vocabulary))
        tokenizer = Wav2Vec2CTCTokenizer(str(path), bos_token=None, eos_token=None, **options)
    return Wav2Vec2Processor(Wav2Vec2FeatureExtractor(sampling_rate=4000), tokenizer)


def tiny_sounds(folder: Path, rows: int = 60) -> None:
    """Tones with noise, of a fifth of a second and more; they lie in sub-folders that are called by their height."""
    waves = {"low": 0.1, "middle": 0.7, "high": 2.0}
    draw = np.random.default_rng(0)
    for row in range(rows):
        name = list(waves)[row % 3]
        times = np.arange(800 + 40 * (row % 5))
        sound = np.sin(times * waves[name] + row) + draw.normal(size=len(times)) / 5
        path = folder / name / f"{row}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        wavfile.write(path, 4000, (8000 * sound).astype(np.int16))
