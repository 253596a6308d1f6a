"""What recovery is given: swapped tokens, batches of encoder-decoders and of sound, columns of the data, callbacks."""

import copy

import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

from hfprune import GradualPruning, PruningConfig, RecoveryTrainer, add_teacher_logits
from hfprune.recovery.learning import without_dropout
from hfprune.recovery.losses.logits import logits_loss
from hfprune.recovery.token_dropout import swap_tokens
from tests.support.tiny import tiny_batch, tiny_model
from tests.support.tiny_data import tiny_tokenized, tiny_tokenizer
from tests.support.training import arguments, pruned_pair, trainer_of


def labelled():
    return {**tiny_batch(), "labels": torch.tensor([0, 1, 2, 0])}


def parts_of(student, teacher, batch, folder, **weights):
    """The parts of the loss of a batch."""
    weights = {"task_weight": 0.0, "hidden_states_weight": 1.0, "attention_outputs_weight": 1.0, **weights}
    trainer = trainer_of(student, teacher, arguments(folder, **weights))
    found, _, _ = trainer._loss.terms(student, student, batch, trainer.accelerator.autocast())
    return {name: float(torch.stack([value.detach() for value, _ in terms]).mean()) for name, terms in found.items()}


class TestTokenDropout:
    def test_the_share_is_replaced_by_tokens_of_the_batch_and_special_tokens_stay(self):
        torch.manual_seed(0)
        ids = torch.randint(4, 60, (2000, 100)) // 2 * 2
        ids[:, 0], ids[:, -20:] = 3, 1
        new = swap_tokens(ids, 0.3, keep=[0, 1, 2, 3])
        assert torch.equal(new[:, 0], ids[:, 0])
        assert torch.equal(new[:, -20:], ids[:, -20:])
        assert set(new[:, 1:-20].flatten().tolist()) <= set(range(4, 60, 2))
        # one in 28 is replaced by itself; texts differ in how many are
        changed = (new != ids).float()[:, 1:-20].mean(1)
        assert changed.mean() == pytest.approx(0.3 * 27 / 28, abs=0.02)
        assert changed.min() < 0.05 < 0.5 < changed.max()

    def test_nothing_to_replace(self):
        assert torch.equal(swap_tokens(torch.ones(2, 3).long(), 0.5, keep=[1]), torch.ones(2, 3).long())

    def test_the_teacher_reads_the_same_text(self, tmp_path):
        small, dense = pruned_pair(num_labels=3)
        trainer = trainer_of(small, dense, arguments(tmp_path, token_dropout=0.9))
        read = []
        for model in (small, dense):
            model.register_forward_pre_hook(lambda _, __, kw: read.append(kw["input_ids"]), with_kwargs=True)
        batch = labelled()
        trainer.compute_loss(small.train(), batch)
        assert torch.equal(read[0], read[1])
        assert not torch.equal(read[0], batch["input_ids"])
        trainer.compute_loss(small.eval(), batch)
        assert torch.equal(read[2], batch["input_ids"])

    def test_it_needs_the_tokenizer(self, tmp_path):
        with pytest.raises(ValueError, match="needs to know the special tokens: pass processing_class=tokenizer"):
            RecoveryTrainer(tiny_model("bert"), arguments(tmp_path, token_dropout=0.1))


@pytest.mark.parametrize("kind", ["bart", "t5"])
@pytest.mark.parametrize("target", [7, 5])
def test_a_decoder_reads_the_labels_in_both_models(kind, target, tmp_path):
    """Equal models have no distance; data collators without the model leave `decoder_input_ids` out."""
    teacher = tiny_model(kind, "AutoModelForSeq2SeqLM").eval()
    batch = tiny_batch(kind, target=target)
    batch["labels"] = batch.pop("decoder_input_ids")
    batch["labels"][0, -2:] = -100
    found = parts_of(copy.deepcopy(teacher), teacher, batch, tmp_path)
    assert found.keys() == {"logits", "hidden_states", "attention_outputs"}
    assert max(found.values()) < 1e-6


