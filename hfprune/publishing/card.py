"""The model card: README.md of a checkpoint, drawn from its record and plan by `card_template.md`."""

import html
import logging
import re
from collections.abc import Mapping, Sequence
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
from hfprune.publishing.charts import KEPT_UNITS, draw_pictures, pictures_of
from hfprune.publishing.contents import PLAN_FILE
from hfprune.publishing.encoder_files import PIPELINES, encoder_class_in
from hfprune.publishing.exports import export_rows, exports_of_weights, quantization_of_weights
from hfprune.publishing.record import PruningRecord, record_in
from hfprune.showing.picture import can_draw
from hfprune.showing.units import plural_of
from hfprune.structure.modeling_pruned import PrunedModel
from hfprune.structure.specs import KIND_OF_NEURONS

logger = logging.getLogger(__name__)

#: The card, by the name that the Hub looks for.
CARD_FILE = "README.md"
#: A data set whose name ends like this is a file of the author's, which the Hub cannot link to.
_FILE_ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt")
#: Locations that may stand inside the quotes of the card's code; any other could end them.
_QUOTABLE_LOCATION = re.compile(r"[\w. -]+(/[\w.-]+)?", re.ASCII)
#: Where the code in a card loads the model from.
_LOADED_FROM = re.compile(r'(?:from_pretrained|SentenceTransformer|CrossEncoder)\("([^"]+)"')
#: Names of folders that say nothing about the model in them: those that scripts and `Trainer` give, and the stand-in.
_PLAIN_NAME = re.compile(r"model|pruned|dense|output|\d+|((last-)?checkpoint(-\d+)?)|PATH")
#: Tasks of the Hub whose pipeline takes pruned classes; transformers 5 has no pipeline for questions any more.
_PIPELINES = frozenset(
    {
        "text-classification",
        "token-classification",
        "fill-mask",
        "text-generation",
        "image-classification",
        "audio-classification",
        "automatic-speech-recognition",
    }
)
#: What a pipeline needs beside the weights: the settings of a tokenizer, or of a processor of pictures.
_PROCESSORS = ("tokenizer_config.json", "preprocessor_config.json", "processor_config.json")
#: How the card calls the published model at each stage.
_PUBLISHED = {"pruned": "pruned", "recovered": "pruned and recovered"}

#: One row of the card's table: name, dense value, published value, change.
Row = tuple[str, str, str, str]

#: The Hub's task, the Auto class and its model classes. The first entry that lists a class counts.
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
    # before the masked language models, whose mapping lists BART and a few others too
    (None, "AutoModelForSeq2SeqLM", MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
    ("fill-mask", "AutoModelForMaskedLM", MODEL_FOR_MASKED_LM_MAPPING_NAMES),
)


def write_card(model: PreTrainedModel, folder: Path, *, location: str, record: PruningRecord | None = None) -> None:
    """Write README.md and, where matplotlib is installed, its pictures into a checkpoint folder.

    Args:
        model: A pruned model with plan and record.
        folder: The checkpoint's folder.
        location: The folder or repository that the card's code loads the model from.
        record: The record in the folder, which knows its files; None: that of the model, whose weights may change.
    """
    record = record or model.pruning_record
    pictures: str | None = None
    if can_draw():
        draw_pictures(record, model.pruning_plan, folder)
        pictures = ""
    else:
        logger.info("The card has no pictures: pip install matplotlib")
    portable = not isinstance(model, PrunedModel)
    text = draw_card(
        record,
        model.pruning_plan,
        portable=portable,
        location=location,
        pictures=pictures,
        has_processor=_has_processor(folder),
        encoder=encoder_class_in(folder),
    )
    (folder / CARD_FILE).write_text(text, encoding="utf-8")


