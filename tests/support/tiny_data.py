"""A tiny word-level tokenizer and data set, made on the spot."""

from datasets import ClassLabel, Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

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


def tiny_tokenized(rows: int = 24) -> Dataset:
    tokenizer = tiny_tokenizer()
    return tiny_texts(rows).map(lambda row: {**tokenizer(row["text"]), "labels": row["label"]}, remove_columns=["text"])