def test_padding_of_a_decoder_does_not_count(tmp_path):
    small, teacher = pruned_pair("bart", "AutoModelForSeq2SeqLM", dropout=0.0, attention_dropout=0.0)
    batch = tiny_batch("bart", target=5)
    batch["labels"] = batch.pop("decoder_input_ids")
    longer = {**batch, "labels": torch.cat([batch["labels"], torch.full((4, 9), -100)], 1)}
    found = [parts_of(small.eval(), teacher.eval(), each, tmp_path) for each in (batch, longer)]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.parametrize("head", ["AutoModel", "AutoModelForCTC"])
def test_masks_of_sound_are_of_other_lengths_than_its_frames(head, tmp_path):
    small, teacher = pruned_pair("wav2vec2", head)
    batch = tiny_batch("wav2vec2")
    batch["attention_mask"] = torch.ones(batch["input_values"].shape, dtype=torch.long)
    if head == "AutoModelForCTC":
        batch["labels"] = torch.randint(4, 60, (4, 3))
    found = parts_of(small, teacher, batch, tmp_path)
    assert found["hidden_states"] > 0
    assert ("logits" in found) == (head == "AutoModelForCTC")


def test_without_labels_samples_count_under_accumulation(tmp_path):
    """Micro-batches of 5 and 1 sample give the step of the whole batch."""
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    small, teacher = pruned_pair(num_labels=3, **off)
    data = tiny_tokenized(6).remove_columns("labels")
    found = []
    for size, steps in ((6, 1), (5, 2)):
        sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        args = arguments(
            tmp_path, task_weight=0.0, max_steps=1, optim="sgd", max_grad_norm=0, learning_rate=1.0, **sizes
        )
        model = copy.deepcopy(small)
        trainer_of(model, teacher, args, data).train()
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    start = torch.cat([p.detach().flatten() for p in small.parameters()])
    assert (found[0] - start).abs().max() > 1e-3
    assert (found[0] - found[1]).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_tokens_of_encoder_and_decoder_count_for_themselves_under_accumulation(kind, tmp_path):
    """Micro-batches of 2 give the step of the whole batch, with texts and targets of unlike lengths."""
    off = {"dropout": 0.0, "attention_dropout": 0.0} if kind == "bart" else {"dropout_rate": 0.0}
    small, teacher = pruned_pair(kind, "AutoModelForSeq2SeqLM", **off)
    batch = tiny_batch(kind, samples=8, length=12, target=12)
    mask, labels = torch.ones(8, 12, dtype=torch.long), batch.pop("decoder_input_ids")
    for row, (source, target) in enumerate([(3, 12), (9, 3), (5, 8), (12, 2), (7, 2), (4, 11), (10, 3), (6, 9)]):
        mask[row, source:], labels[row, target:] = 0, -100
    columns = {"input_ids": batch["input_ids"], "attention_mask": mask, "labels": labels}
    data = Dataset.from_dict({name: value.tolist() for name, value in columns.items()})
    found = []
    for size, steps in ((8, 1), (2, 4)):
        sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        parts = {"task_weight": 0.0, "logits_weight": 0.0, "hidden_states_weight": 1.0, "attention_outputs_weight": 1.0}
        args = arguments(
            tmp_path,
            max_steps=1,
            optim="sgd",
            max_grad_norm=0,
            learning_rate=0.1,
            lr_scheduler_type="constant",
            train_sampling_strategy="sequential",
            **sizes,
            **parts,
        )
        model = copy.deepcopy(small)
        RecoveryTrainer(model, args, teacher=teacher, train_dataset=data).train()
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    start = torch.cat([p.detach().flatten() for p in small.parameters()])
    assert (found[0] - found[1]).norm() < 1e-3 * (found[0] - start).norm()