def card_of(folder: Path, *, location: str) -> str:
    """The card of a checkpoint folder, drawn from its record, its plan and the pictures that it has.

    Args:
        folder: The folder.
        location: The folder or repository that the card's code loads the model from.

    Returns:
        Markdown.
    """
    record = record_in(folder)
    plan = PruningPlan.from_json((folder / PLAN_FILE).read_text(encoding="utf-8"))
    # only a checkpoint that plain transformers cannot load brings its loader
    portable = not (folder / "modeling_pruned.py").is_file()
    pictures = "" if (folder / KEPT_UNITS).is_file() else None
    return draw_card(
        record,
        plan,
        portable=portable,
        location=location,
        pictures=pictures,
        has_processor=_has_processor(folder),
        encoder=encoder_class_in(folder),
    )


def is_unedited(folder: Path) -> bool:
    """Whether the card in a checkpoint's folder is the one that hfprune draws, so that a new one may replace it.

    Args:
        folder: The folder.

    Returns:
        Whether it is. It is also if the folder has been renamed or copied since.
    """
    text = (folder / CARD_FILE).read_text(encoding="utf-8")
    loaded_from = _LOADED_FROM.search(text)
    return loaded_from is not None and text == card_of(folder, location=loaded_from[1])


def _has_processor(folder: Path) -> bool:
    """Whether a checkpoint brings its tokenizer or processor."""
    return any((folder / name).is_file() for name in _PROCESSORS)


def draw_card(
    record: PruningRecord,
    plan: PruningPlan,
    *,
    portable: bool,
    location: str,
    pictures: str | None = None,
    has_processor: bool = True,
    encoder: str | None = None,
) -> str:
    """The card as text.

    Args:
        record: The record. The card quotes its texts, so that nothing in them works as markup.
        plan: The plan.
        portable: Whether plain transformers loads the checkpoint.
        location: The folder or repository that the card's code loads the model from. Where its name has characters
            that code cannot quote, the card says PATH instead.
        pictures: The path before the names of the pictures, such as `pictures/`; None if there are no pictures.
        has_processor: Whether the checkpoint brings its tokenizer or processor, which a pipeline needs.
        encoder: The class of sentence-transformers that the checkpoint is of, such as `SentenceTransformer`; None if
            it is a model of transformers alone.

    Returns:
        Markdown with a YAML head.
    """
    if not _QUOTABLE_LOCATION.fullmatch(location):
        location = "PATH"
    name = title_of(record, location)
    task, auto_class = task_of(record.model_class)
    library = "transformers"
    loader = f"{auto_class}.from_pretrained"
    if encoder is not None:
        task = PIPELINES[encoder]
        library = "sentence_transformers"
        loader = encoder
    stage = published_stage(record)
    # a card of vocabulary pruning alone would otherwise say that 0.0 % of the units were removed
    names_units = plan.sparsity("macs") > 0 or not record.vocabulary
    picture_names = []
    if pictures is not None:
        picture_names = pictures_of(record)
    return _template().render(
        card_data=_card_data(record, plan, name=name, task=task, stage=stage, library=library).to_yaml(),
        record=record,
        plan=plan,
        names_units=names_units,
        removed_units=_removed_units(plan),
        name=name,
        location=location,
        portable=portable,
        library=library,
        loader=loader,
        pipeline=task if has_processor and task in _PIPELINES else None,
        published=_PUBLISHED[stage],
        rows=comparison_rows(record, stage),
        exports=export_rows(exports_of_weights(record.exports, record.files)),
        quantization=_quantization_rows(record),
        pictures=picture_names,
        pictures_path=pictures,
        versions=", ".join(f"{package} {version}" for package, version in record.versions.items()),
    )


def _quantization_rows(record: PruningRecord) -> Sequence[tuple[str, ...]]:
    """How the weights were quantised, as the one row of a table; none if they were not."""
    quantization = quantization_of_weights(record.quantization, record.files)
    return export_rows({quantization["quantization"]: quantization}) if quantization else []


