"""Push and load over HTTP, with the unmodified client of huggingface_hub in a process of its own."""

import hashlib
import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import hfprune
from hfprune import PruningConfig
from hfprune.data.packages import resolve_model
from hfprune.errors import HfpruneError
from tests.support.hub import Repo
from tests.support.tiny import tiny_batch, tiny_model
from tests.support.tiny_data import tiny_tokenizer

pytestmark = [pytest.mark.hub, pytest.mark.pictures]

SAW = "what its author saw"


def small_model(model_type="bert", **config):
    asked = {
        "sparsity": 0.5,
        "sequence_length": 8,
        "scorer": "l2",
        "reconstruct": False,
        "schedule": "one_shot",
        **config,
    }
    labels = {"num_labels": 3, "id2label": {0: "what", 1: "where", 2: "who"}}
    return hfprune.prune(tiny_model(model_type, **labels), [tiny_batch(model_type)], PruningConfig(**asked))


@pytest.fixture
def folder(tmp_path):
    return hfprune.save(small_model(), tmp_path / "small", tokenizer=tiny_tokenizer())


LOAD = """
import torch
ids = torch.arange(4, 14).reshape(2, 5)
def digest(model):
    import hashlib
    state = sorted(model.state_dict().items())
    return hashlib.sha256(b"".join(name.encode() + tensor.numpy().tobytes() for name, tensor in state)).hexdigest()
def logits(model):
    with torch.no_grad():
        return model(input_ids=ids).logits.tolist()
"""
WITH = (
    LOAD
    + """
import hfprune
from transformers import AutoModelForSequenceClassification
auto, loaded = AutoModelForSequenceClassification.from_pretrained("me/x"), hfprune.load("me/x")
say(auto=logits(auto), loaded=logits(loaded), auto_digest=digest(auto), loaded_digest=digest(loaded))
say(name=loaded.name_or_path, plan=loaded.pruning_plan.digest)
say(portable_loaded=logits(hfprune.load("me/portable")))
"""
)
WITHOUT = (
    LOAD
    + """
from transformers import AutoModelForSequenceClassification
trusted = AutoModelForSequenceClassification.from_pretrained("me/x", trust_remote_code=True)
stock = AutoModelForSequenceClassification.from_pretrained("me/portable")
say(trusted=logits(trusted), trusted_digest=digest(trusted), stock=logits(stock), stock_class=type(stock).__name__)
"""
)


def digest_of(model):
    state = sorted(model.state_dict().items())
    return hashlib.sha256(b"".join(name.encode() + tensor.numpy().tobytes() for name, tensor in state)).hexdigest()


@pytest.mark.demo
@pytest.mark.usefixtures("one_thread")
@pytest.mark.slow
def test_a_minilm_loads_by_name_in_four_ways(hub, client, tmp_path):
    """Equal logits and equal bytes: Auto classes, hfprune.load, remote code, and a stock one with nothing."""
    try:
        source = resolve_model("minilm-l6")
    except HfpruneError as error:
        pytest.skip(str(error))
    torch.manual_seed(0)
    dense = AutoModelForSequenceClassification.from_pretrained(source, num_labels=6)
    tokenizer, ids = AutoTokenizer.from_pretrained(source), torch.arange(4, 14).reshape(2, 5)
    logits = {}
    for name, portable in (("x", False), ("portable", True)):
        config = PruningConfig(scorer="l2", schedule="one_shot", reconstruct=False, portable=portable)
        small = hfprune.prune(dense, [{"input_ids": ids}], config).eval()
        logits[name] = small(ids).logits.tolist()
        hfprune.save(small, tmp_path / name, tokenizer=tokenizer)
        if name == "x":
            digest = digest_of(small)
    client('import hfprune\nfor name in ("x", "portable"): hfprune.push_to_hub(name, "me/" + name)')
    here, there = client(WITH), client(WITHOUT, with_hfprune=False)
    assert here["auto"] == here["loaded"] == there["trusted"] == logits["x"]
    assert here["auto_digest"] == here["loaded_digest"] == there["trusted_digest"] == digest
    assert here["portable_loaded"] == there["stock"] == logits["portable"]
    assert there["stock_class"] == "BertForSequenceClassification"
    assert here["name"] == "me/x"
    for name in ("x", "portable"):
        for path in (tmp_path / name).iterdir():
            if path.name != "README.md":  # which names the repository
                assert hub.repos[f"me/{name}"].files()[path.name] == path.read_bytes(), path.name


