"""The model card, drawn from the record and the plan; its template is package data."""

import html
import logging
import re
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, Template
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_CTC_MAPPING_NAMES,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES,
    MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING_NAMES,
    MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)

from hfprune.planning.plan import PruningPlan
from hfprune.publishing.charts import KEPT_UNITS, can_draw, draw_pictures, pictures_of
from hfprune.publishing.record import PruningRecord
from hfprune.publishing.verification import PLAN_FILE, RECORD_FILE
from hfprune.structure.modeling_pruned import PrunedModel

logger = logging.getLogger(__name__)

_FILES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt")

_TASKS = (
    ("text-classification", "AutoModelForSequenceClassification", MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES),
    ("token-classification", "AutoModelForTokenClassification", MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES),
    ("question-answering", "AutoModelForQuestionAnswering", MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES),
    ("text-generation", "AutoModelForCausalLM", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    (None, "AutoModelForMultipleChoice", MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES),
    (None, "AutoModelForNextSentencePrediction", MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING_NAMES),
    ("automatic-speech-recognition", "AutoModelForSpeechSeq2Seq", MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES),
    ("automatic-speech-recognition", "AutoModelForCTC", MODEL_FOR_CTC_MAPPING_NAMES),
    ("audio-classification", "AutoModelForAudioClassification", MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES),
    ("image-classification", "AutoModelForImageClassification", MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES),
    (None, "AutoModelForSeq2SeqLM", MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),  # some are among masked ones too
    ("fill-mask", "AutoModelForMaskedLM", MODEL_FOR_MASKED_LM_MAPPING_NAMES),
)


def write_card(model: PreTrainedModel, folder: Path, *, location: str) -> None:
    """Write README.md and, where matplotlib is installed, its pictures into a checkpoint folder.

    Args:
        model: A pruned model with plan and record.
        folder: The checkpoint's folder.
        location: Where the card says that it is to be loaded from.
    """
    record, plan = model.pruning_record, model.pruning_plan
    if can_draw():
        draw_pictures(record, plan, folder)
    else:
        logger.info("The card has no pictures: pip install hfprune[plot]")
    portable = not isinstance(model, PrunedModel)
    text = draw_card(record, plan, portable=portable, location=location, pictures="" if can_draw() else None)
    (folder / "README.md").write_text(text, encoding="utf-8")


def card_of(folder: Path, *, location: str) -> str:
    """The card of a checkpoint folder, from its record, plan and pictures.

    Args:
        folder: The folder.
        location: Where the card says that it is to be loaded from.

    Returns:
        Markdown with a YAML head.
    """
    record = PruningRecord.from_json((folder / RECORD_FILE).read_text(encoding="utf-8"))
    plan = PruningPlan.from_json((folder / PLAN_FILE).read_text(encoding="utf-8"))
    portable = not (folder / "modeling_pruned.py").is_file()
    pictures = "" if (folder / KEPT_UNITS).is_file() else None
    return draw_card(record, plan, portable=portable, location=location, pictures=pictures)


def draw_card(
    record: PruningRecord, plan: PruningPlan, *, portable: bool, location: str, pictures: str | None = None
) -> str:
    """The card as text.

    Args:
        record: What happened. What it says is quoted, never taken for markup.
        plan: What stays.
        portable: Whether plain transformers loads the checkpoint.
        location: The folder or repository to load it from; of a name with odd characters it says PATH instead.
        pictures: What stands before the names of its pictures, such as `pictures/`; None: there are none.

    Returns:
        Markdown with a YAML head.
    """
    location = location if re.fullmatch(r"[\w. -]+(/[\w.-]+)?", location, re.ASCII) else "PATH"
    task, auto_class = task_of(record.model_class)
    name = location.rpartition("/")[2]
    final = "recovered" if record.metrics.get("recovered") else "pruned"
    base = record.base_model if "/" in record.base_model or record.base_revision else ""  # else the name of a folder
    datasets = [data for data in record.datasets if not data.endswith(_FILES)]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=task,
        base_model=base or None,
        base_model_relation="finetune" if base else None,
        tags=["pruned", "structured-pruning", "hfprune"],
        datasets=datasets or None,
        metrics=sorted(record.metrics.get(final, {})) or None,
        model_name=name,
        eval_results=_results(record, task, final) or None,
        pruning={
            "plan_digest": plan.digest,
            "mac_sparsity": round(plan.sparsity("macs"), 4),
            "param_sparsity": round(plan.sparsity("params"), 4),
        },
    )
    return _template().render(
        card_data=data.to_yaml(),
        record=record,
        plan=plan,
        cut=plan.sparsity("macs") > 0,
        removed=_removed(plan),
        name=name,
        location=location,
        portable=portable,
        auto_class=auto_class,
        last="pruned and recovered" if final == "recovered" else "pruned",
        rows=_rows(record, final),
        pictures=[] if pictures is None else pictures_of(record),
        before=pictures or "",
        versions=", ".join(f"{package} {version}" for package, version in record.versions.items()),
    )


