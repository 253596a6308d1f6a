"""The code blocks of the pages: found, and run in a folder that has what the pages speak of.

A page says in its front matter what its code starts from: `start: classifier` or `start: language_model` runs that
file of docs/start first, which the page shows with a snippet; `hub: true` runs all code in a process that talks to a
Hub on the loopback interface; `packages:` lists what must be installed, or else the test of the page is skipped;
`replace:` names texts of its code, such as a large model's name, with what takes their place in the test.
Every `python` block runs, in order, in one namespace; every line of a `bash` block runs as far as that takes seconds
(see `run_line`); `json` and `yaml` are parsed, and written to the file that their title names; `text` is output and
runs nowhere. Blocks of other languages are errors.
"""

import contextlib
import io
import itertools
import json
import re
import runpy
import shlex
import sys
import tomllib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from transformers import (
    MegatronBertConfig,
    MegatronBertForSequenceClassification,
    PreTrainedModel,
    ViTImageProcessorPil,
    Wav2Vec2FeatureExtractor,
)

from hfprune import PruningConfig
from tests.support import tiny_tokenizers
from tests.support.old_checkpoints import old_checkpoint, pickle_weights
from tests.support.runs import speech_home
from tests.support.tiny import SIZES, tiny_model
from tests.support.tiny_data import (
    tiny_choices,
    tiny_conversations,
    tiny_pairs,
    tiny_pictures,
    tiny_sounds,
    tiny_squad,
    tiny_tags,
    tiny_texts,
    tiny_tokenizer,
)
from tests.support.tiny_tokenizers import wrapped

