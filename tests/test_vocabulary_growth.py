"""The cost of vocabulary pruning does not grow with vocabulary times tokens."""

import json
import string
from itertools import islice, product

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import hfprune
from hfprune.vocabulary.pieces import chain_of
from hfprune.vocabulary.selection import Selection, Vocabulary
from tests.support.results import ROOT


class Counted(dict):
    """A dictionary that counts how often someone goes through all of it."""

    passes = 0

    def __iter__(self):
        type(self).passes += 1
        return super().__iter__()

    def keys(self):
        type(self).passes += 1
        return super().keys()


@pytest.fixture(autouse=True)
def _from_none():
    Counted.passes = 0


def merges_of(size):
    """Pairs of letters, and triples of a pair and a letter, up to a number of tokens."""
    letters = [*string.ascii_lowercase]
    pairs = [(a, b) for a, b in product(letters, letters)]
    triples = [(a + b, c) for a, b, c in product(letters, letters, letters)]
    merges = list(islice([*pairs, *triples], size))
    tokens = ["<unk>", *letters, *(left + right for left, right in merges)]
    return {token: number for number, token in enumerate(tokens)}, merges


def tokenizer_of(size):
    numbers, merges = merges_of(size)
    tokenizer = Tokenizer(models.BPE(numbers, merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def test_the_tokens_that_form_a_token_are_found_without_a_pass(monkeypatch):
    numbers, merges = merges_of(2000)
    monkeypatch.setattr("hfprune.vocabulary.pieces.vocabulary_of", lambda model: Counted(model["vocab"]))
    chain = chain_of({"type": "BPE", "vocab": numbers, "merges": merges})
    Counted.passes = 0
    for token in list(numbers)[30:130]:
        assert token in chain(token)
    assert Counted.passes == 0


def test_filling_up_goes_through_no_kept_tokens():
    tokenizer = tokenizer_of(2000)
    vocabulary = Vocabulary(tokenizer, json.loads(tokenizer.backend_tokenizer.to_str()))
    asked = []
    chain = vocabulary._chain
    vocabulary._chain = lambda token: asked.append(token) or Watched(chain(token))
    kept = {token: number for token, number in vocabulary.ids.items() if number < 500}
    filled = vocabulary.filled(Selection(kept, ()), 700, 3000)
    assert len(filled.tokens) + len(filled.spare_rows) == 700
    assert len(asked) >= 200


class Watched(set):
    """A set that must not be subtracted from: the keys of a dictionary would be gone through one by one."""

    def __sub__(self, other):
        raise AssertionError("a difference from all kept tokens")


@pytest.mark.parametrize("kind", ["gpt2", "padded"])
def test_the_result_is_as_before(kind):
    tokenizer = tokenizer_of(3000)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=3027, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0))
    multiple = 64 if kind == "padded" else None
    small, fewer = hfprune.prune_vocabulary(model, tokenizer, ["abc def", "ghi"], pad_to_multiple_of=multiple)
    assert fewer.tokenize("abc def ghi") == tokenizer.tokenize("abc def ghi")
    rows = small.get_input_embeddings().num_embeddings
    assert rows % (multiple or 1) == 0
    assert rows < 300


def test_the_figures_of_the_page_are_those_of_the_benchmark():
    rows = json.loads((ROOT / "docs/results/vocabulary_time.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs/results/vocabulary.md").read_text(encoding="utf-8")
    for row in rows:
        line = f"| {row['vocabulary']:,} | {row['characters']:,} | {row['kept']:,} | {row['seconds']:.1f} |"
        assert line in page
    largest = rows[-1]
    how_to = (ROOT / "docs/how-to/fewer-tokens.md").read_text(encoding="utf-8")
    assert f"took {largest['seconds']:.1f} s of one core" in how_to
    assert (largest["vocabulary"], largest["characters"]) == (262_144, 3_000_000)
    assert largest["seconds"] <= 30
    assert page.count(" | 3,000,000 | ") == sum(row["characters"] == 3_000_000 for row in rows)
