"""The page on other projects' test suites, from docs/results/foreign_suites.json."""

import json
from pathlib import Path
from typing import Any

SUITES = """# Other projects' test suites

Tests that nobody here wrote, run on pruned models. Read this page to see which tools work on a pruned model as they do
on a dense one, and what does not.

A suite runs offline from a copy of its public source, which is not part of this repository. A small plugin puts tiny
pruned models with another width in every layer in the place of dense ones. Tests that do not pass then run once more
on the dense models. A test that passes there and not on the pruned model needs a reason; without one the run fails.

- *passed*: the test passes on the pruned model.
- *dense too*: it fails on the dense model with the same error.
- *explained*: it passes on the dense model only, for a reason that stands below.
- *unexplained*: it has no reason. There must be none.
- *skipped*: the suite skips it, on the dense model too. It needs an accelerator, the network, or another model.

"""
KINDS = {
    "meaningless": "states what is true of dense models only",
    "refused": "hfprune refuses it on purpose",
    "limit": "not supported",
    "fault": "a fault that is not mended yet",
    "random": "fails at random, on the dense model too",
    "unexplained": "unexplained",
}
#: By suite: its heading, and what it is, how it was had, and what of it runs.
INTRODUCTIONS = {
    "transformers": (
        "transformers: models and generation",
        """`ModelTesterMixin`, `GenerationTesterMixin` and the tests of each model type. Every model class of the type
is replaced by its pruned class, and every config gets a table of uneven widths. Left out are tests of several devices,
and of 16-bit floats beside bfloat16. Compilation of `generate` runs for Llama only, where it takes a minute.

`make suite-transformers SUITE_DIR=...` needs a checkout of transformers of the installed version. The source archive of
5.23.0 has the common files only (`tests/*.py`). The counts are of these files on top of a checkout of 5.16.0.dev0, on
transformers 5.23.0.""",
    ),
    "examples": (
        "transformers: example scripts",
        """`run_glue`, `run_qa`, `run_ner`, `run_clm` and `run_summarization`, unchanged, train and evaluate a pruned
checkpoint on a few local rows, and save it: once after `import hfprune`, and once with `--trust_remote_code` in a
process that cannot import hfprune.

`make suite-examples SUITE_DIR=...` needs a checkout of transformers.""",
    ),
    "peft": (
        "peft",
        """The tests of `tests/test_decoder_models.py`, and those of `tests/test_custom_models.py` that load a model of
transformers. The models that they name are folders with pruned models. Widths are multiples of 8, as some methods want.
peft looks up by the model type which modules an adapter goes into, unless `target_modules` names them. It finds
the entries of the dense type for a pruned one.

`make suite-peft SUITE_DIR=...` needs the source of the installed version of peft, in which `tests/` is a package (the
source archive lacks `tests/__init__.py`).""",
    ),
    "lm-eval": (
        "lm-eval",
        """Tasks that lm-eval ships, on local rows. They are `arc_easy`, `hellaswag`, `sciq`, `triviaqa` and `wikitext`,
which ask a model in every way that there is. A test passes when the model in memory and the saved folder give the same
numbers.

`make suite-lm-eval` needs no source.""",
    ),
    "mteb": (
        "mteb",
        """The text tasks of mteb of every kind, on the data that mteb ships for its own tests, through
sentence-transformers.

`make suite-mteb` needs no source.""",
    ),
}
#: Tests of our own, so without a table.
TRAINERS = """
## trl, setfit and sentence-transformers

These have no suite that a plugin could give other models. So hfprune has tests of its own, which do with the folder of
a pruned checkpoint what the users of these libraries do: supervised training and GRPO with trl, SetFit, pairs of texts
in a `CrossEncoder`, and a decoder with layers on the disk. What they save must be pruned as it was.

`make suite-trainers` needs no source.
"""
COUNTS = ("passed", "dense too", "explained", "unexplained", "skipped")


def counts_of(run: dict[str, Any]) -> dict[str, int]:
    """How many tests of a run are in each column."""
    by_kind: dict[str, int] = {}
    for failure in run["failures"]:
        by_kind[failure["kind"]] = by_kind.get(failure["kind"], 0) + len(failure["tests"])
    dense = by_kind.pop("dense", 0)
    unexplained = by_kind.pop("unexplained", 0)
    explained = sum(by_kind.values())
    values = (run["passed"], dense, explained, unexplained, run["skipped"])
    return dict(zip(COUNTS, values, strict=True))


def foreign_suites() -> str:
    """docs/results/foreign-suites.md, from the runs."""
    path = Path(__file__).parent / "results" / "foreign_suites.json"
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
    lines = [SUITES.rstrip(), "", "| suite | " + " | ".join(COUNTS) + " |", "|---|" + "---:|" * len(COUNTS)]
    for suite, (title, *_) in INTRODUCTIONS.items():
        own = [counts_of(run) for run in runs if run["suite"] == suite]
        if own:
            lines.append(_row(title, {name: sum(counts[name] for counts in own) for name in COUNTS}))
    for suite, (title, text) in INTRODUCTIONS.items():
        own = [run for run in runs if run["suite"] == suite]
        if own:
            lines += ["", f"## {title}", "", text, "", *_table(own), *_reasons(own)]
    return "\n".join(lines) + "\n" + TRAINERS


def _row(name: str, counts: dict[str, int]) -> str:
    return f"| {name} | " + " | ".join(f"{counts[column]:,}" for column in COUNTS) + " |"


def _table(runs: list[dict[str, Any]]) -> list[str]:
    head = ["| model | " + " | ".join(COUNTS) + " |", "|---|" + "---:|" * len(COUNTS)]
    return head + [_row(run["model"], counts_of(run)) for run in runs]


def _reasons(runs: list[dict[str, Any]]) -> list[str]:
    """Every reason once, with the number of tests that have it."""
    tests: dict[tuple[str, str], int] = {}
    for run in runs:
        for failure in run["failures"]:
            key = (failure["kind"], failure["reason"])
            tests[key] = tests.get(key, 0) + len(failure["tests"])
    lines = []
    for (kind, reason), number in sorted(tests.items()):
        word = "test" if number == 1 else "tests"
        before = "" if kind == "dense" else f", {KINDS[kind]}"
        lines.append(f"- {number} {word}{before}. {reason[0].upper()}{reason[1:]}")
    return ["", *lines] if lines else []
