"""Vocabulary pruning: the corpus gets the same tokens and outputs as before, every other text still some tokens."""

import json
import random

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

import hfprune
from hfprune.errors import CalibrationError, StructureError
from hfprune.structure import known_architectures
from hfprune.vocabulary.pieces import chain_of
from hfprune.vocabulary.rows import fixed_ids, keep_tokens, named_ids
from hfprune.vocabulary.tokenizer import protected_tokens, smaller_tokenizer, tokenizer_data
from tests.support.tiny import SIZES, VOCABULARY, has_head, tiny_batch, tiny_model
from tests.support.tiny_data import tiny_tokenizer
from tests.support.tiny_tokenizers import KINDS, LINES, SPECIAL, trained, wrapped
from tests.test_contract import output

HEADS = ("AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForSeq2SeqLM", "AutoModel")
UNSEEN = ["Zwölf Boxkämpfer jagen Viktor!", "☃ 漢字 \n\t 12345", "xyzzyqqq", "", "<tool></s>"]


def model_for(tokenizer, model_type="llama", head="AutoModelForCausalLM", rows=0, **changes):
    """With the tokenizer's ids of the padding and so on, and more rows than tokens."""
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(t) for name, t in NAMES.items()}
    return tiny_model(model_type, head, vocab_size=len(tokenizer) + rows, **{**ids, **changes})


NAMES = {"pad": "<pad>", "bos": "<s>", "eos": "</s>"}


def outputs(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids]))[0]


