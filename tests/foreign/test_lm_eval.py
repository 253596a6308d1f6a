"""Tasks that lm-eval ships, on local data and pruned models, loaded as lm-eval loads them: `make suite-lm-eval`."""

import json
from pathlib import Path

import pytest
import yaml

import hfprune
from tests.foreign.checkpoints import tiny, uneven
from tests.foreign.suites import Failure, Run
from tests.support.tiny_data import WORDS
from tests.support.tiny_tokenizers import trained

pytestmark = [pytest.mark.slow, pytest.mark.suite_lm_eval]

ROWS = 6
#: By task that lm-eval ships, a row of its data: one for each way in which it asks a model.
DATA = {
    "arc_easy": {"question": "who", "choices": {"text": ["dog", "cat"], "label": ["A", "B"]}, "answerKey": "B"},
    "hellaswag": {"ctx_a": "a dog", "ctx_b": "is", "activity_label": "what", "endings": ["a", "the"], "label": "1"},
    "sciq": {
        "support": "the river",
        "question": "what is",
        "correct_answer": "city",
        "distractor1": "dog",
        "distractor2": "cat",
        "distractor3": "name",
    },
    "triviaqa": {"question": "where is the dog", "answer": {"aliases": ["city"]}},
    "wikitext": {"page": "who is the dog of the city . what is the name of the river ."},
}
#: Where lm-eval has the settings of a task, if not in a file of its name in a folder of its name.
FILES = {"arc_easy": "arc/arc_easy.yaml", "triviaqa": "triviaqa/default.yaml"}
MODELS = ("llama", "opt", "gpt2", "gemma3_text")


def local_task(task: str, tasks: Path, folder: Path) -> str:
    """A file with the settings that lm-eval has for a task in its folder, but for where the data comes from."""
    path = folder / f"{task}.jsonl"
    rows = []
    for number in range(ROWS):
        row = dict(DATA[task])
        # texts of different lengths
        for name, value in row.items():
            if isinstance(value, str) and len(value) > 1:
                row[name] = f"{value} {' '.join(WORDS[: number + 1])}"
        rows.append(json.dumps(row))
    path.write_text("\n".join(rows), encoding="utf-8")
    shipped = tasks / FILES.get(task, f"{task}/{task}.yaml")
    settings = {"include": str(shipped), "task": f"local_{task}", "dataset_path": "json", "dataset_name": None}
    settings |= {"training_split": None, "validation_split": None, "test_split": "test"}
    settings |= {"dataset_kwargs": {"data_files": {"test": str(path)}}}
    if task == "triviaqa":
        # fewer than its default of 256 tokens, which are more than the models have positions
        settings["generation_kwargs"] = {"until": ["\n"], "do_sample": False, "max_gen_toks": 8}
    written = folder / f"{task}.yaml"
    written.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return str(written)


@pytest.mark.parametrize("model_type", MODELS)
def test_tasks(model_type, checked, tmp_path, monkeypatch):
    """The numbers are finite, and those of the model in memory are those of the folder that was saved."""
    lm_eval = pytest.importorskip("lm_eval")
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    tokenizer = trained("byte_level")
    small = uneven(tiny(model_type))
    hfprune.save(small, tmp_path / "pruned", tokenizer=tokenizer)
    settings = {"backend": "causal", "device": "cpu", "batch_size": 2}
    models = {
        "in memory": huggingface.HFLM(pretrained=small, tokenizer=tokenizer, **settings),
        "from the folder": huggingface.HFLM(pretrained=str(tmp_path / "pruned"), **settings),
    }
    tasks_of_lm_eval = Path(lm_eval.__file__).parent / "tasks"
    tasks = [local_task(task, tasks_of_lm_eval, tmp_path) for task in DATA]
    results = {}
    for name, model in models.items():
        done = lm_eval.simple_evaluate(model=model, tasks=tasks, bootstrap_iters=0, random_seed=0, log_samples=False)
        results[name] = done["results"]
    failures = []
    for task in DATA:
        numbers = [numbers_of(results[name][f"local_{task}"]) for name in models]
        if not numbers[0] or numbers[0] != numbers[1]:
            detail = f"{numbers[0]} in memory, {numbers[1]} from the folder"
            failures.append(Failure(suite="lm-eval", model=model_type, test=task, detail=detail))
    checked(
        Run(
            suite="lm-eval",
            model=model_type,
            passed=len(DATA) - len(failures),
            skipped=0,
            dense=[],
            explained=[],
            unexplained=failures,
        )
    )


def numbers_of(result: dict) -> dict[str, float]:
    return {name: value for name, value in result.items() if isinstance(value, float) and "stderr" not in name}
