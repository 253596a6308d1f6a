"""Recovery from conversations: which tokens are the assistant's, what is cut, what is measured, the whole story."""

import copy
import json
import logging
import math

import pytest
import torch
from datasets import Dataset, DatasetDict

import hfprune
from hfprune import RecoveryArguments
from hfprune.data.conversations import assistant_tokens, kept_tokens, tokenize_conversations
from hfprune.jobs.tasks import ChatArguments, ModelArguments, chat
from hfprune.publishing.verification import verify
from tests.support.runs import chat_home, run_here
from tests.support.tiny import VOCABULARY, tiny_model
from tests.support.tiny_data import CHAT_TEMPLATE, chat_tokenizer, tiny_conversations, tiny_tokenizer
from tests.support.tiny_tokenizers import trained
from tests.support.training import arguments, pruned_pair

MARKING = (
    "{% for m in messages %}[BOS] {{ m.role }} {% if m.role == 'assistant' %}{% generation %}{{ m.content }} [EOS]"
    "{% endgeneration %}{% else %}{{ m.content }} [EOS]{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}[BOS] assistant {% endif %}"
)
#: As some templates do, it drops a part of earlier answers.
FORGETTING = (
    "{% for m in messages %}[BOS] "
    "{{ m.content if loop.last or m.role == 'user' else m.content.split()[0] }} [EOS] {% endfor %}"
)
WITHOUT = """
from transformers import AutoTokenizer, pipeline
generator = pipeline("text-generation", model={folder!r}, trust_remote_code=True, device="cpu")
messages = [{{"role": "user", "content": "who is the dog"}}]
answer = generator(messages, do_sample=False, max_new_tokens=3)[0]["generated_text"]
say(roles=[message["role"] for message in answer], kind=type(generator.model).__name__)
"""


def turns(*texts):
    roles = ("user", "assistant")
    return [{"role": roles[number % 2], "content": text} for number, text in enumerate(texts)]


def learned(tokenizer, messages):
    ids, marks = assistant_tokens(messages, tokenizer)
    return tokenizer.decode([number for number, mark in zip(ids, marks, strict=True) if mark])


@pytest.fixture
def home(tmp_path):
    return chat_home(tmp_path)


def load(home, file="data.jsonl", **changes):
    data = ChatArguments(train_file=str(home / file), **{"max_length": 40, **changes})
    return chat(ModelArguments(str(home / "dense")), data, seed=0)


class TestTokensOfTheAssistant:
    @pytest.mark.parametrize("template", [CHAT_TEMPLATE, MARKING])
    def test_what_it_says_with_the_token_that_ends_a_turn(self, template):
        tokenizer = chat_tokenizer()
        tokenizer.chat_template = template
        messages = turns("who is", "the dog", "where", "a city")
        assert learned(tokenizer, messages) == "the dog [EOS] a city [EOS]"
        ids, marks = assistant_tokens(messages, tokenizer)
        whole = "[BOS] [UNK] who is [EOS] [BOS] [UNK] the dog [EOS] [BOS] [UNK] where [EOS] [BOS] [UNK] a city [EOS]"
        assert tokenizer.decode(ids) == whole
        assert len(marks) == len(ids)
        with_system = [{"role": "system", "content": "the river"}, *messages]
        assert learned(tokenizer, with_system) == "the dog [EOS] a city [EOS]"

    def test_a_template_without_the_words_that_ask(self):
        tokenizer = chat_tokenizer()
        tokenizer.chat_template = "{% for m in messages %}[BOS] {{ m.content }} {% endfor %}"
        assert learned(tokenizer, turns("who is", "the dog")) == "[BOS] the dog"

    def test_a_template_that_changes_what_was_said(self):
        tokenizer = chat_tokenizer()
        tokenizer.chat_template = FORGETTING
        assert learned(tokenizer, turns("who is", "the dog")).endswith("the dog [EOS]")
        with pytest.raises(ValueError, match=r"writes turn 1 \(from 0\) otherwise where .* \{% generation %\}"):
            assistant_tokens(turns("who is", "the dog", "where", "a city"), tokenizer)

    def test_pieces_of_words(self):
        """A byte-level tokenizer joins what the template puts together; the offsets tell the pieces apart."""
        tokenizer = trained("byte_level")
        tokenizer.chat_template = (
            "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
            "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
        )
        ids, marks = assistant_tokens(turns("Was ist das?", "Käse, grün."), tokenizer)
        said = [number for number, mark in zip(ids, marks, strict=True) if mark]
        assert tokenizer.decode(said) == "Käse, grün.</s>"
        assert ids == tokenizer.apply_chat_template(turns("Was ist das?", "Käse, grün."))["input_ids"]