EXPORT_REVISION = """
from pathlib import Path
import hfprune
from hfprune.publishing.probe import Probe
checked = []
Probe.problem_of = lambda probe, model: checked.append(model) or None
done = hfprune.export("me/x", "torch", "exported", revision="refs/pr/3")
assert len(checked) == 1
say(digest=done.plan_digest, model=done.model, tokenizer=Path("exported", "tokenizer.json").is_file())
"""
PUSH_MODEL = """
import hfprune
from transformers import AutoTokenizer
model, tokenizer = hfprune.load("small"), AutoTokenizer.from_pretrained("small")
commit = hfprune.push_to_hub(model, "x", tokenizer=tokenizer, private=True, commit_message="A first one")
say(url=commit.commit_url)
again = hfprune.push_to_hub("small", "me/x", revision="second", commit_message="To a branch")
pull = hfprune.push_to_hub("other", "me/x", create_pr=True)
say(pull=pull.pr_url)
import huggingface_hub
huggingface_hub.ModelCard.load("me/x").validate()
card = huggingface_hub.ModelCard.load("me/x")
say(data=card.data.to_dict(), round_trip=huggingface_hub.ModelCardData(**card.data.to_dict()).to_dict())
"""


def test_push_private_branch_and_pull_request(hub, client, folder, tmp_path):
    hfprune.save(small_model(sparsity=0.3), tmp_path / "other", tokenizer=tiny_tokenizer())
    said = client(PUSH_MODEL)
    repo = hub.repos["me/x"]
    assert repo.private
    assert repo.messages == ["initial commit", "A first one", "To a branch", "Pruned with hfprune"]
    assert set(repo.branches) == {"main", "second", "refs/pr/3"}
    files = {path.name for path in folder.iterdir()}
    assert set(repo.files()) == files | {".gitattributes"}, "model, tokenizer, plan, record, card, pictures, loader"
    assert 'from_pretrained("me/x", trust_remote_code=True)' in repo.files()["README.md"].decode()
    assert said["pull"].endswith("/me/x/discussions/3")
    assert repo.files("refs/pr/3")["model.safetensors"] != repo.files()["model.safetensors"]
    assert said["data"] == said["round_trip"]
    assert said["data"]["tags"] == ["pruned", "structured-pruning", "hfprune"]

    load = 'import hfprune\nsay(digest=hfprune.load("me/x", revision=%s).pruning_plan.digest)'
    first, other = (hfprune.load(tmp_path / name).pruning_plan.digest for name in ("small", "other"))
    assert client(load % '"second"')["digest"] == first
    assert client(load % '"refs/pr/3"')["digest"] == other
    # an export names the repository, and is checked by its probe and tokenized by its tokenizer
    exported = client(EXPORT_REVISION)
    assert (exported["digest"], exported["model"], exported["tokenizer"]) == (other, "me/x", True)

    error = "CheckpointError: there is no folder me/x, and the Hub does not give a repository of that name"
    for changes in ('"main", token="hf_wrong", cache_dir="theirs"', '"nowhere"'):
        assert error in client(load % changes, fails=True)["_error"], changes


PIPELINE = """
from transformers import pipeline
answer = pipeline("text-classification", model="me/x", trust_remote_code={trust})("who is the dog")
say(label=answer[0]["label"], score=answer[0]["score"])
"""


