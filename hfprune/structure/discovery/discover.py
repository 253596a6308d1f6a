"""Entries for model types that the table lacks: proposed from the structure of a layer, and proven before they count.

The proof runs on a *twin*: a model of the same class and config with random weights and, where all layers are alike,
two of them. It depends on class and config only, so a pruned checkpoint needs to carry nothing: in a fresh process its
dense config gives the same twin, the same proposals and the same entry.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from transformers import PreTrainedModel

from hfprune.errors import UnsupportedArchitectureError
from hfprune.structure.architectures import base_model_type, known_architectures
from hfprune.structure.discovery.entry_text import Finding, entry_text
from hfprune.structure.discovery.proving import Prover
from hfprune.structure.discovery.twin import dense_fields, make_twin, stacks_of
from hfprune.structure.modeling_pruned import base_class, register_config
from hfprune.structure.specs import Architecture, BlockSpec
from hfprune.structure.surgery import pruned_class_for

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Support:
    """How hfprune knows where the blocks of a model are.

    Attributes:
        entry: Where they are.
        by: `table`, or `proof` where discovery found them.
    """

    entry: Architecture
    by: Literal["table", "proof"]


_PROVEN: dict[tuple[type, str], Architecture] = {}


def support_of(model: PreTrainedModel) -> Support:
    """The entry of a model's type in the table; else the one that is proposed and proven, once a class and config.

    Args:
        model: The model, dense or pruned.

    Returns:
        The entry, and where it is from.

    Raises:
        UnsupportedArchitectureError: No entry, and none could be proven: the message says what was found, and has the
            entry as far as it is known. Or the class is neither transformers' nor registered with an Auto class.
    """
    model_type = base_model_type(model.config.model_type)
    entry = known_architectures().get(model_type)
    if entry is not None:
        return Support(entry=entry, by="table")
    key = (base_class(type(model)), json.dumps(dense_fields(model.config), sort_keys=True, default=repr))
    if key not in _PROVEN:
        _PROVEN[key] = _discover(model, model_type)
        register_config(model_type)
    return Support(entry=_PROVEN[key], by="proof")


def _discover(model: PreTrainedModel, model_type: str) -> Architecture:
    pruned_class_for(model)
    findings: list[Finding] = []
    unclaimed: dict[str, list[str]] = {}
    runs = ""
    try:
        twin, batch = make_twin(model)
        prover = Prover(twin, batch)
        for stack in stacks_of(twin.base_model):
            found, rest, runs_here = prover.stack(stack)
            findings += found
            unclaimed[stack.path] = rest
            runs = runs or runs_here
    except Exception as error:
        failed = f"a random model of its config cannot be run: {type(error).__name__}: {error}"
        raise _refusal(model, model_type, findings, unclaimed, failed) from error
    unclaimed = {path: rest for path, rest in unclaimed.items() if any(f.stack == path for f in findings)} or unclaimed
    if not findings or any(finding.problem for finding in findings):
        raise _refusal(model, model_type, findings, unclaimed, "" if findings else "no like layers with projections")
    left = sorted({line for rest in unclaimed.values() for line in rest})
    entry = replace(_entry(findings, runs), note=f"not recognised, so not pruned: {', '.join(left)}" if left else "")
    problem = prover.problem(entry)
    if problem:
        raise _refusal(model, model_type, findings, unclaimed, f"all blocks together: {problem}")
    logger.log(
        logging.WARNING if left else logging.INFO,
        "model_type %r is not in the table; its blocks were found by proof. %s",
        model_type,
        entry.note,
    )
    return entry


def _entry(findings: Sequence[Finding], runs: str) -> Architecture:
    stacks: dict[str, dict[str, tuple[BlockSpec, ...]]] = {}
    for finding in findings:
        stacks.setdefault(finding.stack, {})[finding.name] = finding.specs
    return Architecture(stacks=stacks, runs=runs)


def _refusal(
    model: PreTrainedModel,
    model_type: str,
    findings: Sequence[Finding],
    unclaimed: Mapping[str, Sequence[str]],
    failed: str,
) -> UnsupportedArchitectureError:
    found = "\n".join(f"  {line}" for line in [*map(str, findings), *([failed] if failed else [])])
    return UnsupportedArchitectureError(
        f"no architecture entry for model_type {model_type!r}, and none could be proven from the structure of "
        f"{base_class(type(model)).__name__}:\n{found}\nWrite the entry: correct what failed, or leave it out to prune "
        'the rest (CONTRIBUTING.md, "Add an architecture"). As far as it is known:\n\n'
        f"{entry_text(model_type, findings, unclaimed)}"
    )
