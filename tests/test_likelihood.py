"""Perplexity: by hand, whatever the batch; windows and strides; what it says of itself."""

import json
import math

import pytest
import torch
from typer.testing import CliRunner

from hfprune import PruningConfig, perplexity, prune
from hfprune.cli.app import app
from hfprune.measuring.perplexity import tokenizer_name
from tests.support.runs import save
from tests.support.tiny import tiny_batch, tiny_model
from tests.support.tiny_data import tiny_texts, tiny_tokenizer


def plain_tokenizer():
    """It frames texts, but not by a token that it calls BOS, which every window would begin with."""
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    return tokenizer


TEXTS = [list(range(4, 34)), list(range(10, 17)), [5]]


def model_of(kind="llama", **changes):
    return tiny_model(kind, "AutoModelForCausalLM", **changes)


def by_hand(model, rows, window, stride):
    """Token by token: each with what its first window has before it."""
    losses = []
    for ids in rows:
        done, start = 1, 0
        while done < len(ids):
            end = min(start + window, len(ids))
            for token in range(max(done, start + 1), end):
                with torch.no_grad():
                    logits = model(torch.tensor([ids[start:token]])).logits[0, -1]
                losses.append(-float(logits.log_softmax(-1)[ids[token]]))
            done, start = end, start + stride
    return losses


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bloom", "gemma2"])
@pytest.mark.parametrize(("window", "stride"), [(8, 8), (8, 3), (64, 64), (2, 1)])
def test_by_hand(kind, window, stride):
    model = model_of(kind)
    expected = by_hand(model, TEXTS, window, stride)
    found = perplexity(model, plain_tokenizer(), TEXTS, window=window, stride=stride, batch_size=3)
    assert found.tokens == len(expected)
    if stride < window:
        assert found.tokens == 29 + 6
    assert found.nll == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(found.nll))


def test_batches_do_not_matter_and_the_model_is_left_alone():
    model = model_of().train()
    one, many = (perplexity(model, plain_tokenizer(), TEXTS, window=8, batch_size=b) for b in (1, 64))
    assert one.nll == pytest.approx(many.nll, rel=1e-6)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_it_states_what_it_depends_on():
    texts = tiny_texts(6)["text"][:]
    found = perplexity(model_of(), plain_tokenizer(), texts, window=4, stride=2)
    rows = [plain_tokenizer()(text)["input_ids"] for text in texts]
    assert found == perplexity(model_of(), plain_tokenizer(), rows, window=4, stride=2)
    stated = f"over {found.tokens} tokens of {type(plain_tokenizer()).__name__} (17 tokens) (windows of 4, stride 2)"
    assert stated in str(found)
    tokenizer = plain_tokenizer()
    tokenizer.name_or_path = "/home/me/small/"
    assert tokenizer_name(tokenizer) == "small (17 tokens)"
    tokenizer.name_or_path = "me/small"
    assert tokenizer_name(tokenizer) == "me/small (17 tokens)"


def test_bfloat16_and_pruned_models():
    dense = model_of()
    config = PruningConfig(sparsity=0.4, scorer="l1", schedule="one_shot", reconstruct=False, calibration_samples=4)
    pruned = prune(dense, [tiny_batch("llama")], config)
    found = perplexity(pruned, plain_tokenizer(), TEXTS, window=8)
    half = perplexity(pruned.bfloat16(), plain_tokenizer(), TEXTS, window=8)
    assert half.nll == pytest.approx(found.nll, rel=0.05)
    assert half.nll != found.nll


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 1}, "got window=1, stride=1, batch_size=4"),
        ({"stride": 9, "window": 8}, "1 ≤ stride ≤ window .* got window=8, stride=9"),
        ({"batch_size": 0}, "batch_size ≥ 1, got window=256, stride=256, batch_size=0"),
        ({"texts": "the dog"}, r"takes a list of texts, got one text: write \[text\]"),
        ({"texts": [[5], []]}, "none of the 2 texts has two tokens"),
        ({"texts": [[5] * 200]}, "window=200 is more than the model's 160 positions"),
        ({"texts": [[5, 6], [5, 64]]}, "has the token id 64, and the model has 64 rows of embeddings"),
        ({"texts": ["", " "]}, "none of the 2 texts has two tokens"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        perplexity(model_of(), plain_tokenizer(), **{"texts": TEXTS, **options})


def test_empty_texts_do_not_count():
    """Also where the tokenizer would frame them with special tokens."""
    tokenizer = plain_tokenizer()
    assert tokenizer("").input_ids
    texts = ["the dog saw who", "the cat"]
    assert perplexity(model_of(), tokenizer, [texts[0], "", texts[1], "\n"]) == perplexity(model_of(), tokenizer, texts)


class TestCommand:
    def run(self, *arguments):
        return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])

    def test_a_text_file(self, tmp_path):
        save(model_of(), tmp_path / "model")
        text = "\n".join(tiny_texts(30)["text"])
        (tmp_path / "text.txt").write_text(text)
        arguments = (tmp_path / "model", "--text", tmp_path / "text.txt", "--metrics", "perplexity", "--window", 8)
        done = self.run(*arguments, "--stride", 4, "--batch-size", 3)
        assert done.exit_code == 0, done.output
        expected = perplexity(model_of(), tiny_tokenizer(), [text], window=8, stride=4)
        found = json.loads(done.stdout)
        assert found["perplexity"] == pytest.approx(expected.perplexity)
        assert {k: found[k] for k in ("tokens", "window", "stride", "tokenizer")} == {
            "tokens": expected.tokens,
            "window": 8,
            "stride": 4,
            "tokenizer": "model (17 tokens)",
        }

    def test_what_is_refused(self, tmp_path):
        save(model_of(), tmp_path / "model")
        (tmp_path / "text.txt").write_text("the dog")
        (tmp_path / "latin.txt").write_bytes("the café".encode("latin-1"))
        for arguments, message in (
            ((), "give --data (of a task, with labels) or --text"),
            (("--data", "trec", "--text", "a.txt"), "give --data (of a task, with labels) or --text"),
            (("--text", "nowhere.txt"), "'nowhere.txt' does not exist"),
            (("--text", tmp_path / "text.txt", "--metrics", "bleu"), "the metric of --text is perplexity, got bleu"),
            (("--text", tmp_path / "text.txt", "--latency"), "--latency and --split go with --data"),
            (("--text", tmp_path / "text.txt", "--batch-size", 0), "--batch-size must be at least 1, got 0"),
            (("--text", tmp_path / "latin.txt"), "latin.txt' is not in utf-8: the byte 0xe9 in it is none"),
        ):
            done = self.run(tmp_path / "model", *arguments)
            assert done.exit_code == 1
            assert message in done.stderr.replace("\n", " ")
        save(tiny_model("bert"), tmp_path / "bert")
        done = self.run(tmp_path / "bert", "--text", tmp_path / "text.txt")
        assert "BertForSequenceClassification does not predict the next token" in done.stderr