ROOT = Path(__file__).parents[2]
LANGUAGES = {"python", "bash", "json", "yaml", "text"}
#: Calibration samples where a page leaves their number at its default, which is 512.
_SAMPLES = 64
#: Of the files for training, of which a tenth each is cut off for validation and test: one page calibrates on 256, and
#: one goes on from step 20 of a training of two epochs in batches of 32.
_ROWS = 420
_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>[\w-]*)(?: title=\"(?P<title>[^\"]+)\")?[^\n]*\n"
    r"(?P<code>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)
_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_SNIPPET = re.compile(r'^ *--8<-- "(?P<path>[^"]+)"$', re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class CodeBlock:
    """One fenced block of a page."""

    language: str
    code: str
    title: str | None = None


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page of the site.

    Attributes:
        path: Its file.
        settings: Its front matter.
        blocks: Its code, in order.
    """

    path: Path
    settings: dict
    blocks: tuple[CodeBlock, ...]


def read_page(path: Path) -> Page:
    text = path.read_text(encoding="utf-8")
    front_matter = _FRONT_MATTER.match(text)
    settings = {}
    if front_matter:
        settings = yaml.safe_load(front_matter.group(1))
    replacements = settings.get("replace", {})
    blocks = [_replaced(block, replacements) for block in blocks_of(text)]
    stale = [before for before in replacements if before not in text.removeprefix(front_matter.group(0))]
    assert not stale, f"{path} replaces what it does not have: {stale}"
    return Page(path=path, settings=settings, blocks=tuple(blocks))


def _replaced(block: CodeBlock, replacements: Mapping[str, str]) -> CodeBlock:
    code = block.code
    for before, after in replacements.items():
        code = code.replace(before, after)
    return replace(block, code=code)


def blocks_of(text: str) -> Iterator[CodeBlock]:
    for fence in _FENCE.finditer(text):
        indent = fence["indent"]
        lines = [line.removeprefix(indent) for line in fence["code"].splitlines()]
        # a block of nothing but a snippet shows a file, which the front matter runs
        if _SNIPPET.fullmatch("\n".join(lines).strip()):
            continue
        yield CodeBlock(language=fence["language"], code="\n".join(lines) + "\n", title=fence["title"])


def furnish(folder: Path) -> None:
    """Put the models and texts that the pages speak of into a folder."""
    labels = {"num_labels": 3, "id2label": {0: "what", 1: "where", 2: "who"}}
    _save(tiny_model("bert", **labels), folder / "me" / "finetuned")
    tags = {"num_labels": 3, "id2label": {0: "B-X", 1: "I-X", 2: "O"}}
    _save(tiny_model("bert", "AutoModelForTokenClassification", **tags), folder / "me" / "tagger")
    _save(tiny_model("bert", "AutoModelForMaskedLM"), folder / "me" / "pretrained")
    _save(tiny_model("llama", "AutoModelForCausalLM"), folder / "me" / "chat")
    by_bytes = wrapped(tiny_tokenizers._byte_level())
    sizes = {"vocab_size": len(by_bytes), "hidden_size": 64, "head_dim": 32, "intermediate_size": 256}
    tiny_model("llama", "AutoModelForCausalLM", **sizes).save_pretrained(folder / "me" / "assistant")
    by_bytes.save_pretrained(folder / "me" / "assistant")
    _save(tiny_model("bert", "AutoModelForQuestionAnswering"), folder / "me" / "answers")
    _save(tiny_model("bert", "AutoModelForMultipleChoice"), folder / "me" / "chooser")
    _save(tiny_model("t5", "AutoModelForSeq2SeqLM"), folder / "me" / "summaries")
    colours = {0: "blue", 1: "green", 2: "red"}
    _save(tiny_model("vit", "AutoModelForImageClassification", id2label=colours), folder / "me" / "pictures")
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder / "me" / "pictures")
    _save(tiny_model("marian", "AutoModelForSeq2SeqLM"), folder / "me" / "translations")
    speech_home(folder)
    (folder / "dense").rename(folder / "me" / "speech")
    _save(tiny_model("bert", "AutoModel"), folder / "me" / "embeddings")
    _save(tiny_model("bert", "AutoModelForSequenceClassification", num_labels=1), folder / "me" / "reranker")
    unlisted = MegatronBertForSequenceClassification(MegatronBertConfig(**SIZES["bert"]))
    _save(unlisted, folder / "me" / "unlisted")
    old_checkpoint(folder / "old", tokenizer=True)
    pickle_weights(folder / "old-pickled", old_checkpoint(folder / "old-pickled"))
    names = ["who", "what", "where"]
    for name, rows in (("train.csv", _ROWS), ("held_out.csv", 120), ("test.csv", 60)):
        lines = [f"{row['text']},{names[row['label']]}" for row in tiny_texts(rows)]
        (folder / name).write_text("text,label\n" + "\n".join(lines) + "\n")
    (folder / "held_out").mkdir()
    # enough rows for validation that a drop below one point can be shown
    for split, rows in (("train", _ROWS), ("validation", 400), ("test", 120)):
        lines = [f"{row['text']},{names[row['label']]}" for row in tiny_texts(rows)]
        (folder / "held_out" / f"{split}.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    (folder / "unlabelled.csv").write_text("\n".join(["text", *tiny_texts(_ROWS)["text"]]) + "\n")
    lines = [json.dumps(row) for row in tiny_tags(_ROWS)]
    (folder / "tags.jsonl").write_text("\n".join(lines) + "\n")
    lines = [f"{text},{row % 2},{row % 3 % 2}" for row, text in enumerate(tiny_texts(120)["text"])]
    (folder / "topics.csv").write_text("\n".join(["text,noise,service", *lines]) + "\n")
    (folder / "train-v2.0.json").write_text(json.dumps(tiny_squad(120)))
    lines = [json.dumps(row) for row in tiny_choices(160)]
    (folder / "choices.jsonl").write_text("\n".join(lines) + "\n")
    pairs = tiny_pairs(_ROWS)
    (folder / "summaries.jsonl").write_text("\n".join(map(json.dumps, pairs)) + "\n")
    lines = [f"{pair['text']},{pair['summary']}" for pair in pairs]
    (folder / "translations.csv").write_text("\n".join(["source,target", *lines]) + "\n")
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, tiny_conversations(_ROWS))) + "\n")
    (folder / "text.txt").write_text(" ".join(tiny_texts(12_000)["text"]))
    (folder / "other.txt").write_text(" ".join(tiny_texts(2_000)["text"]))
    heights = {0: "high", 1: "low", 2: "middle"}
    sizes = {"conv_kernel": [10, 4], "conv_stride": [5, 4], "classifier_proj_size": 8}
    _save(
        tiny_model("wav2vec2", "AutoModelForAudioClassification", id2label=heights, **sizes), folder / "me" / "sounds"
    )
    Wav2Vec2FeatureExtractor(sampling_rate=4000).save_pretrained(folder / "me" / "sounds")
    tiny_sounds(folder / "sounds" / "train", 120)
    tiny_sounds(folder / "sounds" / "test", 30)
    tiny_pictures(folder / "pictures" / "train", 120)
    tiny_pictures(folder / "pictures" / "test", 30)
    (folder / "scripts").symlink_to(ROOT / "scripts")


def _save(model: PreTrainedModel, folder: Path) -> None:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def run_page(page: Page) -> None:
    """Run all code of a page in the current folder, which `furnish` filled."""
    names: dict = {"__name__": "page"}
    start = page.settings.get("start")
    with few_samples():
        if start:
            exec((ROOT / "docs" / "start" / f"{start}.py").read_text(encoding="utf-8"), names)
        for block in page.blocks:
            run_block(block, names)


@contextlib.contextmanager
def few_samples() -> Iterator[None]:
    """A page that takes the default number of calibration samples gets fewer: they show as well that its code runs."""
    defaults = PruningConfig.__init__.__kwdefaults__
    usual = defaults["calibration_samples"]
    defaults["calibration_samples"] = _SAMPLES
    try:
        yield
    finally:
        defaults["calibration_samples"] = usual


def run_block(block: CodeBlock, names: dict) -> None:
    assert block.language in LANGUAGES, f"a block of {block.language or 'no language'}; expected {sorted(LANGUAGES)}"
    if block.language == "python":
        # readers may have a GPU, so the pages leave pinned memory on; the test has none
        warnings.filterwarnings("ignore", message="'pin_memory' argument")
        exec(compile(block.code, "page", "exec"), names)
    elif block.language == "bash":
        for line in lines_of(block.code):
            run_line(line)
    elif block.language == "json":
        json.loads(block.code)
    elif block.language == "yaml":
        yaml.safe_load(block.code)
    if block.title is not None and block.language in ("json", "yaml"):
        Path(block.title).write_text(block.code, encoding="utf-8")


def lines_of(code: str) -> list[list[str]]:
    """The commands of a shell block as words, without comments; a backslash continues a line."""
    joined = code.replace("\\\n", " ")
    commands = [shlex.split(line, comments=True) for line in joined.splitlines()]
    return [words for words in commands if words]


def run_line(words: Sequence[str]) -> None:
    """Run a command of a page: `hfprune` and our scripts in this process, from the first step to the last file.

    A launcher (torchrun, accelerate) starts its script once. A benchmark takes minutes to hours, so it only has to
    know the options; a target of make, an extra of pip or a file only has to exist.
    """
    while "=" in words[0]:  # variables of the environment
        words = words[1:]
    program, *rest = words
    if program == "hfprune":
        _run_hfprune(rest)
    elif program in ("torchrun", "accelerate"):
        _run_launched(rest)
    elif program in ("python", "python3"):
        _run_python(rest)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(rest) <= set(targets), rest
    elif program == "pip":
        _check_pip(rest)
    else:
        assert program in (".", "cd", "git", "source"), f"{program}: how is a test to run this?"


def _run_hfprune(arguments: Sequence[str]) -> None:
    from typer.main import get_command
    from typer.testing import CliRunner

    from hfprune.cli.app import app

    if arguments[0] == "export":
        # an export takes many seconds, and tests/test_export_runtimes.py has one of each; here the options are read
        get_command(app).commands["export"].make_context("export", list(arguments[1:]))
        return
    # commands have a default of their own
    takes_samples = arguments[0] in ("prune", "sweep") and "--calibration-samples" not in arguments
    added = ["--calibration-samples", str(_SAMPLES)] if takes_samples else []
    if arguments[0] in ("run", "recover"):
        added = [] if "--help" in arguments else _quick(arguments)
    if arguments[0] == "latency-table" and "--runs" not in arguments:
        added = ["--runs", "3"]
    done = CliRunner().invoke(app, [*arguments, *added])
    assert done.exit_code == 0, f"hfprune {shlex.join(arguments)}: {done.output[-2000:]} {done.exception!r}"


def _run_launched(words: Sequence[str]) -> None:
    for word, value in itertools.pairwise(words):
        if word == "--config_file":
            assert (ROOT / value).is_file(), value
    start = next(index for index, word in enumerate(words) if word.endswith(".py"))
    _run_python(words[start:])


def _run_python(words: Sequence[str]) -> None:
    if words[0] == "-m":
        arguments = [words[1], *words[2:]]
        with _argv(arguments):
            code = None
            try:
                runpy.run_module(words[1], run_name="__main__")
            except SystemExit as done:
                code = done.code
        assert not code, f"python {shlex.join(words)}: exit code {code}"
        return
    script = ROOT / words[0]
    assert script.is_file(), words[0]
    if script.parent.name != "scripts":
        _check_options(script, words[1:])
        return
    # a flag at the end of the line would take the first added option's value
    with _argv([str(script), *words[1:], *_quick(words)]):
        runpy.run_path(str(script), run_name="__main__")


def _quick(words: Sequence[str]) -> list[str]:
    """Options of a job that make it quick and quiet, but for those that its line has."""
    quick = ["--dataloader_pin_memory", "false", "--disable_tqdm", "true", "--report_to", "none", "--use_cpu", "true"]
    quick += ["--calibration_samples", str(_SAMPLES)]
    if not any(word.endswith(".yaml") for word in words):
        quick += ["--per_device_train_batch_size", "32"]  # fewer steps than by default
    added = []
    for option, value in zip(quick[::2], quick[1::2], strict=True):
        if option not in words:
            added += [option, value]
    return added


def _check_options(script: Path, words: Sequence[str]) -> None:
    """The script's help names every option of the command."""
    said = io.StringIO()
    with _argv([str(script), "--help"]), contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        runpy.run_path(str(script), run_name="__main__")
    for word in words:
        if word.startswith("--"):
            assert word in said.getvalue(), f"{script.name} has no option {word}"


def _check_pip(words: Sequence[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for word in words:
        extras = re.search(r"\[([\w,-]+)\]", word)
        if extras:
            assert set(extras.group(1).split(",")) <= set(project["optional-dependencies"]), word
        if word.endswith(".txt"):
            assert (ROOT / word).is_file(), word


@contextlib.contextmanager
def _argv(arguments: Sequence[str]) -> Iterator[None]:
    argv, path = sys.argv, sys.path
    sys.argv = list(arguments)
    sys.path = [str(Path(arguments[0]).parent), *path]  # as `python FILE` does
    try:
        yield
    finally:
        sys.argv, sys.path = argv, path
