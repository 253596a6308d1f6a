"""Tokenizers that merge characters, in a GGUF file: llama.cpp makes the same tokens."""

import json

import pytest
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import hfprune
from hfprune.deployment.gguf.characters import scores_of
from hfprune.deployment.gguf.running import LlamaCppRunner, check_tokens
from hfprune.deployment.gguf.tokenizer import vocabulary_of
from hfprune.deployment.gguf.writing import write_file
from hfprune.deployment.targets import WriteOptions
from hfprune.errors import ExportError
from tests.support import tiny_tokenizers
from tests.support.plans import uneven_plan
from tests.support.tiny import tiny_model
from tests.support.tiny_tokenizers import LINES, SPECIAL, wrapped

gguf = pytest.importorskip("gguf", reason="gguf is not installed")

REPLACE = normalizers.Replace(" ", "▁")
PREPEND = normalizers.Sequence([normalizers.Prepend("▁"), REPLACE])
METASPACE = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
#: By name the normalizer, the pre-tokenizer, and whether a space comes first.
WAYS = {
    "llama 2": (PREPEND, None, True),
    "spaces by a pre-tokenizer": (None, METASPACE, False),
    "gemma": (REPLACE, None, False),
}


def tokenizer_with(normalizer, cut, **model):
    data = json.loads(tiny_tokenizers._byte_fallback().to_str())
    data["model"].update(model)
    tokenizer = Tokenizer.from_str(json.dumps({**data, "normalizer": None, "pre_tokenizer": None}))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if cut is not None:
        tokenizer.pre_tokenizer = cut
    begin = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    # transformers takes a space away before a token that is normalised as texts are, and llama.cpp does not
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    named = dict(zip(("unk_token", "pad_token", "bos_token", "eos_token", "mask_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=100, **named)


def decoder(tokenizer):
    return tiny_model("llama", "AutoModelForCausalLM", vocab_size=len(tokenizer))


@pytest.mark.parametrize("way", WAYS)
def test_llama_cpp_makes_the_same_tokens(way, tmp_path):
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    normalizer, cut, _ = WAYS[way]
    tokenizer = tokenizer_with(normalizer, cut)
    options = WriteOptions(quantization=None, tokenizer=tokenizer, batch={}, name="tiny")
    write_file(decoder(tokenizer), tmp_path / "model.gguf", options)
    runner = LlamaCppRunner(tmp_path / "model.gguf", threads=1)
    check_tokens(runner, tokenizer, texts=[*LINES, "naïve 東京 \n two  spaces"])


@pytest.mark.parametrize("way", WAYS)
def test_what_is_written(way, tmp_path):
    normalizer, cut, space = WAYS[way]
    tokenizer = tokenizer_with(normalizer, cut)
    options = WriteOptions(quantization=None, tokenizer=tokenizer, batch={}, name="tiny")
    write_file(decoder(tokenizer), tmp_path / "model.gguf", options)
    fields = {name: field.contents() for name, field in gguf.GGUFReader(tmp_path / "model.gguf").fields.items()}
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert fields["tokenizer.ggml.model"] == "llama"
    assert fields["tokenizer.ggml.add_space_prefix"] is space
    assert "tokenizer.ggml.merges" not in fields
    assert kinds[tokens.index("<unk>")] == 2
    assert kinds[tokens.index("<0x0A>")] == 6
    assert len(fields["tokenizer.ggml.scores"]) == len(tokens)


def test_an_export_proves_it(tmp_path):
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    tokenizer = tokenizer_with(PREPEND, None)
    dense = decoder(tokenizer)
    small = hfprune.apply_plan(dense, uneven_plan(dense))
    exported = hfprune.export(small, "gguf", tmp_path / "out", tokenizer=tokenizer, threads=1)
    assert exported.text.equal == exported.text.tokens


def test_scores_fall_with_the_merges():
    assert scores_of(["a", "b", "ab", "abb"], ["a b", "ab b"])[2:] == [0.0, -1.0]
    # two ways to make one token, one after the other
    assert scores_of(["abb"], ["a b", "ab b", "a bb"]) == [-1.0]
    with pytest.raises(ExportError, match="merges that make the token 'abb' do not follow each other"):
        scores_of(["abb"], ["ab b", "b b", "a bb"])


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (lambda: tokenizer_with(None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False)), "something else"),
        (lambda: tokenizer_with(None, pre_tokenizers.Metaspace(split=True)), "something else"),
        # no space before a text that begins with one, and llama.cpp puts a second there
        (lambda: tokenizer_with(None, pre_tokenizers.Metaspace(split=False)), "something else.*always"),
        (lambda: tokenizer_with(normalizers.Lowercase(), None), "something else.*Lowercase"),
        (lambda: tokenizer_with(PREPEND, None, ignore_merges=True), "ignore_merges=True"),
    ],
)
def test_what_llama_cpp_does_not_do(tokenizer, message):
    with pytest.raises(ExportError, match=message):
        vocabulary_of(tokenizer(), rows=2000)


def test_bytes_that_are_no_tokens():
    tokenizer = tokenizer_with(PREPEND, None)
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    del data["model"]["vocab"]["<0x0A>"]
    with pytest.raises(ExportError, match="1 of 256 bytes are no tokens, the first <0x0A>"):
        vocabulary_of(wrapped(Tokenizer.from_str(json.dumps(data))), rows=2000)
