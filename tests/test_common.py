"""What transformers promises of every model holds for pruned ones: its common checks, for five families."""

import pytest
import torch

import hfprune
from hfprune.publishing.verification import verify
from hfprune.structure import find_blocks
from hfprune.structure.modeling_pruned import PrunedModel
from tests.support.plans import removed_plan, uneven_plan
from tests.support.tiny import VOCABULARY, tiny_batch, tiny_model

HEADS = {
    "bert": "AutoModelForMaskedLM",
    "modernbert": "AutoModelForMaskedLM",
    "gpt2": "AutoModelForCausalLM",
    "llama": "AutoModelForCausalLM",
    "t5": "AutoModelForSeq2SeqLM",
}
GENERATORS = ("gpt2", "llama", "t5")
every_family = pytest.mark.parametrize("family", HEADS)
every_generator = pytest.mark.parametrize("family", GENERATORS)


def dense_and_pruned(family, **changes):
    dense = tiny_model(family, HEADS[family], **changes)
    pruned = hfprune.apply_plan(dense, uneven_plan(dense))
    assert isinstance(pruned, PrunedModel)
    return dense, pruned


def batch_of(family):
    return tiny_batch(family, target=5)


def without_cache(family):
    return {**batch_of(family), "use_cache": False} if family in GENERATORS else batch_of(family)


def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits


def saved_and_loaded(model, folder):
    hfprune.save(model, folder)
    assert verify(folder) == []
    return hfprune.load(folder)


def prompt(family, **changes):
    batch = tiny_batch(family, **changes)
    batch.pop("decoder_input_ids", None)
    return batch


GREEDY = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


def gradients(model, batch):
    """The loss and its gradients in training mode, and how often the first consumer ran."""
    consumer, runs = model.base_model.get_submodule(find_blocks(model)[0].consumer), []
    handle = consumer.register_forward_hook(lambda *_: runs.append(1))
    torch.manual_seed(0)
    model.train().zero_grad()
    loss = model(**batch, labels=batch.get("decoder_input_ids", batch["input_ids"])).loss
    loss.backward()
    handle.remove()
    return loss, {name: parameter.grad for name, parameter in model.named_parameters()}, len(runs)


@every_family
def test_gradient_checkpointing(family):
    _, pruned = dense_and_pruned(family)
    batch = without_cache(family)
    loss, expected, runs = gradients(pruned, batch)
    pruned.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    again, found, runs_again = gradients(pruned, batch)
    assert (runs, runs_again) == (1, 2), "nothing was recomputed"
    assert torch.equal(loss, again)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


@every_family
@pytest.mark.parametrize("size", [VOCABULARY + 6, VOCABULARY - 4])
def test_resize_token_embeddings(family, size, tmp_path):
    dense, pruned = dense_and_pruned(family)
    batch = {name: ids.clamp(max=size - 1) for name, ids in batch_of(family).items()}
    before = logits(pruned, batch)
    pruned.resize_token_embeddings(size, mean_resizing=False)
    dense.resize_token_embeddings(size, mean_resizing=False)
    after, common = logits(pruned, batch), min(size, VOCABULARY)
    assert after.shape == logits(dense, batch).shape
    torch.testing.assert_close(after[..., :common], before[..., :common])
    again = saved_and_loaded(pruned, tmp_path / "small")
    assert again.get_input_embeddings().num_embeddings == again.config.vocab_size == size
    assert torch.equal(logits(again, batch), after)
    further = hfprune.apply_plan(again, uneven_plan(again))
    assert logits(further, batch).shape == after.shape


def tied(model):
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


@every_family
@pytest.mark.parametrize("tie", [True, False])
def test_tied_weights_stay_tied(family, tie, tmp_path):
    dense, pruned = dense_and_pruned(family, tie_word_embeddings=tie)
    tie = tie or family == "t5"  # transformers ties it always, and takes False for "do not scale the outputs"
    assert tied(dense) == tied(pruned) == tie
    again = saved_and_loaded(pruned, tmp_path / "small")
    assert tied(again) == tie
    assert again.num_parameters() == pruned.num_parameters()
    assert torch.equal(logits(pruned, batch_of(family)), logits(again, batch_of(family)))


@every_family
def test_save_and_load_in_shards(family, tmp_path):
    _, pruned = dense_and_pruned(family)
    whole = saved_and_loaded(pruned, tmp_path / "whole")  # with the record that save makes
    whole.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    assert verify(tmp_path / "shards") == []
    for again in (hfprune.load(tmp_path / "shards"), type(whole).from_pretrained(tmp_path / "shards")):
        assert torch.equal(logits(pruned, batch_of(family)), logits(again, batch_of(family)))
        assert again.pruning_plan == pruned.pruning_plan


def exported(model, batch):
    return torch.export.export(model, (), batch, strict=False).module()


def compiled(model, _):
    torch.compiler.reset()
    return torch.compile(model, backend="eager", fullgraph=True)


@every_family
@pytest.mark.parametrize("made", [exported, compiled])
def test_export_and_compile(family, made):
    _, pruned = dense_and_pruned(family)
    batch = without_cache(family)
    torch.testing.assert_close(logits(made(pruned, batch), batch), logits(pruned, batch), rtol=0, atol=2e-6)


@pytest.mark.parametrize("made", [exported, compiled])
def test_export_and_compile_without_whole_blocks(made):
    """An attention module that has no heads left has another `forward`."""
    dense, batch = tiny_model("bert"), tiny_batch("bert")
    pruned = hfprune.apply_plan(dense, removed_plan(dense))
    assert 0 in [block.units for block in find_blocks(pruned) if block.kind == "attention"]
    torch.testing.assert_close(logits(made(pruned, batch), batch), logits(pruned, batch), rtol=0, atol=2e-6)


@every_generator
def test_beam_search(family, tmp_path):
    _, pruned = dense_and_pruned(family)
    options = {**prompt(family, length=5), **GREEDY, "num_beams": 3}
    tokens = pruned.generate(**options)
    assert not torch.equal(tokens, pruned.generate(**{**options, "num_beams": 1})), "beams change nothing"
    assert torch.equal(tokens, pruned.generate(**options, use_cache=False))
    assert torch.equal(tokens, saved_and_loaded(pruned, tmp_path / "small").generate(**options))


@every_generator
def test_draft_of_its_dense_parent(family):
    dense, pruned = dense_and_pruned(family)
    options = {**prompt(family, length=5, samples=1), **GREEDY}
    calls = []
    handle = pruned.register_forward_hook(lambda *_: calls.append(1))
    tokens = dense.generate(**options, assistant_model=pruned)
    handle.remove()
    assert calls, "the draft was not asked"
    assert torch.equal(tokens, dense.generate(**options))


@every_generator
def test_padding_does_not_change_what_is_generated(family):
    """On the left for decoders, on the right for encoders."""
    _, pruned = dense_and_pruned(family)
    lengths = (7, 4, 5)
    texts = [torch.randint(4, VOCABULARY, (1, n), generator=torch.Generator().manual_seed(n)) for n in lengths]
    ids, mask = torch.full((3, 7), 1), torch.zeros(3, 7, dtype=torch.long)
    for row, text in enumerate(texts):
        place = slice(0, text.shape[1]) if family == "t5" else slice(7 - text.shape[1], 7)
        ids[row, place], mask[row, place] = text[0], 1
    together = pruned.generate(input_ids=ids, attention_mask=mask, **GREEDY)[:, -6:]
    alone = [pruned.generate(input_ids=text, attention_mask=torch.ones_like(text), **GREEDY)[0, -6:] for text in texts]
    assert torch.equal(together, torch.stack(alone))