def test_pipeline_and_hf_download(client, hub, folder, tmp_path):
    hub.repos["me/x"] = Repo()
    hub.repos["me/x"].commit("main", {path.name: path.read_bytes() for path in folder.iterdir()}, "by hand")
    here = client("import hfprune\n" + PIPELINE.format(trust=None))
    there = client(PIPELINE.format(trust=True), with_hfprune=False)
    assert here["label"] in ("what", "where", "who")
    assert (here["label"], here["score"]) == (there["label"], there["score"])

    plain = 'from transformers import AutoModelForSequenceClassification as A\nA.from_pretrained("me/x"%s)'
    for argument in ("", ", ignore_mismatched_sizes=True"):
        refused = client(plain % argument, with_hfprune=False, fails=True)
        assert "trust_remote_code=True" in refused["_error"]

    code = """
import subprocess, sys
from pathlib import Path
hf = Path(sys.executable).with_name("hf")
subprocess.run([hf, "download", "me/x", "--local-dir", "downloaded"], check=True, capture_output=True)
from typer.testing import CliRunner
from hfprune.cli import app
for name in ("downloaded", "me/x"):
    done = CliRunner().invoke(app, ["verify", name])
    say(**{name: [done.exit_code, done.stdout]})
said = CliRunner().invoke(app, ["inspect", "me/x", "--json"])
say(inspected=said.stdout)
"""
    said = client(code)
    for name in ("downloaded", "me/x"):
        status, output = said[name]
        assert status == 0
        assert output.strip().endswith(
            f"{name}: every file but the card is the one that was saved, and the model computes {SAW}"
        )
    assert json.loads(said["inspected"])["plan_digest"] == hfprune.load(folder).pruning_plan.digest


FROM_THE_HUB = """
import hfprune
from transformers import AutoModelForSequenceClassification
dense = AutoModelForSequenceClassification.from_pretrained("me/dense")
config = hfprune.PruningConfig(scorer="l2", schedule="one_shot", reconstruct=False)
record = hfprune.prune(dense, [dense.dummy_inputs], config).pruning_record
say(model=record.base_model, revision=record.base_revision)
"""


def test_the_record_names_the_commit_of_the_dense_model(hub, client, tmp_path):
    repo = hub.repos["me/dense"] = Repo()
    for text, known in ((b"one", True), (b"two", False)):  # then there are two commits in the cache
        tiny_model("bert", num_labels=3).save_pretrained(tmp_path / "dense")
        files = {path.name: path.read_bytes() for path in (tmp_path / "dense").iterdir()}
        repo.commit("main", files | {"README.md": text}, "by hand")
        said = client(FROM_THE_HUB)
        assert (said["model"], said["revision"]) == ("me/dense", repo.branches["main"] if known else "")


@pytest.mark.parametrize(("folder", "name"), [("/gone/for/good", "good"), ("gone", "gone"), ("./gone", "gone")])
def test_a_dense_model_whose_folder_is_gone_has_no_commit(folder, name):
    dense = tiny_model("bert")
    dense.config._name_or_path = folder
    config = PruningConfig(scorer="l2", schedule="one_shot", reconstruct=False)
    record = hfprune.prune(dense, [tiny_batch("bert")], config).pruning_record
    assert (record.base_model, record.base_revision) == (name, "")


COMMAND = """
from typer.testing import CliRunner
from hfprune.cli import app
done = CliRunner().invoke(app, ["push", "small", "me/x", "--message", "By command"])
say(status=done.exit_code, output=done.stdout)
"""


