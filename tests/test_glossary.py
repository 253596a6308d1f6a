"""The glossary is in order, short, and has every word that the project uses in one sense only."""

import re

from tests.support.pages import ROOT

GLOSSARY = ROOT / "docs" / "glossary.md"


def entries():
    """What the glossary says of each word."""
    _, *parts = re.split(r"^## ", GLOSSARY.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for part in parts:
        word, _, text = part.partition("\n")
        yield word, text.strip()


def test_words_are_in_order_and_said_once():
    words = [word.lower() for word, _ in entries()]
    assert words == sorted(set(words))


def test_entries_are_short():
    for word, text in entries():
        assert text, word
        assert len(text.splitlines()) <= 3, word


def test_the_words_of_the_code_are_there():
    """CONTRIBUTING lists the words that stand for one thing each."""
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    listed = re.search(r"One word stands for one thing: (?P<words>[^.]+)\.", contributing)
    words = {word.strip() for word in listed["words"].replace("\n", " ").split(",")}
    assert len(words) > 10
    assert words <= {word.lower() for word, _ in entries()}


def test_links_to_the_glossary_lead_to_a_word():
    """Building the site finds broken anchors too, but this is faster."""
    anchors = {word.lower().replace("/", "").replace(" ", "-") for word, _ in entries()}
    linked = set()
    for page in (ROOT / "docs").rglob("*.md"):
        text = page.read_text(encoding="utf-8")
        linked.update(re.findall(r"glossary\.md#([\w-]+)", text))
        if page == GLOSSARY:
            linked.update(re.findall(r"\]\(#([\w-]+)\)", text))
    assert linked
    assert linked <= anchors