@cache
def _template() -> Template:
    text = resources.files("hfprune.publishing").joinpath("card_template.md").read_text(encoding="utf-8")
    environment = Environment(keep_trailing_newline=True)
    environment.filters.update(text=_text, code=_code)
    return environment.from_string(text)


def _text(value: Any) -> str:
    """A value as text in Markdown: no HTML, no new cell, no new line, no code fence.

    >>> _text("<b>a|b`")
    '&lt;b&gt;a&#124;b&#96;'
    """
    text = " ".join(html.escape(str(value), quote=False).split())
    return text.replace("|", "&#124;").replace("`", "&#96;").replace("[", "&#91;")


def _code(value: Any) -> str:
    """A value as text inside a fence, which it cannot end."""
    return str(value).replace("```", "'''")


def _results(record: PruningRecord, task: str | None, final: str) -> list[EvalResult]:
    """The metrics of the published model, and those of the dense one beside them, as the Hub lists them."""
    if task is None:
        return []
    data = (record.datasets or ["unknown"])[0]
    stages = {final: "", "dense": " of the dense model"}
    return [
        EvalResult(
            task_type=task,
            dataset_type=data,
            dataset_name=data,
            dataset_split="test",
            metric_type=metric,
            metric_name=f"{metric}{note}",
            metric_value=round(value, 6),
        )
        for stage, note in stages.items()
        for metric, value in record.metrics.get(stage, {}).items()
        if value is not None
    ]


def task_of(model_class: str) -> tuple[str | None, str]:
    """The Hub's task and the Auto class of a model class.

    >>> task_of("BertForSequenceClassification")
    ('text-classification', 'AutoModelForSequenceClassification')
    """
    for task, auto_class, names in _TASKS:
        if model_class in names.values():
            return task, auto_class
    return None, "AutoModel"


def _removed(plan: PruningPlan) -> str:
    """What went, in words."""
    names = {"attention": "heads", "ffn": "feed-forward neurons"}
    gone = {block.kind for block in plan.blocks.values() if len(block.kept) < block.units}
    return " and ".join(name for kind, name in names.items() if kind in gone)


def _rows(record: PruningRecord, final: str) -> list[tuple[str, str, str, str]]:
    """Lines of the table at the top: what, dense, published, and the change."""
    rows = []
    for metric, value in record.metrics.get("dense", {}).items():
        now = record.metrics.get(final, {}).get(metric)
        if value is None or now is None:
            continue  # not measured, or no number
        note = ""
        if final == "recovered" and (before := record.metrics.get("pruned", {}).get(metric)) is not None:
            note = f"; {before:.4f} before recovery"
        rows.append((metric, f"{value:.4f}", f"{now:.4f}", f"{now - value:+.4f}{note}".replace("-", "−")))
    dense, pruned = record.sizes.get("dense"), record.sizes.get("pruned")
    if dense and pruned:
        length = pruned["sequence_length"]
        if record.vocabulary:
            rows.append(_row("tokens", record.vocabulary["before"], record.vocabulary["after"]))
        rows += [
            _row("parameters", dense["params"], pruned["params"]),
            _row("prunable parameters", dense["prunable_params"], pruned["prunable_params"]),
            _row(f"MACs ({length} tokens)", dense["macs"], pruned["macs"]),
            _row(f"prunable MACs ({length} tokens)", dense["prunable_macs"], pruned["prunable_macs"]),
            _row("bytes of weights", dense["weight_bytes"], pruned["weight_bytes"]),
        ]
    slow, fast = record.latencies.get("dense"), record.latencies.get("pruned")
    if slow and fast:
        ratio = slow["median_ms"] / fast["median_ms"]
        rows.append(
            (_setting(fast), f"{slow['median_ms']:.1f} ms", f"{fast['median_ms']:.1f} ms", f"{ratio:.2f}× faster")
        )
    return rows


def _row(name: str, before: int, after: int) -> tuple[str, str, str, str]:
    return name, f"{before:,}", f"{after:,}", f"−{1 - after / before:.1%}" if before else ""


def _setting(latency: dict[str, Any]) -> str:
    return (
        f"latency ({latency['device']}, {latency['dtype']}, {latency['threads']} threads, batch "
        f"{latency['batch_size']}, {latency['sequence_length']} tokens)"
    )
