"""Decisions are dated files, listed by topic; no published file names a note that is not published."""

import re
from datetime import date
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "decisions"
FILES = sorted(path for path in FOLDER.glob("*.md") if path.name != "index.md")
NOTES = ("DESIGN", "ALGORITHMS", "FACTS", "PEERS", "EXAMPLES")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_decision_has_a_title_a_date_and_a_text(path):
    name = re.fullmatch(r"(\d{4}-\d\d-\d\d)-[a-z0-9-]+\.md", path.name)
    assert name, f"{path.name}: expected YYYY-MM-DD-slug.md"
    date.fromisoformat(name[1])
    title, dated, text = path.read_text(encoding="utf-8").split("\n\n", 2)
    assert title.startswith("# ")
    assert dated == f"Date: {name[1]}"
    assert text.rstrip().endswith((".", "```"))
    if "Superseded" in text:
        assert re.search(r"Superseded[^.]*\]\(\d{4}-\d\d-\d\d-", text), "link the decision that replaces it"


def test_the_index_lists_every_decision_once():
    """With its date and its title, and by date within a topic."""
    index = (FOLDER / "index.md").read_text(encoding="utf-8")
    entries = re.findall(r"^- (\S+): \[(.+)\]\((\S+)\)$", index, re.MULTILINE)
    assert len(entries) == len(re.findall(r"^- ", index, re.MULTILINE))
    assert sorted(file for _, _, file in entries) == [path.name for path in FILES]
    for dated, title, file in entries:
        assert file.startswith(dated)
        assert (FOLDER / file).read_text(encoding="utf-8").startswith(f"# {title}\n"), file
    for topic in index.split("\n## ")[1:]:
        dates = re.findall(r"^- (\S+):", topic, re.MULTILINE)
        assert dates == sorted(dates)


@pytest.mark.parametrize("folder", ["docs", "tests", "hfprune"])
def test_no_file_names_an_unpublished_note(folder):
    """On a page not at all; in code, where such a word may be a constant, not as a document or a source."""
    names = "|".join(NOTES)
    on_a_page = re.compile(rf"\b({names})\b")
    in_code = re.compile(rf"\b({names})(\.md\b| §|\)|, §)")
    suffixes = {".py", ".md", ".json", ".yaml", ".toml", ".txt"}
    texts = [path for path in (ROOT / folder).rglob("*") if path.suffix in suffixes]
    assert texts
    for path in texts:
        named = on_a_page if path.suffix == ".md" else in_code
        found = named.search(path.read_text(encoding="utf-8"))
        assert not found, f"{path.relative_to(ROOT)} names {found[0]}, which is not published: say what is meant"
