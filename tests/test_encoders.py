"""Objects of sentence-transformers: pruned, saved and loaded whole, with and without hfprune."""

import copy
import dataclasses
import json

import pytest
import torch
from transformers import AutoConfig

import hfprune
from hfprune import PruningConfig, RecoveryArguments
from hfprune.encoders import embedding_model, is_encoder, opened
from hfprune.errors import CalibrationError, CheckpointError, UnsupportedArchitectureError
from hfprune.publishing.verification import verify
from hfprune.recovery.losses.embeddings import embeddings_loss, similarities_loss
from hfprune.structure.embedder import SentenceEmbedder
from tests.support.tiny import tiny_model
from tests.support.tiny_tokenizers import trained

sentence_transformers = pytest.importorskip("sentence_transformers")
modules = pytest.importorskip("sentence_transformers.base.modules")
Pooling = pytest.importorskip("sentence_transformers.sentence_transformer.modules").Pooling

WIDER = {"hidden_size": 32, "intermediate_size": 64}
TEXTS = [
    f"the {noun} of the {other} is {kind}"
    for noun in ("law", "work", "use")
    for other in ("notice", "license", "copyright", "source")
    for kind in ("granted", "subject to the terms", "limited", "a contribution")
]
PAIRS = list(zip(TEXTS, reversed(TEXTS), strict=True))
CONFIG = PruningConfig(sparsity=0.4, calibration_samples=32, sequence_length=16, round_to=1)