def test_what_several_labels_are_learned_from(tmp_path):
    """Sigmoids, also where no config says it and the labels are all that does, and are not learned from."""
    small, teacher = pruned_pair(num_labels=3)
    batch = {**labelled(), "labels": torch.tensor([[1.0, 0.0, 1.0]] * 4)}
    found = parts_of(small.eval(), teacher.eval(), batch, tmp_path, hidden_states_weight=0.0)["logits"]
    with torch.no_grad():
        logits = [model(**tiny_batch()).logits for model in (small, teacher)]
    temperature = arguments(tmp_path).temperature
    expected = logits_loss(*logits, temperature=temperature, problem="multi_label_classification")
    assert found == pytest.approx(float(expected), rel=1e-5)
    assert small.config.problem_type is None


def test_key_value_caches_are_not_built_and_the_config_stays(tmp_path):
    """Trainer would write `use_cache=False` into a config that is saved with the model."""
    small, teacher = pruned_pair("llama", "AutoModelForCausalLM")
    assert small.config.use_cache is True
    data = Dataset.from_dict({"input_ids": torch.randint(4, 60, (8, 6)).tolist()})
    data = data.add_column("labels", data["input_ids"][:])
    trainer = RecoveryTrainer(small, arguments(tmp_path), teacher=teacher, train_dataset=data, eval_dataset=data)
    built = []
    for model in (small, teacher):
        model.register_forward_hook(lambda _, __, output: built.append(output.get("past_key_values")))
    trainer.train()
    trainer.evaluate()
    assert len(built) == 3
    assert not any(built)
    assert small.config.use_cache is True


def test_several_gpus_in_one_process_are_refused(tmp_path):
    args = arguments(tmp_path)
    args._n_gpu = 2
    with pytest.raises(ValueError, match=r"sees 2 GPUs.*`accelerate launch` or torchrun.*CUDA_VISIBLE_DEVICES=0"):
        trainer_of(*pruned_pair(num_labels=3), args)


def test_a_step_without_any_label_is_no_nan(tmp_path):
    small, teacher = pruned_pair("bert", "AutoModelForTokenClassification", num_labels=3)
    data = tiny_tokenized(8)
    data = data.map(lambda row: {"labels": [-100] * len(row["input_ids"])})
    args = arguments(tmp_path, max_steps=1, logging_nan_inf_filter=False, hidden_states_weight=0.5)
    trainer = RecoveryTrainer(
        small, args, teacher=teacher, train_dataset=data, data_collator=padded_labels, processing_class=tiny_tokenizer()
    )
    assert trainer.train().training_loss >= 0


def padded_labels(rows):
    batch = DataCollatorWithPadding(tiny_tokenizer())([{k: v for k, v in r.items() if k != "labels"} for r in rows])
    return {**batch, "labels": torch.full(batch["input_ids"].shape, -100)}


class TestTeacherLogits:
    def test_all_that_the_teacher_takes_is_given(self):
        teacher = tiny_model("layoutlm", num_labels=3).eval()
        batch = tiny_batch("layoutlm")
        boxes = torch.randint(0, 100, (4, 7, 4)).sort(-1).values
        columns = {**{name: value.tolist() for name, value in batch.items()}, "bbox": boxes.tolist()}
        data = Dataset.from_dict({**columns, "labels": [0, 1, 2, 0], "text": ["a", "b", "c", "d"]})
        with torch.no_grad():
            expected = teacher(**batch, bbox=boxes).logits
        found = add_teacher_logits(data, teacher).with_format("torch")["teacher_logits"][:]
        torch.testing.assert_close(found, expected)

    def test_texts_of_different_lengths_need_a_collator(self):
        with pytest.raises(ValueError, match="pass collator=DataCollatorWithPadding"):
            add_teacher_logits(tiny_tokenized(), tiny_model("bert", num_labels=3))

    def test_another_collator_is_another_text(self, tmp_path):
        """One that forgets the mask, first: what the other one asks for is not taken from the cache."""
        tiny_tokenized(8).remove_columns("labels").save_to_disk(tmp_path / "data")
        teacher, pad = tiny_model("bert", num_labels=3).eval(), DataCollatorWithPadding(tiny_tokenizer())
        said = []
        for collator in (lambda rows: {"input_ids": pad(rows)["input_ids"]}, pad):
            data = Dataset.load_from_disk(str(tmp_path / "data"))
            said.append(add_teacher_logits(data, teacher, collator=collator).with_format("torch")["teacher_logits"][:])
        with torch.no_grad():
            expected = teacher(**pad([dict(row) for row in data])).logits
        torch.testing.assert_close(said[1], expected)
        assert (said[0] - said[1]).abs().max() > 1e-3

    def test_sounds_of_unlike_lengths_one_by_one(self):
        rows = [{"input_values": [0.1 * i] * (400 + 40 * i)} for i in range(3)]
        found = add_teacher_logits(
            Dataset.from_list(rows),
            tiny_model("wav2vec2", "AutoModelForAudioClassification", num_labels=3),
            batch_size=1,
        )
        assert len(found["teacher_logits"][2]) == 3

    def test_another_config_is_another_teacher(self):
        ids = {"input_ids": torch.randint(4, 60, (4, 6), generator=torch.Generator().manual_seed(0)).tolist()}
        said = []
        for theta in (1e4, 3.0):
            model = tiny_model("llama", num_labels=3, rope_parameters={"rope_type": "default", "rope_theta": theta})
            said.append(add_teacher_logits(Dataset.from_dict(ids), model.eval())["teacher_logits"][:])
        assert said[0] != said[1]


