"""Structured pruning for Hugging Face transformers.

A dense `PreTrainedModel` is viewed as **blocks**, two a layer (attention, feed-forward), each with its **units**
(heads, or groups of heads that share a key/value head; neurons). A **scorer** runs seeded calibration batches through
the model with a gate on every unit and returns **scores**, one float32 vector a block. The **allocator** turns scores,
unit costs and a budget into a **plan**: which units stay in each block. A plan holds no tensor and is JSON. **Surgery**
is the only step that changes shapes: it keeps the plan's rows of every producer and the plan's columns of every
consumer. **Reconstruction** re-solves the consumers in closed form, so that the smaller layer reproduces the dense one.
**Recovery** trains with `Trainer`, optionally against the dense teacher. **Publishing** writes weights, a config that
loads through the Auto classes, the plan, a **record** of what happened, and a model card drawn from it.
"""

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfprune import errors
from hfprune.deprecated import OldPaths
from hfprune.planning.plan import PruningPlan
from hfprune.publishing.record import PruningRecord
from hfprune.structure import modeling_pruned
from hfprune.structure.architectures import known_architectures

if TYPE_CHECKING:
    from hfprune.config import PruningConfig
    from hfprune.data.corpus import self_generated
    from hfprune.deployment.export import export
    from hfprune.deployment.quantize import quantize
    from hfprune.deployment.results import Export
    from hfprune.measuring.perplexity import perplexity
    from hfprune.pruning.prune import prune
    from hfprune.pruning.steps import apply_plan, plan, trade_off
    from hfprune.publishing.checkpoint import load, save
    from hfprune.publishing.push import push_to_hub
    from hfprune.reconstruction.reconstruct import reconstruct
    from hfprune.recovery.arguments import RecoveryArguments
    from hfprune.recovery.gradual import GradualPruning
    from hfprune.recovery.teacher import add_teacher_logits
    from hfprune.recovery.trainer import RecoveryTrainer
    from hfprune.scoring.scorers import score
    from hfprune.sweeping.curve import Sweep
    from hfprune.sweeping.run import sweep
    from hfprune.sweeping.search import prune_within
    from hfprune.vocabulary.pruning import prune_vocabulary

__version__ = "0.1.0"
__all__ = [
    "Export",
    "GradualPruning",
    "PruningConfig",
    "PruningPlan",
    "PruningRecord",
    "RecoveryArguments",
    "RecoveryTrainer",
    "Sweep",
    "add_teacher_logits",
    "apply_plan",
    "errors",
    "export",
    "load",
    "perplexity",
    "plan",
    "prune",
    "prune_vocabulary",
    "prune_within",
    "push_to_hub",
    "quantize",
    "reconstruct",
    "save",
    "score",
    "self_generated",
    "sweep",
    "trade_off",
]

# Last of all finders, so that it is asked only for modules that are not there.
sys.meta_path.append(OldPaths())

# So that pruned checkpoints load with AutoModelForX.from_pretrained, and carry plan and record as objects.
for _model_type in known_architectures():
    modeling_pruned.register_config(_model_type)
modeling_pruned.ATTACHMENTS["pruning_plan.json"] = ("pruning_plan", PruningPlan.from_json, PruningPlan.to_json)
modeling_pruned.ATTACHMENTS["pruning_record.json"] = ("pruning_record", PruningRecord.of_model, PruningRecord.to_json)


def _warn_if_unchecked(folder: Path) -> None:
    from hfprune.publishing.verification import warn_if_unchecked

    warn_if_unchecked(folder)


modeling_pruned.AFTER_LOADING.append(_warn_if_unchecked)

# Trainer and datasets take seconds to import, so what needs them is imported when first used.
_WHERE = {
    "Export": "hfprune.deployment.results",
    "GradualPruning": "hfprune.recovery.gradual",
    "PruningConfig": "hfprune.config",
    "RecoveryArguments": "hfprune.recovery.arguments",
    "RecoveryTrainer": "hfprune.recovery.trainer",
    "add_teacher_logits": "hfprune.recovery.teacher",
    "apply_plan": "hfprune.pruning.steps",
    "Sweep": "hfprune.sweeping.curve",
    "export": "hfprune.deployment.export",
    "load": "hfprune.publishing.checkpoint",
    "perplexity": "hfprune.measuring.perplexity",
    "plan": "hfprune.pruning.steps",
    "prune": "hfprune.pruning.prune",
    "prune_vocabulary": "hfprune.vocabulary.pruning",
    "prune_within": "hfprune.sweeping.search",
    "push_to_hub": "hfprune.publishing.push",
    "quantize": "hfprune.deployment.quantize",
    "reconstruct": "hfprune.reconstruction.reconstruct",
    "save": "hfprune.publishing.checkpoint",
    "score": "hfprune.scoring.scorers",
    "self_generated": "hfprune.data.corpus",
    "sweep": "hfprune.sweeping.run",
    "trade_off": "hfprune.pruning.steps",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'hfprune' has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
