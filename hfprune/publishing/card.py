"""The model card, drawn from the record and the plan; its template is package data."""

from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)

from hfprune.planning.plan import PruningPlan
from hfprune.record import PruningRecord
from hfprune.structure.modeling_pruned import PrunedModel

_TASKS = (
    ("text-classification", "AutoModelForSequenceClassification", MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES),
    ("token-classification", "AutoModelForTokenClassification", MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES),
    ("question-answering", "AutoModelForQuestionAnswering", MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES),
    ("text-generation", "AutoModelForCausalLM", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    ("fill-mask", "AutoModelForMaskedLM", MODEL_FOR_MASKED_LM_MAPPING_NAMES),
)


def write_card(model: PreTrainedModel, folder: Path) -> None:
    """Write README.md into a checkpoint folder.

    Args:
        model: A pruned model with plan and record.
        folder: The checkpoint's folder.
    """
    text = draw_card(model.pruning_record, model.pruning_plan, portable=not isinstance(model, PrunedModel))
    (folder / "README.md").write_text(text, encoding="utf-8")


def draw_card(record: PruningRecord, plan: PruningPlan, *, portable: bool) -> str:
    """The card as text.

    Args:
        record: What happened.
        plan: What stays.
        portable: Whether plain transformers loads the checkpoint.

    Returns:
        Markdown with a YAML head.
    """
    task, auto_class = task_of(record.model_class)
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=task,
        base_model=record.base_model or None,
        base_model_relation="finetune" if record.base_model else None,
        tags=["pruned", "structured-pruning", "hfprune"],
        datasets=record.datasets or None,
        pruning={
            "plan_digest": plan.digest,
            "mac_sparsity": round(plan.sparsity("macs"), 4),
            "param_sparsity": round(plan.sparsity("params"), 4),
        },
    )
    template = resources.files("hfprune.publishing").joinpath("card_template.md").read_text(encoding="utf-8")
    card = ModelCard.from_template(
        data,
        template_str=template,
        record=record,
        plan=plan,
        portable=portable,
        auto_class=auto_class,
        rows=_rows(record),
        stages=[stage for stage in ("dense", "pruned", "recovered") if stage in record.metrics],
    )
    return str(card)


def task_of(model_class: str) -> tuple[str | None, str]:
    """The Hub's task and the Auto class of a model class.

    >>> task_of("BertForSequenceClassification")
    ('text-classification', 'AutoModelForSequenceClassification')
    """
    for task, auto_class, names in _TASKS:
        if model_class in names.values():
            return task, auto_class
    return None, "AutoModel"


def _rows(record: PruningRecord) -> list[tuple[str, str, str, str]]:
    """Lines of the table at the top: what, dense, pruned, and how much less."""
    dense, pruned = record.sizes.get("dense"), record.sizes.get("pruned")
    rows = []
    if dense and pruned:
        length = pruned["sequence_length"]
        rows = [
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
    return name, f"{before:,}", f"{after:,}", f"−{1 - after / before:.1%}"


def _setting(latency: dict[str, Any]) -> str:
    return (
        f"latency ({latency['device']}, {latency['dtype']}, {latency['threads']} threads, batch "
        f"{latency['batch_size']}, {latency['sequence_length']} tokens)"
    )