class TestTrouble:
    """The server fails once, goes away in the middle, or has something else there."""

    def test_a_server_that_answers_500_once(self, hub, client, folder):
        hub.fail = [(r"GET .*/resolve/.*/config.json", 500), (r"PUT .*/lfs-objects", 500), (r"POST .*/commit", 500)]
        client('import hfprune\nhfprune.push_to_hub("small", "me/x")\nhfprune.load("me/x", force_download=True)')
        assert not hub.fail
        assert len(hub.repos["me/x"].commits) == 2

    # the client tries an upload again for 20 seconds
    @pytest.mark.parametrize("cut", [pytest.param("PUT .*/lfs-objects", marks=pytest.mark.slow), "POST .*/commit"])
    def test_an_interrupted_upload_changes_nothing(self, cut, hub, client, folder):
        hub.repos["me/x"] = Repo()
        hub.repos["me/x"].commit("main", {"README.md": b"before"}, "before")
        hub.cut = cut
        done = client('import hfprune\nhfprune.push_to_hub("small", "me/x")', fails=True)
        assert done["_error"]
        assert hub.repos["me/x"].files() == {"README.md": b"before"}
        hub.cut = None
        client('import hfprune\nhfprune.push_to_hub("small", "me/x")')
        assert "model.safetensors" in hub.repos["me/x"].files()

    def test_what_an_earlier_push_left_goes_in_the_same_commit(self, hub, client, folder):
        others = {"notes.txt": b"mine", "handler.py": b"", "training_args.bin": b"", "adapter_model.safetensors": b""}
        files = {"model-00001-of-00002.safetensors": b"", "pytorch_model.bin": b"", **others}
        hub.repos["me/x"] = Repo()
        hub.repos["me/x"].commit("main", files, "before")
        client('import hfprune\nhfprune.push_to_hub("small", "me/x")')
        assert set(hub.repos["me/x"].files()) == {*others, *(path.name for path in folder.iterdir())}

    def test_several_chat_templates_from_the_folder_itself(self, hub, client, folder):
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages }}")
        client('import os, hfprune\nos.chdir("small")\nhfprune.push_to_hub(".", "me/x")')
        files = hub.repos["me/x"].files()
        assert files["additional_chat_templates/tool_use.jinja"] == b"{{ messages }}"
        assert 'from_pretrained("me/x")' in files["README.md"].decode()

    def test_a_card_that_was_edited_is_pushed_as_it_is(self, hub, client, folder):
        edited = (folder / "README.md").read_text() + "\nMy own words.\n"
        (folder / "README.md").write_text(edited)
        said = client(COMMAND)
        assert said["status"] == 0
        assert said["output"].startswith(f"pushed to {hub.url}/me/x/commit/")
        assert hub.repos["me/x"].messages[-1] == "By command"
        assert hub.repos["me/x"].files()["README.md"].decode() == edited

    def test_a_damaged_folder_is_not_pushed(self, hub, client, folder):
        (folder / "pruning_plan.json").unlink()
        done = client('import hfprune\nhfprune.push_to_hub("small", "me/x")', fails=True)
        assert "there is no pruning_plan.json" in done["_error"]
        assert not hub.repos


TRAINER = """
from pathlib import Path
import hfprune
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments
from hfprune.publishing.callback import KeepPruningFiles
from tests.support.tiny import tiny_model
from tests.support.tiny_data import tiny_tokenized, tiny_tokenizer
from tests.support.training import arguments, trainer_of
small = hfprune.load("small")
options = dict(max_steps=4, save_strategy="steps", save_steps=2, push_to_hub=True, hub_strategy="{strategy}",
               hub_always_push=True)
if {plain}:
    args = TrainingArguments("out", hub_model_id="me/trained", use_cpu=True, report_to="none", **options)
    trainer = Trainer(small, args, train_dataset=tiny_tokenized(), callbacks=[KeepPruningFiles()],
                      data_collator=DataCollatorWithPadding(tiny_tokenizer()), processing_class=tiny_tokenizer())
else:
    args = arguments(Path("out"), hub_model_id="me/trained", **options)
    trainer = trainer_of(small, tiny_model("bert", num_labels=3), args)
trainer.train()
trainer._finish_current_push()
trainer.push_to_hub()
say(digest=hfprune.load("me/trained").pruning_plan.digest)
"""


@pytest.mark.parametrize(
    ("plain", "portable", "strategy"),
    [(False, False, "every_save"), (True, False, "checkpoint"), (True, True, "all_checkpoints"), (True, True, "end")],
)
def test_trainers_keep_our_files(plain, portable, strategy, hub, client, tmp_path):
    folder = hfprune.save(small_model(sparsity=0.3, portable=portable), tmp_path / "small", tokenizer=tiny_tokenizer())
    said = client(TRAINER.replace("{plain}", str(plain)).replace("{strategy}", strategy))
    assert said["digest"] == hfprune.load(folder).pruning_plan.digest
    repo = hub.repos["me/trained"]
    ours = {"pruning_plan.json", "pruning_record.json", "model.safetensors", "config.json"}
    ours |= set() if portable else {"modeling_pruned.py"}
    commits = [files for files in repo.commits.values() if "config.json" in files]
    assert len(commits) >= (1 if strategy == "end" else 2)
    assert all(ours <= set(files) for files in commits)
    if "checkpoint" in strategy:
        last = {"checkpoint": "last-checkpoint", "all_checkpoints": "checkpoint-4"}[strategy]
        assert {f"{last}/{name}" for name in ours} <= set(repo.files())
    if not plain:
        assert "structured-pruning" in repo.files()["README.md"].decode()
        assert 'hfprune.load("me/trained")' in repo.files()["README.md"].decode()