def body_folder(folder, model_type="bert", head="AutoModel", **changes):
    """The folder of a tiny model with a tokenizer."""
    tokenizer = copy.deepcopy(trained("word_piece"))
    tokenizer.chat_template = None
    # with padding on the left, BERT's positions of a text would depend on the others of its batch
    tokenizer.padding_side = "right"
    sizes = {"vocab_size": 1024, **(changes if model_type != "bert" else {**WIDER, **changes})}
    tiny_model(model_type, head, **sizes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def sentence_encoder(folder, *, behind=None, **changes):
    """A tiny SentenceTransformer: pooled, projected and normalised unless other modules are given."""
    transformer = modules.Transformer(body_folder(folder, **changes))
    if behind is None:
        behind = [Pooling(32, "mean"), modules.Dense(32, 8), modules.Normalize()]
    return sentence_transformers.SentenceTransformer(modules=[transformer, *behind], device="cpu").eval()


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    torch.manual_seed(0)
    return sentence_encoder(tmp_path_factory.mktemp("body"))


@pytest.fixture(scope="module")
def small(dense):
    return hfprune.prune(dense, TEXTS, CONFIG)


@pytest.fixture(scope="module")
def reranker(tmp_path_factory):
    torch.manual_seed(0)
    folder = body_folder(tmp_path_factory.mktemp("ranker"), head="AutoModelForSequenceClassification", num_labels=1)
    return sentence_transformers.CrossEncoder(folder, device="cpu")


def vectors(encoder, texts=TEXTS):
    return torch.as_tensor(encoder.encode(list(texts), show_progress_bar=False))


def weights(encoder):
    return {name: tensor.clone() for name, tensor in encoder.state_dict().items()}


class TestTheModelInside:
    def test_it_knows_the_object_that_it_is_of(self, dense, tmp_path):
        encoder = opened(dense)
        small = hfprune.prune(encoder.model, encoder.rows(TEXTS), CONFIG, collator=encoder.collator)
        assert isinstance(small, SentenceEmbedder)
        assert small.whole[0].model is small.body
        assert list(small.whole.children())[1:] == list(small.behind)
        hfprune.save(small, tmp_path / "small", tokenizer=encoder.tokenizer)
        again = sentence_transformers.SentenceTransformer(str(tmp_path / "small"), device="cpu")
        assert torch.allclose(vectors(again), vectors(small.whole), atol=1e-6)

    def test_labels_are_vectors(self, dense):
        encoder = opened(dense)
        batch = encoder.collator([encoder.rows(TEXTS)[number] for number in range(4)])
        goal = torch.randn(4, 8)
        found = encoder.model(**batch, labels=goal)
        assert torch.allclose(found.loss, (found.sentence_embedding - goal).square().sum(1).mean())
        assert encoder.model(**batch).loss is None

    def test_it_computes_what_encode_computes(self, dense):
        encoder = opened(dense)
        rows = encoder.rows(TEXTS)
        batch = encoder.collator([rows[0], rows[5], rows[9]])
        expected = vectors(dense, [TEXTS[0], TEXTS[5], TEXTS[9]])
        assert torch.allclose(encoder.model(**batch).sentence_embedding, expected, atol=1e-6)
        assert torch.equal(encoder.embed(TEXTS), vectors(dense))

    def test_it_shares_weights_with_the_object(self, dense):
        model = embedding_model(dense)
        assert model.body is dense[0].model
        assert list(model.behind) == list(dense.children())[1:]

    def test_default_prompts_are_put_before_texts_and_left_out_of_the_mean(self, tmp_path):
        behind = [Pooling(32, "mean", include_prompt=False), modules.Normalize()]
        whole = sentence_encoder(tmp_path, behind=behind)
        whole.prompts = {"search": "the work of "}
        whole.default_prompt_name = "search"
        encoder = opened(whole)
        rows = encoder.rows(TEXTS)
        batch = encoder.collator([rows[number] for number in range(4)])
        assert torch.allclose(encoder.model(**batch).sentence_embedding, vectors(whole, TEXTS[:4]), atol=1e-6)

    def test_what_is_no_object_of_theirs(self, dense):
        assert not is_encoder(dense[0].model)
        assert opened(dense[0].model) is None
        with pytest.raises(TypeError, match="a SentenceTransformer is expected, got BertModel"):
            embedding_model(dense[0].model)

    def test_two_bodies_are_refused(self, tmp_path):
        behind = [Pooling(32, "mean"), modules.Transformer(body_folder(tmp_path / "second"))]
        whole = sentence_encoder(tmp_path / "first", behind=behind)
        with pytest.raises(UnsupportedArchitectureError, match="2 models of transformers in it"):
            hfprune.prune(whole, TEXTS, CONFIG)

    def test_classes_that_are_not_supported(self, tmp_path):
        whole = sentence_transformers.SparseEncoder(body_folder(tmp_path, head="AutoModelForMaskedLM"), device="cpu")
        with pytest.raises(UnsupportedArchitectureError, match="a SparseEncoder is not supported"):
            hfprune.prune(whole, TEXTS, CONFIG)

    def test_a_reranker_with_modules_behind_it(self, tmp_path):
        folder = body_folder(tmp_path)
        behind = [Pooling(32, "mean"), modules.Dense(32, 1, module_output_name="scores")]
        whole = sentence_transformers.CrossEncoder(modules=[modules.Transformer(folder), *behind], device="cpu")
        with pytest.raises(UnsupportedArchitectureError, match="a BertModel with Pooling, Dense behind it"):
            hfprune.prune(whole, PAIRS, CONFIG)


class TestPrune:
    def test_it_gives_back_another_object_of_the_same_class(self, dense, small):
        assert type(small) is type(dense)
        assert small is not dense
        assert [type(module) for module in small] == [type(module) for module in dense]
        assert small[0].model.pruning_plan.sparsity("macs") >= 0.4
        assert small[0].model.pruning_record.model_class == "BertModel"
        assert vectors(small).shape == vectors(dense).shape
        assert torch.allclose(vectors(small).norm(dim=1), torch.ones(len(TEXTS)))
        # nearer than chance: the vectors of random models are of one text as of another
        assert torch.cosine_similarity(vectors(small), vectors(dense)).mean() > 0.9

    def test_the_dense_object_stays(self, dense):
        before = weights(dense)
        body = dense[0].model
        small = hfprune.prune(dense, TEXTS, CONFIG)
        assert dense[0].model is body
        assert not hasattr(body, "pruning_plan") or body.pruning_plan is None
        after = weights(dense)
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
        with torch.no_grad():
            small[2].linear.weight.zero_()
        assert dense[2].linear.weight.any()

    def test_it_is_pruned_by_the_vectors_that_it_makes(self, dense, small):
        encoder = opened(dense)
        again = hfprune.prune(encoder.model, encoder.rows(TEXTS), CONFIG, collator=encoder.collator)
        assert isinstance(again, SentenceEmbedder)
        assert again.pruning_plan == small[0].model.pruning_plan
        # a unit that no text's vector depends on goes first
        blind = copy.deepcopy(dense)
        with torch.no_grad():
            blind[0].model.encoder.layer[1].output.dense.weight[:, 5] = 0
        encoder = opened(blind)
        batches = [encoder.collator([encoder.rows(TEXTS)[number] for number in range(8)])]
        scores = hfprune.score(encoder.model, batches, scorer="logit_fisher")
        assert scores["encoder.layer.1.ffn"].argmin() == 5
        assert scores["encoder.layer.1.ffn"][5] == 0

    def test_a_random_direction_of_the_vector(self, dense):
        """`logit_fisher` on many draws is the squared derivative of the vector by the gate."""
        encoder = opened(dense)
        batch = encoder.collator([encoder.rows(TEXTS)[0]])
        draws = 100
        scores = hfprune.score(encoder.model, [batch] * draws, scorer="logit_fisher")
        neurons = dense[0].model.encoder.layer[0].output.dense
        with torch.no_grad():
            before = encoder.model(**batch).sentence_embedding
            kept = neurons.weight[:, 3].clone()
            neurons.weight[:, 3] *= 1 - 1e-3
            after = encoder.model(**batch).sentence_embedding
            neurons.weight[:, 3] = kept
        expected = float(((after - before) / 1e-3).square().sum())
        assert float(scores["encoder.layer.0.ffn"][3]) == pytest.approx(expected, rel=0.5)

    def test_scorers_that_need_no_labels(self, dense):
        for scorer in ("kl_fisher", "obs"):
            config = PruningConfig(sparsity=0.3, calibration_samples=16, sequence_length=16, scorer=scorer, rounds=1)
            assert hfprune.prune(dense, TEXTS, config)[0].model.pruning_plan.sparsity("macs") > 0.2

    def test_labels_are_named_where_a_scorer_needs_them(self, dense):
        config = PruningConfig(scorer="fisher", calibration_samples=16, sequence_length=16)
        with pytest.raises(CalibrationError, match="this scorer needs labels"):
            hfprune.prune(dense, TEXTS, config)
        with pytest.raises(CalibrationError, match=r"hfprune\.prune\(SentenceTransformer\(\.\.\.\), texts\)"):
            hfprune.prune(dense[0].model, TEXTS, config)

    def test_data_sets_with_texts(self, dense, small):
        datasets = pytest.importorskip("datasets")
        rows = datasets.Dataset.from_dict({"number": range(len(TEXTS)), "text": TEXTS})
        assert hfprune.prune(dense, rows, CONFIG)[0].model.pruning_plan == small[0].model.pruning_plan
        encoder = opened(dense)
        tokenized = encoder.rows(TEXTS)
        assert encoder.rows(tokenized) is tokenized
        with pytest.raises(CalibrationError, match="this one has texts in one, other"):
            encoder.rows([{"one": "a", "other": "b"}])
        with pytest.raises(CalibrationError, match="every entry must be a text"):
            encoder.rows([("a", "b")])
        with pytest.raises(CalibrationError, match="got one text"):
            encoder.rows("a text")

    def test_training_between_rounds_gets_the_model_inside(self, dense):
        seen = []
        config = PruningConfig(sparsity=0.4, calibration_samples=16, sequence_length=16, rounds=2)
        hfprune.prune(dense, TEXTS, config, recover=lambda student, teacher: seen.append((student, teacher)))
        assert len(seen) == 2
        assert all(isinstance(model, SentenceEmbedder) for pair in seen for model in pair)

    @pytest.mark.parametrize(
        ("model_type", "pooling", "sizes"),
        [
            ("distilbert", "cls", {"dim": 32, "hidden_dim": 64}),
            ("modernbert", "mean", {"hidden_size": 32}),
            ("llama", "lasttoken", {"hidden_size": 32}),
        ],
    )
    def test_other_bodies(self, tmp_path, model_type, pooling, sizes):
        folder = body_folder(tmp_path / "body", model_type, **sizes)
        behind = [Pooling(32, pooling), modules.Normalize()]
        whole = sentence_transformers.SentenceTransformer(modules=[modules.Transformer(folder), *behind], device="cpu")
        pruned = hfprune.prune(whole, TEXTS, CONFIG)
        assert torch.cosine_similarity(vectors(pruned), vectors(whole)).mean() > 0.8
        hfprune.save(pruned, tmp_path / "small")
        again = sentence_transformers.SentenceTransformer(str(tmp_path / "small"), device="cpu")
        assert torch.allclose(vectors(again), vectors(pruned), atol=1e-6)

    def test_half_of_an_encoder_decoder(self, tmp_path, caplog):
        """sentence-transformers builds it by the name of its stock class."""
        behind = [Pooling(32, "mean"), modules.Normalize()]
        first = modules.Transformer(body_folder(tmp_path / "body", "t5"))
        whole = sentence_transformers.SentenceTransformer(modules=[first, *behind], device="cpu")
        uneven = hfprune.prune(whole, TEXTS, CONFIG)
        hfprune.save(uneven, tmp_path / "uneven")
        assert "SentenceTransformer(folder) will not load this PrunedT5EncoderModel" in caplog.text
        assert type(hfprune.load(tmp_path / "uneven")).__name__ == "PrunedT5EncoderModel"
        even = hfprune.prune(whole, TEXTS, dataclasses.replace(CONFIG, sparsity=0.2, portable=True))
        hfprune.save(even, tmp_path / "even")
        again = sentence_transformers.SentenceTransformer(str(tmp_path / "even"), device="cpu")
        assert torch.allclose(vectors(again), vectors(even), atol=1e-6)

    def test_pruned_again(self, small):
        again = hfprune.prune(small, TEXTS, PruningConfig(sparsity=0.6, calibration_samples=16, sequence_length=16))
        assert again[0].model.pruning_plan.sparsity("macs") >= 0.6
        assert len(again[0].model.pruning_record.earlier) == 1

    def test_portable(self, dense, tmp_path):
        config = PruningConfig(sparsity=0.3, calibration_samples=16, sequence_length=16, portable=True)
        small = hfprune.prune(dense, TEXTS, config)
        assert type(small[0].model).__name__ == "BertModel"
        hfprune.save(small, tmp_path / "small")
        assert "plain sentence-transformers loads it" in (tmp_path / "small" / "README.md").read_text()
        again = sentence_transformers.SentenceTransformer(str(tmp_path / "small"), device="cpu")
        assert torch.allclose(vectors(again), vectors(small), atol=1e-6)


class TestRecovery:
    def arguments(self, folder, **settings):
        plain = {"use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "max_steps": 30}
        return RecoveryArguments(str(folder), **{**plain, "learning_rate": 3e-3, "hidden_states_weight": 0, **settings})

    def test_it_comes_nearer_to_the_teacher(self, dense, tmp_path):
        config = PruningConfig(sparsity=0.6, calibration_samples=16, sequence_length=16, reconstruct=False, rounds=1)
        small = hfprune.prune(dense, TEXTS, config)
        before = vectors(dense)
        distance = embeddings_loss(vectors(small), before)
        trainer = hfprune.RecoveryTrainer(small, self.arguments(tmp_path), teacher=dense, train_dataset=TEXTS)
        trainer.train()
        assert trainer.model.body is small[0].model
        assert embeddings_loss(vectors(small), before) < 0.5 * distance
        assert torch.equal(vectors(dense), before)

    def test_the_loss_is_of_embeddings_and_similarities(self, dense, small, tmp_path):
        student = copy.deepcopy(small)
        settings = {"max_steps": 1, "learning_rate": 0.0, "task_weight": 0, "logits_weight": 0.5, "logging_steps": 1}
        arguments = self.arguments(tmp_path, per_device_train_batch_size=len(TEXTS), disable_dropout=True, **settings)
        trainer = hfprune.RecoveryTrainer(student, arguments, teacher=dense, train_dataset=TEXTS)
        trainer.train()
        mine, theirs = vectors(small), vectors(dense)
        expected = (embeddings_loss(mine, theirs) + similarities_loss(mine, theirs)) / 2
        assert trainer.state.log_history[0]["loss_logits"] == pytest.approx(float(expected), rel=1e-3)

    def test_it_goes_on_from_a_checkpoint(self, dense, small, tmp_path):
        texts = TEXTS[:16]
        whole, halves = copy.deepcopy(small), copy.deepcopy(small)
        settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "disable_dropout": True}
        arguments = self.arguments(tmp_path / "whole", **settings)
        hfprune.RecoveryTrainer(whole, arguments, teacher=dense, train_dataset=texts).train()
        arguments = self.arguments(tmp_path / "whole", **settings)
        trainer = hfprune.RecoveryTrainer(halves, arguments, teacher=dense, train_dataset=texts)
        trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
        assert torch.allclose(vectors(halves), vectors(whole), atol=1e-5)

    def test_the_trainer_of_sentence_transformers(self, dense, tmp_path):
        datasets = pytest.importorskip("datasets")
        config = PruningConfig(sparsity=0.6, calibration_samples=16, sequence_length=16, reconstruct=False, rounds=1)
        student = hfprune.prune(dense, TEXTS, config)
        plan = student[0].model.pruning_plan
        teacher = vectors(dense)
        data = datasets.Dataset.from_dict({"sentence": TEXTS, "label": teacher.tolist()})
        arguments = sentence_transformers.SentenceTransformerTrainingArguments(
            str(tmp_path / "out"), max_steps=20, learning_rate=3e-3, use_cpu=True, report_to="none", save_strategy="no"
        )
        loss = pytest.importorskip("sentence_transformers.sentence_transformer.losses").MSELoss(student)
        trainer = sentence_transformers.SentenceTransformerTrainer(
            model=student, args=arguments, train_dataset=data, loss=loss
        )
        before = embeddings_loss(vectors(student), teacher)
        trainer.train()
        assert embeddings_loss(vectors(student), teacher) < before
        assert student[0].model.pruning_plan == plan
        hfprune.save(student, tmp_path / "small")
        again = sentence_transformers.SentenceTransformer(str(tmp_path / "small"), device="cpu")
        assert torch.allclose(vectors(again), vectors(student), atol=1e-6)

    def test_a_reranker(self, reranker, tmp_path):
        config = PruningConfig(sparsity=0.6, calibration_samples=16, sequence_length=16, reconstruct=False, rounds=1)
        small = hfprune.prune(reranker, PAIRS, config)
        dense = torch.as_tensor(reranker.predict(PAIRS, activation_fn=torch.nn.Identity()))
        before = torch.as_tensor(small.predict(PAIRS, activation_fn=torch.nn.Identity()))
        hfprune.RecoveryTrainer(small, self.arguments(tmp_path), teacher=reranker, train_dataset=PAIRS).train()
        after = torch.as_tensor(small.predict(PAIRS, activation_fn=torch.nn.Identity()))
        assert (after - dense).square().mean() < 0.5 * (before - dense).square().mean()


class TestVocabulary:
    def test_a_smaller_vocabulary_makes_the_same_vectors(self, small, tmp_path):
        smaller, tokenizer = hfprune.prune_vocabulary(small, small.tokenizer, TEXTS)
        assert smaller.tokenizer is tokenizer
        assert len(tokenizer) < len(small.tokenizer)
        assert smaller[0].model.get_input_embeddings().num_embeddings == len(tokenizer)
        assert torch.allclose(vectors(smaller), vectors(small), atol=1e-6)
        hfprune.save(smaller, tmp_path / "smaller")
        again = sentence_transformers.SentenceTransformer(str(tmp_path / "smaller"), device="cpu")
        assert torch.allclose(vectors(again), vectors(small), atol=1e-6)


class TestRerankers:
    def test_it_gives_back_another_reranker(self, reranker):
        small = hfprune.prune(reranker, PAIRS, CONFIG)
        assert type(small) is type(reranker)
        assert small.model.pruning_plan.sparsity("macs") >= 0.4
        assert getattr(reranker.model, "pruning_plan", None) is None
        assert small.predict(PAIRS).shape == (len(PAIRS),)

    def test_it_is_saved_whole(self, reranker, tmp_path, client):
        small = hfprune.prune(reranker, PAIRS, CONFIG)
        hfprune.save(small, tmp_path / "small")
        again = sentence_transformers.CrossEncoder(str(tmp_path / "small"), device="cpu")
        assert again.predict(PAIRS) == pytest.approx(small.predict(PAIRS), abs=1e-6)
        assert verify(tmp_path / "small") == []
        assert 'CrossEncoder("small")' in (tmp_path / "small" / "README.md").read_text()

    def test_labels_of_pairs(self, reranker):
        rows = [{"query": one, "passage": two, "label": float(number)} for number, (one, two) in enumerate(PAIRS)]
        config = PruningConfig(sparsity=0.3, calibration_samples=16, sequence_length=16, scorer="fisher", rounds=1)
        assert hfprune.prune(reranker, rows, config).model.pruning_plan.sparsity("macs") > 0.2
        with pytest.raises(CalibrationError, match="a pair of texts, "):
            hfprune.prune(reranker, TEXTS, CONFIG)


LOAD = """
import torch
from sentence_transformers import SentenceTransformer
encoder = SentenceTransformer("small", device="cpu", trust_remote_code=True)
names = [type(module).__name__ for module in encoder]
say(names=names, vectors=encoder.encode(["the law of the notice"]).tolist())
"""


class TestSave:
    def test_it_loads_with_and_without_hfprune(self, small, tmp_path, client):
        folder = hfprune.save(small, tmp_path / "small")
        names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert {"modules.json", "1_Pooling/config.json", "2_Dense/model.safetensors", "pruning_plan.json"} <= names
        assert {"pruning_record.json", "modeling_pruned.py", "README.md", "tokenizer.json"} <= names
        expected = vectors(small, ["the law of the notice"])
        again = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
        assert torch.allclose(vectors(again, ["the law of the notice"]), expected, atol=1e-6)
        assert again[0].model.pruning_plan == small[0].model.pruning_plan
        said = client(LOAD, with_hfprune=False)
        assert said["names"] == ["Transformer", "Pooling", "Dense", "Normalize"]
        assert torch.allclose(torch.tensor(said["vectors"]), expected, atol=1e-5)

    def test_it_is_a_checkpoint_of_the_body(self, small, tmp_path):
        folder = hfprune.save(small, tmp_path / "small")
        assert verify(folder) == []
        body = hfprune.load(folder)
        assert type(body).__name__ == "PrunedBertModel"
        assert body.pruning_plan == small[0].model.pruning_plan

    def test_the_card_says_how_to_load_it(self, small, tmp_path):
        text = (hfprune.save(small, tmp_path / "small") / "README.md").read_text()
        assert "library_name: sentence-transformers" in text
        assert "pipeline_tag: sentence-similarity" in text
        assert 'model = SentenceTransformer("small", trust_remote_code=True)' in text

    def test_save_pretrained_of_the_object_itself(self, small, tmp_path):
        small.save_pretrained(str(tmp_path / "own"))
        names = {path.name for path in (tmp_path / "own").iterdir()}
        assert {"modules.json", "pruning_plan.json", "pruning_record.json", "modeling_pruned.py", "README.md"} <= names
        assert "removed by hfprune" in (tmp_path / "own" / "README.md").read_text()
        again = sentence_transformers.SentenceTransformer(str(tmp_path / "own"), device="cpu")
        assert torch.allclose(vectors(again), vectors(small), atol=1e-6)
        assert again[0].model.pruning_plan == small[0].model.pruning_plan

    def test_a_failed_save_leaves_the_model_whole(self, small, tmp_path):
        hfprune.save(small, tmp_path / "small")
        assert "save_pretrained" not in vars(small[0].model)

    def test_weights_behind_the_body_are_looked_at(self, dense, tmp_path):
        small = hfprune.prune(dense, TEXTS, CONFIG)
        with torch.no_grad():
            small[2].linear.weight[0, 0] = torch.nan
        with pytest.raises(CheckpointError, match=r"behind\.1\.linear\.weight has NaN"):
            hfprune.save(small, tmp_path / "small")
        assert not (tmp_path / "small").exists()

    def test_a_dense_one_has_no_plan(self, dense, tmp_path):
        with pytest.raises(CheckpointError, match="has no pruning plan"):
            hfprune.save(dense, tmp_path / "dense")

    @pytest.mark.parametrize(
        ("name", "change", "problem"),
        [
            ("modules.json", lambda found: found[1].update(type="os.system"), "names code"),
            ("modules.json", lambda found: found[1].update(path="../elsewhere"), "is no folder of a module"),
            ("2_Dense/config.json", lambda found: found.update(activation_function="os.system"), "names code"),
            (
                "sentence_bert_config.json",
                lambda found: found.update(tokenizer_name_or_path="them/it"),
                "leads elsewhere",
            ),
        ],
    )
    def test_strange_modules_are_refused(self, small, tmp_path, name, change, problem):
        folder = hfprune.save(small, tmp_path / "small")
        found = json.loads((folder / name).read_text())
        change(found)
        (folder / name).write_text(json.dumps(found))
        with pytest.raises(CheckpointError, match=problem):
            hfprune.load(folder)
        assert any(problem in line for line in verify(folder))

    def test_code_beside_a_module_is_refused(self, small, tmp_path):
        folder = hfprune.save(small, tmp_path / "small")
        (folder / "1_Pooling" / "run.py").write_text("print()")
        with pytest.raises(CheckpointError, match="is code that hfprune does not write"):
            hfprune.load(folder)

    def test_another_pooling_is_noticed(self, small, tmp_path):
        folder = hfprune.save(small, tmp_path / "small")
        found = json.loads((folder / "1_Pooling" / "config.json").read_text())
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({**found, "pooling_mode": "max"}))
        with pytest.raises(CheckpointError, match="1_Pooling/config.json is not the file that was saved"):
            hfprune.load(folder)

    def test_the_config_stays_that_of_the_body(self, small, tmp_path):
        folder = hfprune.save(small, tmp_path / "small")
        assert AutoConfig.from_pretrained(folder).architectures == ["PrunedBertModel"]