def test_gradual_pruning_needs_the_trainer_that_cuts(tmp_path):
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", max_steps=1)
    gradual = GradualPruning(PruningConfig(sparsity=0.4, sequence_length=8))
    trainer = Trainer(
        tiny_model("bert", num_labels=3),
        args,
        train_dataset=tiny_tokenized(),
        data_collator=DataCollatorWithPadding(tiny_tokenizer()),
        callbacks=[gradual],
    )
    with pytest.raises(ValueError, match="works with hfprune.RecoveryTrainer only, which cuts"):
        trainer.train()
    assert not gradual.attached


@pytest.mark.parametrize("kind", ["bert", "bart", "gpt2", "mistral"])
def test_without_dropout_a_model_in_training_computes_what_it_does_in_evaluation(kind):
    rates = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout"), 0.5)
    rates |= dict.fromkeys(("dropout", "activation_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.5)
    model = tiny_model(kind, "AutoModel", **rates)
    batch = tiny_batch(kind)
    with torch.no_grad():
        expected = model.eval()(**batch)[0]
        assert (model.train()(**batch)[0] - expected).abs().max() > 1e-2
        with without_dropout(model):
            torch.testing.assert_close(model(**batch)[0], expected)
        assert (model(**batch)[0] - expected).abs().max() > 1e-2


def test_a_trainer_without_dropout(tmp_path):
    small, teacher = pruned_pair(num_labels=3)
    rates, seen = [m.p for m in small.modules() if isinstance(m, torch.nn.Dropout)], []
    small.register_forward_pre_hook(
        lambda m, _: seen.extend(d.p for d in m.modules() if isinstance(d, torch.nn.Dropout))
    )
    trainer_of(small, teacher, arguments(tmp_path, disable_dropout=True, max_steps=1)).train()
    assert len(seen) > 3
    assert set(seen) == {0.0}
    assert [m.p for m in small.modules() if isinstance(m, torch.nn.Dropout)] == rates
    assert max(rates) > 0
    with pytest.raises(ValueError, match="disable_dropout is for lora_dropout=0.1 too"):
        arguments(tmp_path, disable_dropout=True, lora_rank=2, lora_dropout=0.1)


def test_predictions_come_in_the_order_of_the_rows(tmp_path):
    """Also where training groups texts by their length: metrics compare them with the rows."""
    small, dense = pruned_pair(num_labels=3)
    found = []
    for strategy in ("random", "group_by_length"):
        args = arguments(tmp_path, train_sampling_strategy=strategy, per_device_eval_batch_size=4)
        found.append(trainer_of(small, dense, args).predict(tiny_tokenized()))
    assert found[0].label_ids.tolist() == found[1].label_ids.tolist() == tiny_tokenized()["labels"]
    torch.testing.assert_close(torch.tensor(found[0].predictions), torch.tensor(found[1].predictions))