def title_of(record: PruningRecord, location: str) -> str:
    """The name of the published model: that of its folder or repository, or else of what it was cut from.

    >>> record = PruningRecord(base_model="google/bert", model_class="BertModel", config={}, plan_digest="")
    >>> title_of(record, "me/small-bert"), title_of(record, "model")
    ('small-bert', 'bert')
    """
    name = location.rpartition("/")[2]
    if not _PLAIN_NAME.fullmatch(name):
        return name
    return record.base_model.rpartition("/")[2] or record.model_class


def published_stage(record: PruningRecord) -> str:
    """The stage of the published model, under which its metrics stand in the record."""
    if record.metrics.get("recovered"):
        return "recovered"
    return "pruned"


def _card_data(
    record: PruningRecord, plan: PruningPlan, *, name: str, task: str | None, stage: str, library: str
) -> ModelCardData:
    """The YAML head of the card: the part that the Hub reads and searches."""
    base_model: str | None = None
    # any other name is that of a local folder, which the Hub cannot link to
    if "/" in record.base_model or record.base_revision:
        base_model = record.base_model or None
    datasets = [dataset for dataset in record.datasets if not dataset.endswith(_FILE_ENDINGS)]
    # ModelCardData leaves None out, and would write an empty list as one
    return ModelCardData(
        library_name=library.replace("_", "-"),
        pipeline_tag=task,
        base_model=base_model,
        base_model_relation="finetune" if base_model else None,
        tags=["pruned", "structured-pruning", "hfprune"],
        datasets=datasets or None,
        metrics=sorted(record.metrics.get(stage, {})) or None,
        model_name=name,
        eval_results=_eval_results(record, task, stage) or None,
        pruning={
            "plan_digest": plan.digest,
            "mac_sparsity": round(plan.sparsity("macs"), 4),
            "param_sparsity": round(plan.sparsity("params"), 4),
        },
    )


@cache
def _template() -> Template:
    """The template of the card, with the filters that quote texts."""
    path = resources.files("hfprune.publishing").joinpath("card_template.md")
    environment = Environment(keep_trailing_newline=True)
    environment.filters.update(text=_text, code=_code)
    return environment.from_string(path.read_text(encoding="utf-8"))


def _text(value: Any) -> str:
    """A value as one line of text in Markdown: it makes no HTML, table cell, link or code.

    >>> _text("<b>a|b`")
    '&lt;b&gt;a&#124;b&#96;'
    """
    escaped = html.escape(str(value), quote=False)
    line = " ".join(escaped.split())
    return line.replace("|", "&#124;").replace("`", "&#96;").replace("[", "&#91;")


def _code(value: Any) -> str:
    """A value as text inside a fenced code block, which it cannot end."""
    return str(value).replace("```", "'''")


def _eval_results(record: PruningRecord, task: str | None, stage: str) -> list[EvalResult]:
    """The metrics of the published model and of the dense model, in the form that the Hub lists."""
    # the Hub accepts no result without a task
    if task is None:
        return []
    # the Hub accepts no result without a data set either, and one is enough
    dataset = next(iter(record.datasets), "unknown")
    notes = {stage: "", "dense": " of the dense model"}
    results = []
    for measured_stage, note in notes.items():
        for metric, value in record.metrics.get(measured_stage, {}).items():
            # the file of a record has null where a metric was NaN or infinite
            if value is None:
                continue
            result = EvalResult(
                task_type=task,
                dataset_type=dataset,
                dataset_name=dataset,
                dataset_split="test",
                metric_type=metric,
                metric_name=f"{metric}{note}",
                metric_value=round(value, 6),
            )
            results.append(result)
    return results


def task_of(model_class: str) -> tuple[str | None, str]:
    """The Hub's task and the Auto class of a model class; None and `AutoModel` where it has no known head.

    >>> task_of("BertForSequenceClassification")
    ('text-classification', 'AutoModelForSequenceClassification')
    """
    for task, auto_class, names in _TASKS:
        if model_class in names.values():
            return task, auto_class
    return None, "AutoModel"


