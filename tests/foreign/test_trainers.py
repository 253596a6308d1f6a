"""Libraries that train and run models that others publish, on pruned checkpoints: `make suite-trainers`.

They are given the folder of a checkpoint, as their users give it, and what they save must still be pruned as it was.
"""

import copy

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

import hfprune
from tests.foreign.checkpoints import WIDER, tiny, uneven
from tests.support.tiny import tiny_model
from tests.support.tiny_tokenizers import trained

pytestmark = [pytest.mark.slow, pytest.mark.suite_trainers, pytest.mark.filterwarnings("default")]

TEXTS = ["who is the dog", "the river of the city", "what is a name", "where is the cat"]
PAIRS = [(text, "a dog") for text in TEXTS]


@pytest.fixture
def decoder(tmp_path):
    """The folder of an uneven llama, with a tokenizer."""
    tokenizer = trained("byte_level")
    return hfprune.save(uneven(tiny("llama")), tmp_path / "decoder", tokenizer=tokenizer)


def saved_encoder(folder, head, **changes):
    """The folder of an uneven BERT, with a tokenizer."""
    model = uneven(tiny_model("bert", head, **WIDER, **changes))
    return hfprune.save(model, folder, tokenizer=words())


def words():
    """A tokenizer without a chat template, which sentence-transformers would put pairs into."""
    tokenizer = copy.deepcopy(trained("word_piece"))
    tokenizer.chat_template = None
    return tokenizer


def check_still_pruned(after, before):
    """Weights were trained, and the plan and the sizes are those from before."""
    first = hfprune.load(before)
    assert after.pruning_plan == first.pruning_plan
    shapes = {name: tensor.shape for name, tensor in first.state_dict().items()}
    assert {name: tensor.shape for name, tensor in after.state_dict().items()} == shapes
    assert any(not torch.equal(tensor, after.state_dict()[name]) for name, tensor in first.state_dict().items())


def two_steps(folder):
    """Arguments of a trainer of trl: two steps that change weights, with nothing saved in between."""
    return {
        "output_dir": str(folder / "out"),
        "max_steps": 2,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 2,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
    }


def check_trained(trainer, folder, before):
    """A trainer of trl trains, and what it saves is pruned as before."""
    trainer.train()
    trainer.save_model()
    check_still_pruned(hfprune.load(folder / "out"), before)


def test_trl_supervised(decoder, tmp_path):
    trl = pytest.importorskip("trl")
    settings = trl.SFTConfig(**two_steps(tmp_path), max_length=16)
    data = Dataset.from_dict({"text": TEXTS})
    trainer = trl.SFTTrainer(model=str(decoder), args=settings, train_dataset=data)
    check_trained(trainer, tmp_path, decoder)


def test_trl_rewards(decoder, tmp_path):
    trl = pytest.importorskip("trl")
    settings = trl.GRPOConfig(**two_steps(tmp_path), num_generations=2, max_completion_length=4)
    data = Dataset.from_dict({"prompt": TEXTS})

    def reward(completions, **_):
        return [float(number) for number in range(len(completions))]

    trainer = trl.GRPOTrainer(model=str(decoder), reward_funcs=reward, args=settings, train_dataset=data)
    check_trained(trainer, tmp_path, decoder)


def test_a_cross_encoder_scores_pairs(tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = saved_encoder(tmp_path / "encoder", "AutoModelForSequenceClassification", num_labels=1)
    encoder = sentence_transformers.CrossEncoder(str(folder), device="cpu")
    scores = encoder.predict(PAIRS, activation_fn=torch.nn.Identity())
    batch = words()(*map(list, zip(*PAIRS, strict=True)), padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = hfprune.load(folder)(**batch).logits[:, 0]
    assert torch.allclose(torch.as_tensor(scores), expected, atol=1e-5)
    encoder.save_pretrained(str(tmp_path / "again"))
    again = sentence_transformers.CrossEncoder(str(tmp_path / "again"), device="cpu")
    assert (again.predict(PAIRS, activation_fn=torch.nn.Identity()) == scores).all()


def test_setfit_learns_from_few_texts(tmp_path):
    setfit = pytest.importorskip("setfit")
    folder = saved_encoder(tmp_path / "encoder", "AutoModel")
    model = setfit.SetFitModel.from_pretrained(str(folder), device="cpu")
    settings = setfit.TrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=2, batch_size=2, body_learning_rate=1e-2, report_to="none"
    )
    data = Dataset.from_dict({"text": TEXTS, "label": [0, 1, 0, 1]})
    setfit.Trainer(model=model, args=settings, train_dataset=data).train()
    model.save_pretrained(str(tmp_path / "again"))
    again = setfit.SetFitModel.from_pretrained(str(tmp_path / "again"), device="cpu")
    assert (again.predict_proba(TEXTS) == model.predict_proba(TEXTS)).all()
    check_still_pruned(again.model_body[0].auto_model, folder)


def test_layers_on_the_disk(decoder, tmp_path):
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    whole = AutoModelForCausalLM.from_pretrained(decoder, trust_remote_code=True)
    for number in range(whole.config.num_hidden_layers):
        places[f"model.layers.{number}"] = "disk" if number else "cpu"
    spread = AutoModelForCausalLM.from_pretrained(
        decoder, trust_remote_code=True, device_map=places, offload_folder=tmp_path / "offloaded"
    )
    batch = trained("byte_level")(TEXTS[:1], return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(spread(**batch).logits, whole(**batch).logits)