class TestLengths:
    def test_a_conversation_ends_with_a_whole_turn(self):
        marks = [False] * 3 + [True] * 3 + [False] * 2 + [True] * 2
        assert [kept_tokens(marks, most) for most in (20, 10, 9, 7, 6, 5, 3)] == [10, 10, 6, 6, 6, 5, 3]

    def test_what_is_cut_and_what_is_left_out(self, caplog):
        rows = [
            turns("who is", "the dog", "where", "a city"),
            turns("who is the dog", "a dog is a dog"),
            turns("who is the dog is the cat is the river"),
            [{"role": "user", "content": "who"}, {"role": "bot", "content": "a cat"}],
        ]
        data = DatasetDict(train=Dataset.from_dict({"messages": rows, "source": [1, 2, 3, 4]}))
        with caplog.at_level(logging.WARNING):
            found = tokenize_conversations(data, chat_tokenizer(), max_length=10)["train"]
        assert (
            "Of 4 conversations of the train split 3 were shortened to max_length tokens, and 2 are left" in caplog.text
        )
        decode = chat_tokenizer().decode
        assert decode(found[0]["input_ids"]).endswith("the dog [EOS]")
        assert len(found[1]["input_ids"]) == 10
        assert decode([label for label in found[1]["labels"] if label != -100]) == "a"
        assert found.column_names == ["input_ids", "attention_mask", "labels"]

    def test_what_is_refused(self, home):
        def refused(rows, message, **options):
            data = DatasetDict(train=Dataset.from_dict({"messages": rows}))
            with pytest.raises(ValueError, match=message):
                tokenize_conversations(data, options.pop("tokenizer", chat_tokenizer()), **options)

        refused(["who is"], "the column 'messages' must hold conversations: in every row a list such as .* got who is")
        refused([[{"from": "human", "value": "who"}]], "must hold conversations.* got .*'from': 'human'")
        refused([[{"role": "user", "content": "who"}]], "in no conversation of the train split does the assistant say")
        refused([turns("who", "a")], "has no chat template, .* chat_template", tokenizer=tiny_tokenizer())
        with pytest.raises(ValueError, match="has no column 'chat'; its columns are messages"):
            load(home, messages_column="chat")
        with pytest.raises(ValueError, match="chat_template='none.jinja' is no file"):
            load(home, chat_template="none.jinja")
        with pytest.raises(ValueError, match="unknown metric 'bleu' of chat; these are: perplexity, loss"):
            load(home, metrics=["bleu"])


def test_batches_are_filled_up_at_the_right(home):
    task = load(home)
    task.tokenizer.padding_side = "left"
    rows = [task.data["train"][number] for number in range(4)]
    lengths = [len(row["input_ids"]) for row in rows]
    batch = task.collator(rows)
    assert batch["input_ids"].shape == (4, max(lengths))
    for number, length in enumerate(lengths):
        assert batch["attention_mask"][number].tolist() == [1] * length + [0] * (max(lengths) - length)
        assert (batch["labels"][number, length:] == -100).all()
        assert batch["labels"][number, :length].tolist() == rows[number]["labels"]
    # with fields that some messages have, and a template of the user's
    (home / "own.jinja").write_text("{% for m in messages %}[BOS] {{ m.content }} [EOS] {% endfor %}")
    named = load(home, chat_template=str(home / "own.jinja"))
    assert named.data["train"][0]["input_ids"] != rows[0]["input_ids"]
    assert named.tokenizer.chat_template.startswith("{% for m in messages %}[BOS] {{ m.content }}")


def test_perplexity_is_of_the_assistants_tokens(home, tmp_path):
    task = load(home)
    model = tiny_model("llama", "AutoModelForCausalLM")
    options = {"use_cpu": True, "report_to": "none", "dataloader_pin_memory": False, "disable_tqdm": True}
    losses, likelihoods = [], []
    for row in task.data["test"]:
        with torch.no_grad():
            logits = model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        mine = [-float(logits[i - 1, label]) for i, label in enumerate(row["labels"]) if label != -100]
        losses += mine
        likelihoods.append(-sum(mine) / len(mine))
    trainer = task.trainer(model, RecoveryArguments(str(tmp_path / "out"), per_device_eval_batch_size=3, **options))
    found = task.test(trainer)
    assert found["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)
    predicted = trainer.predict(task.data["test"])
    assert task.sample_metrics["log_likelihood"](predicted, task.data["test"]) == pytest.approx(likelihoods, abs=1e-5)


def test_the_whole_story(home, client):
    outcome = run_here(
        chat,
        ChatArguments,
        home,
        train_file=str(home / "data.jsonl"),
        max_length=40,
        scorer="kl_fisher",
        num_train_epochs=2,
        learning_rate=0.005,
        task_weight=1.0,
    )
    assert outcome.results["recovered_perplexity"] < outcome.results["dense_perplexity"]
    assert verify(outcome.folder) == []
    small = hfprune.load(outcome.folder)
    assert set(small.pruning_record.metrics["recovered"]) == {"perplexity", "loss"}
    said = client(WITHOUT.format(folder=str(outcome.folder)), with_hfprune=False)
    assert said == {"roles": ["user", "assistant"], "kind": "PrunedLlamaForCausalLM", "_error": ""}


def test_what_the_teacher_said_once_is_what_it_says(home, tmp_path):
    """Of conversations of different lengths, in batches that put others together than those that the teacher saw."""
    task = load(home)
    small, dense = pruned_pair("llama", "AutoModelForCausalLM")
    options = {"hidden_states_weight": 0.0, "task_weight": 0.0, "logits_weight": 1.0, "logging_strategy": "steps"}
    found = []
    for more in ({}, {"teacher_top_k": VOCABULARY - 1}):
        args = arguments(tmp_path, max_steps=3, logging_steps=1, per_device_train_batch_size=3, **options, **more)
        trainer = task.trainer(copy.deepcopy(small), args, teacher=dense)
        trainer.train()
        found.append([entry["loss_logits"] for entry in trainer.state.log_history if "loss_logits" in entry])
    assert found[0] == pytest.approx(found[1], rel=1e-3)
    assert len(found[0]) == 3


def test_messages_with_more_fields(home):
    rows = tiny_conversations(20)
    rows[0]["messages"][0]["name"] = "Ada"
    (home / "more.jsonl").write_text("\n".join(map(json.dumps, rows)))
    plain = "\n".join(json.dumps(row) for row in tiny_conversations(20))
    (home / "plain.jsonl").write_text(plain)
    assert load(home, "more.jsonl").data["train"][:] == load(home, "plain.jsonl").data["train"][:]