def _removed_units(plan: PruningPlan) -> str:
    """What the plan removes, in words: heads or key/value groups, `feed-forward neurons`, or both."""
    names: list[str] = []
    # attention first, whatever comes first in the model
    for block in sorted(plan.blocks.values(), key=lambda block: block.kind):
        name = plural_of(block.unit_name)
        if block.kind == KIND_OF_NEURONS:
            name = f"feed-forward {name}"
        if len(block.kept) < block.units and name not in names:
            names.append(name)
    return " and ".join(names)


def comparison_rows(record: PruningRecord, stage: str) -> list[Row]:
    """The rows of the card's table."""
    rows = [*_metric_rows(record, stage), *_size_rows(record)]
    dense_latency = record.latencies.get("dense")
    pruned_latency = record.latencies.get("pruned")
    if dense_latency and pruned_latency:
        rows.append(_latency_row(dense_latency, pruned_latency))
        if "predicted_ms" in dense_latency and "predicted_ms" in pruned_latency:
            rows.append(_predicted_row(dense_latency, pruned_latency))
    return rows


def _metric_rows(record: PruningRecord, stage: str) -> list[Row]:
    """A row for each metric that was measured on the dense and on the published model."""
    rows = []
    published_metrics = record.metrics.get(stage, {})
    for metric, dense_value in record.metrics.get("dense", {}).items():
        value = published_metrics.get(metric)
        # it was not measured at this stage, or was NaN or infinite
        if dense_value is None or value is None:
            continue
        change = f"{value - dense_value:+.4f}"
        unrecovered = record.metrics.get("pruned", {}).get(metric)
        if stage == "recovered" and unrecovered is not None:
            change += f"; {unrecovered:.4f} before recovery"
        # the minus sign is as wide as the plus sign, the hyphen is not
        rows.append((metric, f"{dense_value:.4f}", f"{value:.4f}", change.replace("-", "−")))
    return rows


def _size_rows(record: PruningRecord) -> list[Row]:
    """Rows of all sizes, where they were measured before and after pruning."""
    dense = record.sizes.get("dense")
    pruned = record.sizes.get("pruned")
    if not dense or not pruned:
        return []
    length = pruned["sequence_length"]
    rows = []
    if record.vocabulary:
        rows.append(_size_row("tokens", record.vocabulary["before"], record.vocabulary["after"]))
    rows.append(_size_row("parameters", dense["params"], pruned["params"]))
    rows.append(_size_row("prunable parameters", dense["prunable_params"], pruned["prunable_params"]))
    rows.append(_size_row(f"MACs ({length} tokens)", dense["macs"], pruned["macs"]))
    rows.append(_size_row(f"prunable MACs ({length} tokens)", dense["prunable_macs"], pruned["prunable_macs"]))
    rows.append(_size_row("bytes of weights", dense["weight_bytes"], pruned["weight_bytes"]))
    return rows


def _size_row(name: str, before: int, after: int) -> Row:
    """A size before and after pruning, and by how much it shrank."""
    change = ""
    if before:
        change = f"−{1 - after / before:.1%}"
    return name, f"{before:,}", f"{after:,}", change


def _latency_row(dense: Mapping[str, Any], pruned: Mapping[str, Any]) -> Row:
    """The median latency of both models, how it was measured, and the speed-up."""
    setting = (
        f"latency ({pruned['device']}, {pruned['dtype']}, {pruned['threads']} threads, batch "
        f"{pruned['batch_size']}, {pruned['sequence_length']} tokens)"
    )
    speedup = dense["median_ms"] / pruned["median_ms"]
    return setting, f"{dense['median_ms']:.1f} ms", f"{pruned['median_ms']:.1f} ms", f"{speedup:.2f}× faster"


def _predicted_row(dense: Mapping[str, Any], pruned: Mapping[str, Any]) -> Row:
    """What a latency table predicted of both models before one was pruned, and the speed-up by it."""
    speedup = dense["predicted_ms"] / pruned["predicted_ms"]
    setting = "latency predicted by the latency table"
    return setting, f"{dense['predicted_ms']:.1f} ms", f"{pruned['predicted_ms']:.1f} ms", f"{speedup:.2f}× faster"
