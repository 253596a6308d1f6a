"""Where a tokenizer puts BOS in front of every text, every window of a text begins with it."""

import math
from itertools import chain

import pytest
import torch
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, processors

import hfprune
from hfprune.data.corpus import pack
from hfprune.structure.windows import added_bos, windows_of
from tests.support.tiny import tiny_model
from tests.support.tiny_tokenizers import LINES, _serialized, wrapped

BOS = 2
#: As of Llama 3, of Llama 2, and of models with SentencePiece.
KINDS = ["byte_level", "byte_fallback", "unigram"]


def without_bos(kind="byte_level"):
    return wrapped(Tokenizer.from_str(_serialized(kind)))


def with_bos(kind="byte_level"):
    tokenizer = Tokenizer.from_str(_serialized(kind))
    template = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)])
    tokenizer.post_processor = template
    return wrapped(tokenizer)


def decoder(kind="llama"):
    return tiny_model(kind, "AutoModelForCausalLM", vocab_size=len(with_bos()))


def documents(texts=3):
    return DatasetDict(train=Dataset.from_dict({"text": [" ".join(LINES[5 * n : 5 * n + 5]) for n in range(texts)]}))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("whole", [False, True])
def test_packed_windows_begin_with_it(kind, whole):
    tokenizer = with_bos(kind)
    rows = pack(documents(), tokenizer, max_length=16, whole=whole)["train"]["input_ids"][:]
    assert len(rows) > 5
    assert all(row[0] == BOS for row in rows)
    assert all(len(row) == 16 for row in rows[:-1])
    # no token of the texts is lost, and none comes twice
    stream = chain.from_iterable(tokenizer(documents()["train"]["text"][:])["input_ids"])
    real = [token for token in stream if token != BOS]
    packed = [token for token in chain.from_iterable(rows) if token != BOS]
    assert packed == real[: len(packed)]


@pytest.mark.parametrize("kind", KINDS)
def test_windows_of_a_tokenizer_that_adds_none_are_as_before(kind):
    """It may have the token all the same, as GPT-2's has."""
    tokenizer = without_bos(kind)
    assert tokenizer.bos_token_id == BOS
    assert added_bos(tokenizer) is None
    rows = pack(documents(), tokenizer, max_length=16)["train"]["input_ids"][:]
    stream = list(chain.from_iterable(tokenizer(documents()["train"]["text"][:])["input_ids"]))
    assert list(chain.from_iterable(rows)) == stream[: sum(map(len, rows))]


def by_hand(model, ids, window, stride):
    """Token by token: BOS, and what the first window with the token has before it."""
    losses = []
    done = 0
    for start in range(0, len(ids), stride):
        end = min(start + window - 1, len(ids))
        for place in range(max(done, start), end):
            with torch.no_grad():
                logits = model(torch.tensor([[BOS, *ids[start:place]]])).logits[0, -1]
            losses.append(-float(logits.log_softmax(-1)[ids[place]]))
        done = max(done, end)
        if done == len(ids):
            break
    return losses


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize(("window", "stride"), [(8, None), (8, 8), (8, 3), (64, None), (2, 1)])
def test_perplexity_by_hand(kind, window, stride):
    tokenizer = with_bos()
    model = decoder(kind)
    texts = LINES[:3]
    step = min(stride or window, window - 1)
    expected = []
    for ids in tokenizer(texts)["input_ids"]:
        expected += by_hand(model, ids[1:], window, step)
    found = hfprune.perplexity(model, tokenizer, texts, window=window, stride=stride, batch_size=3)
    assert found.tokens == len(expected) == sum(len(ids) - 1 for ids in tokenizer(texts)["input_ids"])
    assert found.nll == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(found.nll), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_window_that_the_model_reads(dtype):
    """Of texts, of packed rows, and of rows without BOS."""
    tokenizer = with_bos()
    model = decoder().to(dtype)
    read = []
    model.register_forward_pre_hook(lambda _, __, kwargs: read.append(kwargs["input_ids"]), with_kwargs=True)
    rows = pack(documents(), tokenizer, max_length=16)["train"]["input_ids"][:]
    for texts in (LINES[:5], rows, [row[1:] for row in rows]):
        hfprune.perplexity(model, tokenizer, texts, window=16)
    assert len(read) > 5
    assert all(bool((ids[:, 0] == BOS).all()) for ids in read)
    assert max(ids.shape[1] for ids in read) == 16


def test_the_metric_states_it():
    found = hfprune.perplexity(decoder(), with_bos(), LINES[:3], window=8)
    assert (found.bos, found.window, found.stride) == ("<s>", 8, 7)
    assert str(found).endswith("(windows of 8, stride 7, <s> in front of each)")
    found = hfprune.perplexity(decoder(), without_bos(), LINES[:3], window=8)
    assert (found.bos, found.stride) == (None, 8)
    assert str(found).endswith("(windows of 8, stride 8)")


def test_a_model_that_needs_it_is_measured_with_it():
    """Every token after BOS is sure to come; without BOS in sight, all are as likely."""
    tokenizer = with_bos()
    model = decoder()
    words = len(tokenizer)
    forward = model.forward

    def predicting(input_ids, **kwargs):
        output = forward(input_ids=input_ids, **kwargs)
        following = torch.nn.functional.one_hot(input_ids.roll(-1, 1), words)
        output.logits = following * 20.0 * (input_ids[:, :1] == BOS)[:, None]
        return output

    model.forward = predicting
    assert hfprune.perplexity(model, tokenizer, [" ".join(LINES)], window=16).perplexity == pytest.approx(1, abs=0.01)


def test_what_the_model_writes_itself():
    tokenizer = with_bos()
    written = hfprune.self_generated(decoder(), tokenizer, samples=3, tokens=6)
    assert all(row[0] == BOS for row in written["input_ids"][:])


def test_a_window_without_room_is_refused():
    with pytest.raises(ValueError, match="windows of 1 token have no room for a token beside BOS"):
        pack(documents(), with_bos(), max_length=1)
    assert windows_of([5, 6], 1, bos=None) == [[5], [6]]
