"""The example scripts of transformers, unchanged, on pruned checkpoints and local data: `make suite-examples`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.foreign.checkpoints import uneven
from tests.foreign.suites import Failure, Run
from tests.support.processes import WITHOUT_HFPRUNE
from tests.support.tiny import tiny_model
from tests.support.tiny_data import WORDS, tiny_tags, tiny_texts
from tests.support.tiny_tokenizers import trained

pytestmark = [pytest.mark.slow, pytest.mark.suite_examples]

ROWS = 16
#: The scripts load metrics by name, from the Hub or from a folder of that name. This is such a metric: the share of
#: predictions that are their references. What the scripts' own metrics say is no matter here.
METRIC = """
import datasets
import evaluate


class Same(evaluate.Metric):
    def _info(self):
        features = datasets.Features({{"predictions": {kind}, "references": {kind}}})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        same = [prediction == reference for prediction, reference in zip(predictions, references)]
        return {{name: sum(same) / len(same) for name in {names}}}
"""
#: Question answering has other columns.
SQUAD = """
import datasets
import evaluate


class Same(evaluate.Metric):
    def _info(self):
        answers = datasets.Sequence({"text": datasets.Value("string"), "answer_start": datasets.Value("int32")})
        predictions = {"id": datasets.Value("string"), "prediction_text": datasets.Value("string")}
        references = {"id": datasets.Value("string"), "answers": answers}
        features = datasets.Features({"predictions": predictions, "references": references})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        pairs = zip(predictions, references)
        same = [given["prediction_text"] in right["answers"]["text"] for given, right in pairs]
        return {"f1": sum(same) / len(same), "exact_match": sum(same) / len(same)}
"""
TAGS = ["overall_precision", "overall_recall", "overall_f1", "overall_accuracy"]
METRICS = {
    "accuracy": METRIC.format(kind="datasets.Value('int32')", names=["accuracy"]),
    "rouge": METRIC.format(kind="datasets.Value('string')", names=["rouge1"]),
    "seqeval": METRIC.format(kind="datasets.Sequence(datasets.Value('string'))", names=TAGS),
    "squad": SQUAD,
}
SHORT = ["--max_seq_length=32"]
#: By script: folder, model type, head, and arguments of its own.
SCRIPTS = {
    "run_glue": ("text-classification", "bert", "AutoModelForSequenceClassification", SHORT),
    "run_qa": ("question-answering", "bert", "AutoModelForQuestionAnswering", [*SHORT, "--doc_stride=8"]),
    "run_ner": ("token-classification", "roberta", "AutoModelForTokenClassification", SHORT),
    "run_clm": ("language-modeling", "llama", "AutoModelForCausalLM", ["--block_size=16"]),
    "run_summarization": ("summarization", "t5", "AutoModelForSeq2SeqLM", ["--source_prefix=summarize: "]),
}


def lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def data_of(script: str, folder: Path) -> Path:
    """A small file of data in the form that a script reads."""
    texts = tiny_texts(ROWS)
    if script == "run_glue":
        rows = [{"sentence": row["text"], "label": row["label"]} for row in texts]
        return lines(folder / "data.json", rows)
    if script == "run_ner":
        return lines(folder / "data.json", tiny_tags(ROWS))
    if script == "run_clm":
        path = folder / "data.txt"
        path.write_text("\n".join(texts["text"]) * 8, encoding="utf-8")
        return path
    if script == "run_summarization":
        return lines(folder / "data.json", [{"text": row["text"], "summary": WORDS[row["label"]]} for row in texts])
    rows = []
    for number, text in enumerate(texts["text"]):
        first = text.split()[0]
        answers = {"text": [first], "answer_start": [0]}
        rows.append({"id": str(number), "title": "", "context": text, "question": "who is it", "answers": answers})
    path = folder / "data.json"
    path.write_text(json.dumps({"data": rows}), encoding="utf-8")
    return path


def write_metrics(folder: Path) -> None:
    """Metrics in the folder that a script runs in, under the names that it loads."""
    for name, text in METRICS.items():
        (folder / name).mkdir()
        (folder / name / f"{name}.py").write_text(text, encoding="utf-8")
    # the summaries are split into sentences only where they are generated
    (folder / "nltk_data" / "tokenizers" / "punkt").mkdir(parents=True)


def checkpoint_of(script: str, folder: Path) -> Path:
    """A pruned checkpoint with a tokenizer."""
    _, model_type, head, _ = SCRIPTS[script]
    labels = {"run_glue": {"num_labels": 3}, "run_ner": {"num_labels": 3}}.get(script, {})
    tokenizer = trained("byte_level")
    tokenizer.padding_side = "right"
    small = uneven(tiny_model(model_type, head, vocab_size=1024, **labels))
    small.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def arguments_of(script: str, checkpoint: Path, data: Path, output: Path) -> list[str]:
    """What to train and evaluate, on the same few rows."""
    steps = ["--max_steps=2", "--per_device_train_batch_size=4", "--report_to=none", "--use_cpu", "--do_train"]
    files = [f"--train_file={data}", f"--validation_file={data}", f"--output_dir={output}", "--do_eval"]
    return [f"--model_name_or_path={checkpoint}", *files, *steps, *SCRIPTS[script][3]]


@pytest.mark.parametrize("way", ["import hfprune", "trust_remote_code"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts(script, way, suite_dir, checked, tmp_path):
    """A script ends well, writes an evaluation, and saves a model that is pruned as the one before."""
    write_metrics(tmp_path)
    checkpoint = checkpoint_of(script, tmp_path / "pruned")
    output = tmp_path / "trained"
    arguments = arguments_of(script, checkpoint, data_of(script, tmp_path), output)
    path = str(suite_dir / "examples" / "pytorch" / SCRIPTS[script][0] / f"{script}.py")
    before = "import hfprune"
    if way == "trust_remote_code":
        before = WITHOUT_HFPRUNE
        arguments.append("--trust_remote_code")
    run_it = f"{before}\nimport runpy\nrunpy.run_path({path!r}, run_name='__main__')"
    command = [sys.executable, "-c", run_it, *arguments]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "home"),
        "NLTK_DATA": str(tmp_path / "nltk_data"),
        "PYTHONPATH": os.pathsep.join([str(Path(path).parent), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1] if done.returncode else ""
    failures = [Failure(suite="examples", model=SCRIPTS[script][1], test=script, detail=last)] if last else []
    checked(
        Run(
            suite="examples",
            model=f"{script} ({SCRIPTS[script][1]}), {way}",
            passed=1 - len(failures),
            skipped=0,
            dense=[],
            explained=[],
            unexplained=failures,
        )
    )
    results = json.loads((output / "all_results.json").read_text(encoding="utf-8"))
    assert results["eval_samples"] > 0
    before = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    after = json.loads((output / "config.json").read_text(encoding="utf-8"))
    assert after["pruning_config"] == before["pruning_config"]