def assert_same(old_model, old, new_model, new, texts):
    """Tokens with all marks, and outputs for them."""
    kept = [old.convert_tokens_to_ids(token) for token in new.convert_ids_to_tokens(range(len(new)))]
    for text in texts:
        before, after = old(text)["input_ids"], new(text)["input_ids"]
        assert new.convert_ids_to_tokens(after) == old.convert_ids_to_tokens(before)
        assert new.decode(after) == old.decode(before)
        was, now = outputs(old_model, before), outputs(new_model, after)
        was = was[..., kept] if was.shape[-1] == old_model.config.vocab_size else was
        assert torch.allclose(now[..., : was.shape[-1]], was, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_corpus_gets_the_tokens_and_logits_that_it_had(kind, seed, tmp_path):
    tokenizer, texts = trained(kind), random.Random(seed).sample(LINES, 25)
    texts[0] += " <tool> ☃"
    model, before = model_for(tokenizer), tokenizer.get_vocab()
    small, new = hfprune.prune_vocabulary(model, tokenizer, texts)
    assert len(SPECIAL) + 50 < len(new) < len(tokenizer) - 60
    assert small.config.vocab_size == len(new) == small.lm_head.weight.shape[0]
    assert (tokenizer.get_vocab(), model.config.vocab_size) == (before, len(before))
    new.save_pretrained(tmp_path)
    small.save_pretrained(tmp_path)
    again, loaded = type(small).from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert_same(model, tokenizer, again, loaded, texts)
    assert (loaded.padding_side, loaded.model_max_length) == ("left", 100)
    talk = [{"role": "user", "content": texts[1]}]
    ids = tokenizer.apply_chat_template(talk)["input_ids"]
    new_ids = loaded.apply_chat_template(talk)["input_ids"]
    assert loaded.convert_ids_to_tokens(new_ids) == tokenizer.convert_ids_to_tokens(ids)
    for text in [*UNSEEN, *LINES[::8]]:
        again(torch.tensor([loaded(text)["input_ids"]]))


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_with_bytes_any_text_can_be_read_back(kind):
    tokenizer = trained(kind)
    _, new = hfprune.prune_vocabulary(model_for(tokenizer), tokenizer, LINES[:3])
    for text in UNSEEN[:3]:
        assert "<unk>" not in new.tokenize(text)
    if kind == "byte_level":
        assert new.decode(new(UNSEEN[1], add_special_tokens=False)["input_ids"]) == UNSEEN[1]


@pytest.mark.parametrize("kind", ["byte_level", "suffix", "prefix", "byte_fallback"])
def test_kept_tokens_of_bpe_can_still_be_formed(kind):
    tokenizer = trained(kind)
    _, new = hfprune.prune_vocabulary(model_for(tokenizer), tokenizer, LINES[:9])
    chain, left = chain_of(tokenizer_data(tokenizer)["model"]), tokenizer_data(new)["model"]
    longest = sorted(left["vocab"].keys() - set(SPECIAL), key=len)[-20:]
    assert len(longest[-1]) > 5
    for token in longest:
        assert chain(token) <= left["vocab"].keys()
        assert chain_of(left)(token) == chain(token)
    for a, b in left["merges"]:
        assert {a, b, a + b[len(left["continuing_subword_prefix"] or "") :]} <= left["vocab"].keys()


def test_a_word_that_was_unknown_stays_unknown():
    """`ab` is tried and fails at c; without it, `a` and `##bc` would do."""
    pieces = [*SPECIAL, "a", "b", "ab", "##bc", "##b", "x"]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = wrapped(tokenizer)
    tokenizer.chat_template = None
    _, new = hfprune.prune_vocabulary(model_for(tokenizer), tokenizer, ["x abc"])
    assert new.tokenize("x abc") == tokenizer.tokenize("x abc") == ["x", "<unk>"]
    assert "ab" in new.get_vocab()


def test_unknown_characters_cost_as_before():
    """Unigram takes 10 off the lowest score for them. With `rare` gone, an unknown a and `bcde` would be cheaper."""
    scores = {"ab": -25.0, "cde": -25.0, "bcde": -1.0, "rare": -60.0}
    pieces = [("gone", -2.0), *((token, 0.0) for token in SPECIAL), *scores.items()]
    tokenizer = wrapped(Tokenizer(models.Unigram(pieces, unk_id=1)))
    tokenizer.chat_template = None
    _, new = hfprune.prune_vocabulary(model_for(tokenizer), tokenizer, ["abcde", "bcde"])
    assert new.tokenize("abcde") == tokenizer.tokenize("abcde") == ["ab", "cde"]
    assert "rare" in new.get_vocab()
    assert new.convert_ids_to_tokens(new("q").input_ids) == ["<unk>"]


def test_whole_words():
    tokenizer = tiny_tokenizer()
    model = tiny_model("bert", num_labels=3)
    small, new = hfprune.prune_vocabulary(model, tokenizer, ["who is the dog"])
    assert set(new.get_vocab()) == {"[UNK]", "[PAD]", "[BOS]", "[EOS]", "[MASK]", "who", "is", "the", "dog"}
    assert new.tokenize("who is the cat") == ["who", "is", "the", "[UNK]"]
    assert_same(model, tokenizer, small, new, ["who is the dog", "the dog"])


class TestChoice:
    def test_rare_tokens_go_and_named_ones_stay(self):
        tokenizer = trained("byte_level")
        model = model_for(tokenizer)
        texts = ["the License", "the License", "the Contribution"]
        every, common = (hfprune.prune_vocabulary(model, tokenizer, texts, min_count=n)[1] for n in (1, 2))
        rare = "ĠContribution"
        assert rare in every.get_vocab()
        assert rare not in common.get_vocab()
        small, named = hfprune.prune_vocabulary(model, tokenizer, texts, min_count=2, keep=[rare])
        assert named.tokenize(texts[2]) == tokenizer.tokenize(texts[2])
        assert small.pruning_record.vocabulary["min_count"] == 2

    @pytest.mark.parametrize("kind", ["byte_level", "unigram"])
    def test_more_tokens_up_to_a_multiple(self, kind):
        tokenizer = trained(kind)
        model = model_for(tokenizer)
        small, new = hfprune.prune_vocabulary(model, tokenizer, LINES[:9], pad_to_multiple_of=64)
        assert small.config.vocab_size == len(new)
        assert len(new) % 64 == 0
        assert_same(model, tokenizer, small, new, LINES[:9])

    def test_rows_without_a_token(self):
        """They go, but for ids with a role and as a filling where there are no more tokens."""
        tokenizer = trained("unigram")
        size = len(tokenizer)
        model = model_for(tokenizer, "t5", "AutoModelForSeq2SeqLM", rows=9, decoder_start_token_id=size + 3)
        small, new = hfprune.prune_vocabulary(model, tokenizer, LINES[:5])
        assert small.config.vocab_size == len(new) + 1 == small.config.decoder_start_token_id + 1
        full, whole = hfprune.prune_vocabulary(model, tokenizer, LINES, pad_to_multiple_of=size + 8)
        assert (full.config.vocab_size, len(whole)) == (size + 8, size)

    def test_ids_of_the_padding_that_positions_count_from(self):
        tokenizer = trained("word_piece")
        model = model_for(tokenizer, "roberta", "AutoModelForMaskedLM", pad_token_id=99, max_position_embeddings=300)
        small, new = hfprune.prune_vocabulary(model, tokenizer, LINES[:5])
        assert small.config.pad_token_id == 99
        assert_same(model, tokenizer, small, new, LINES[:5])

    def test_padding_of_the_tokenizer_itself(self):
        tokenizer = trained("word_piece")
        number = tokenizer.convert_tokens_to_ids("<end>")
        data = tokenizer_data(tokenizer)
        data["padding"] = {
            "strategy": "BatchLongest",
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": number,
            "pad_type_id": 0,
            "pad_token": "<end>",
        }
        tokenizer = wrapped(Tokenizer.from_str(json.dumps(data)))
        ids = {
            token: i for i, token in enumerate(sorted(protected_tokens(tokenizer, data), key=tokenizer.get_vocab().get))
        }
        smaller_tokenizer(tokenizer, data, ids)
        assert data["padding"]["pad_id"] == ids["<end>"] < number

    @pytest.mark.parametrize(
        ("texts", "options", "error", "message"),
        [
            ("one", {}, CalibrationError, "must be many texts, got the one string 'one'. Write"),
            ([{"text": "a"}], {}, CalibrationError, "must be strings, got {'text': 'a'}. Take the column"),
            ([""], {}, CalibrationError, "the texts hold no token. Vocabulary pruning needs"),
            (["a"], {"min_count": 0}, ValueError, "min_count must be at least 1, got 0"),
            (["a"], {"pad_to_multiple_of": 0}, ValueError, "pad_to_multiple_of must be at least 1, got 0"),
            (["a"], {"pad_to_multiple_of": 999}, ValueError, "999, is more than the model's 702. Choose a smaller"),
            (["a"], {"keep": ["never"]}, ValueError, "the tokenizer has no token 'never'. Name tokens"),
        ],
    )
    def test_mistakes(self, texts, options, error, message):
        tokenizer = trained("byte_level")
        tokenizer.chat_template = None
        with pytest.raises(error, match=message):
            hfprune.prune_vocabulary(model_for(tokenizer), tokenizer, texts, **options)

    def test_tokenizers_that_cannot_be_pruned(self):
        class Slow:
            is_fast = False

        model = tiny_model("bert")
        with pytest.raises(ValueError, match="Slow is not a fast tokenizer .*Load it with AutoTokenizer"):
            hfprune.prune_vocabulary(model, Slow(), ["a"])
        with pytest.raises(ValueError, match="'<end>' has the id 700, but the model has 700 rows.*resize_token_emb"):
            hfprune.prune_vocabulary(tiny_model("llama", vocab_size=700), trained("byte_level"), ["a"])

    def test_a_tokenizer_that_draws_at_random(self):
        tokenizer = trained("byte_level")
        tokenizer.backend_tokenizer.model.dropout = 0.5
        with pytest.raises(StructureError, match="would be split into .*draws at random"):
            hfprune.prune_vocabulary(model_for(tokenizer), tokenizer, LINES)

    def test_a_template_that_refuses_a_system_message(self, caplog):
        tokenizer = trained("byte_level")
        refuse = "{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
        tokenizer.chat_template = "{% for m in messages %}" + refuse + "Exhibit{% endfor %}"
        with caplog.at_level("INFO", logger="hfprune"):
            _, new = hfprune.prune_vocabulary(model_for(tokenizer), tokenizer, ["a"])
        assert "renders no talk of ['system', 'user']" in caplog.text
        assert new.tokenize("Exhibit") == tokenizer.tokenize("Exhibit")

    def test_rare_tokens_go_but_those_of_the_template(self):
        tokenizer = trained("byte_level")
        tokenizer.chat_template = "{% for m in messages %}Exhibit of purposes {{ m.content }}{% endfor %}"
        _, new = hfprune.prune_vocabulary(model_for(tokenizer), tokenizer, LINES, min_count=50)
        assert len(new) < 400
        assert new.tokenize("Exhibit of purposes") == tokenizer.tokenize("Exhibit of purposes")


@pytest.mark.contract
class TestModels:
    @pytest.mark.parametrize("model_type", sorted(set(SIZES) - {"vit", "wav2vec2"}))
    def test_rows_of_every_architecture(self, model_type):
        assert model_type in known_architectures()
        model = tiny_model(model_type, next(head for head in HEADS if has_head(model_type, head)))
        kept = sorted({*range(4), *named_ids(model), *fixed_ids(model), *range(5, VOCABULARY, 2)})
        small, old, batch = keep_tokens(model, kept), torch.tensor(kept), tiny_batch(model_type)
        new = {k: 4 + v % (len(kept) - 4) if k.endswith("input_ids") else v for k, v in batch.items()}
        for name in new.keys() & {"input_ids"}:
            new[name][batch[name] < 4] = batch[name][batch[name] < 4]
        dense = output(model, {k: old[v] if k.endswith("input_ids") else v for k, v in new.items()})
        dense = dense[..., old] if dense.shape[-1] == VOCABULARY else dense
        assert torch.allclose(output(small, new), dense, atol=1e-5)
        assert small.get_input_embeddings().padding_idx == model.get_input_embeddings().padding_idx

    @pytest.mark.parametrize("model_type", ["vit", "wav2vec2"])
    def test_models_without_tokens(self, model_type):
        with pytest.raises(StructureError, match="None rows of input embeddings. Vocabulary pruning is for models of"):
            keep_tokens(tiny_model(model_type), [0])

    def test_ids_that_cannot_be(self):
        model = tiny_model("bert")
        with pytest.raises(ValueError, match=r"must increase, from 0 to 63, got \[2, 1\]"):
            keep_tokens(model, [2, 1])
        with pytest.raises(ValueError, match=r"the ids \[1, 3\] have a role in the model's config"):
            keep_tokens(model, [2, 5])

    def test_ids_in_configs(self):
        model = tiny_model("llama", "AutoModelForCausalLM", eos_token_id=[3, 20], pad_token_id=30)
        generation = model.generation_config
        generation.eos_token_id, generation.pad_token_id = [3, 20], 30
        generation.suppress_tokens, generation.bad_words_ids = [7, 10, 999], [[7, 8], [10, 11], [12]]
        generation.forced_decoder_ids, generation.lang_to_id = [[1, 40], [2, None]], {"<|en|>": 50}
        generation.sequence_bias = {(10, 12): -1.0, (7,): 2.0}
        kept = [2, 3, *range(10, 64, 2), 11]
        small = keep_tokens(model, sorted(kept))
        new = {number: place for place, number in enumerate(sorted(kept))}
        assert small.config.eos_token_id == small.generation_config.eos_token_id == [new[3], new[20]]
        assert small.config.pad_token_id == small.model.embed_tokens.padding_idx == new[30]
        assert small.generation_config.suppress_tokens == [new[10], 999]
        assert small.generation_config.bad_words_ids == [[new[10], new[11]], [new[12]]]
        assert small.generation_config.forced_decoder_ids == [[1, new[40]], [2, None]]
        assert small.generation_config.lang_to_id == {"<|en|>": new[50]}
        assert small.generation_config.sequence_bias == [[[new[10], new[12]], -1.0]]
        assert generation.bad_words_ids == [[7, 8], [10, 11], [12]]
