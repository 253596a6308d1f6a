"""Entries for model types that the table lacks: proposed from the structure of a layer, and proven before they count.

The proof runs on a *twin*: a model of the same class and config with random weights and, where all layers are alike, two
of them. It depends on class and config only, so a pruned checkpoint needs to carry nothing: in a fresh process its
dense config gives the same twin, the same proposals and the same entry.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfprune.errors import StructureError, UnsupportedArchitectureError
from hfprune.structure.architectures import base_model_type, known_architectures
from hfprune.structure.blocks import Block
from hfprune.structure.entry_text import Finding, entry_text
from hfprune.structure.gates import Batch, gated
from hfprune.structure.modeling_pruned import PrunedModel, base_class, register_config
from hfprune.structure.proposals import Proposal, propose
from hfprune.structure.reading import read_blocks
from hfprune.structure.specs import Architecture, BlockSpec
from hfprune.structure.surgery import keep_units, pruned_class_for
from hfprune.structure.twin import Stack, dense_fields, make_twin, output_of, stacks_of, trace

logger = logging.getLogger(__name__)

#: How far removal may be from gating, relative to what gating changes; and the least that gating must change.
_TOLERANCE, _LEAST_EFFECT = 1e-3, 1e-4
_MOST_TRIED = 16


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
    logger.info("model_type %r has no architecture entry; looking for its blocks.", model_type)
    findings: list[Finding] = []
    unclaimed: dict[str, list[str]] = {}
    runs = ""
    try:
        twin, batch = make_twin(model)
        prover = _Prover(twin, batch)
        for stack in stacks_of(twin.base_model):
            found, rest, runs_here = prover.stack(stack)
            findings += found
            unclaimed[stack.path] = rest
            runs = runs or runs_here
    except Exception as error:  # noqa: BLE001 (whatever a stranger's model raises: it is not supported then)
        failed = f"a random model of its config cannot be run: {type(error).__name__}: {error}"
        raise _refusal(model, model_type, findings, unclaimed, failed) from error
    unclaimed = {path: rest for path, rest in unclaimed.items() if any(f.stack == path for f in findings)} or unclaimed
    if not findings or any(finding.problem for finding in findings):
        raise _refusal(model, model_type, findings, unclaimed, "" if findings else "no like layers with projections")
    left = sorted({line for rest in unclaimed.values() for line in rest})
    entry = replace(
        _entry(findings, runs), note=f"not recognised, so not pruned: {', '.join(left)}" if left else ""
    )
    problem = prover.problem(entry)
    if problem:
        raise _refusal(model, model_type, findings, unclaimed, f"all blocks together: {problem}")
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


class _Prover:
    """Tries entries on a twin."""

    def __init__(self, twin: PreTrainedModel, batch: Batch) -> None:
        self.twin, self.batch = twin, batch
        self.dense = output_of(twin, batch)

    def stack(self, stack: Stack) -> tuple[list[Finding], list[str], str]:
        """What is found in one list of layers; projections that are in no block; `Architecture.runs`."""
        projections, times = trace(self.twin, self.batch, stack)
        by_layer = [propose(layer, projections[path]) for path, layer in stack.layers.items()]
        runs = ""
        if times > 1 and getattr(self.twin.config, "num_hidden_layers", 0) == times * stack.outermost:
            runs = "num_hidden_layers"
        findings = []
        for name in dict.fromkeys(proposal.name for proposals in by_layer for proposal in proposals):
            proposals = [proposal for proposals in by_layer for proposal in proposals if proposal.name == name]
            if times == 0 or (times > 1 and not runs):
                problem = f"its layers run {times or 'a different number of'} times in one pass"
                findings.append(Finding(stack=stack.path, name=name, specs=proposals[0].specs[:1], problem=problem))
            else:
                findings.append(self._block(stack.path, name, proposals, runs))
        taken = {path for p in by_layer for proposal in p for path in proposal.projections}
        rest = {p.path: f"{p.path}" for found in projections.values() for p in found if p.path not in taken}
        return findings, list(rest.values()), runs

    def _block(self, stack: str, name: str, proposals: Sequence[Proposal], runs: str) -> Finding:
        """Try the possible entries of one block until one is proven."""
        missing = next((proposal.missing for proposal in proposals if proposal.missing), "")
        if missing:
            return Finding(stack=stack, name=name, specs=(), problem=missing)
        families = list({proposal.projections: proposal.specs for proposal in proposals}.values())
        problem, first = "", tuple(specs[0] for specs in families)
        for specs in islice(product(*families), _MOST_TRIED):
            found = self.problem(Architecture(stacks={stack: {name: specs}}, runs=runs))
            if not found:
                return Finding(stack=stack, name=name, specs=specs)
            problem = problem or found
        return Finding(stack=stack, name=name, specs=first, problem=problem)

    def problem(self, entry: Architecture) -> str:
        """Why an entry is wrong; empty if gating units equals removing them in all its blocks."""
        try:
            blocks = read_blocks(self.twin, entry)
        except StructureError as error:
            return " ".join(line.strip() for line in str(error).splitlines()[1:-1]) or str(error)
        generator = torch.Generator().manual_seed(0)
        some = {}
        for index, block in enumerate(blocks):  # another number in every block; one that cannot shrink stays
            count = max(block.least, block.units - max(1, block.units // (4 + index)))
            some[block.name] = torch.randperm(block.units, generator=generator)[:count].sort().values
        none = {block.name: torch.arange(0) for block in blocks if block.least == 0}
        return self._difference(blocks, some) or (self._difference(blocks, none) if none else "")

    def _difference(self, blocks: Sequence[Block], kept: Mapping[str, Tensor]) -> str:
        units = {block.name: block.units for block in blocks}
        gates = {name: torch.zeros(units[name]).index_fill(0, index, 1.0) for name, index in kept.items()}
        gates = {name: gate for name, gate in gates.items() if not gate.all()}
        if not gates:
            return ""
        effects = {}
        for name in gates:
            effects[name] = self._distance(self._gated(blocks, {name: gates[name]}), self.dense)
            if not effects[name] >= _LEAST_EFFECT * self.dense.abs().max():
                return f"gating units of {name} changes nothing (by {effects[name]:.2g})"
        try:
            small = keep_units(self.twin, {name: kept[name].tolist() for name in gates}, blocks=blocks)
            pruned = output_of(small, self.batch)
        except Exception as error:  # noqa: BLE001 (whatever a wrong proposal makes fail is what was found)
            return f"without some units it does not run ({type(error).__name__}: {error})"
        difference = self._distance(pruned, self._gated(blocks, gates))
        if not difference <= _TOLERANCE * min(effects.values()):
            return (
                f"removing units is not gating them: outputs differ by {difference:.2g}, where gating changes them by "
                f"{min(effects.values()):.2g}"
            )
        return ""

    def _gated(self, blocks: Sequence[Block], gates: Mapping[str, Tensor]) -> Tensor:
        with gated(self.twin, blocks, gates):
            return output_of(self.twin, self.batch)

    @staticmethod
    def _distance(a: Tensor, b: Tensor) -> float:
        return float((a - b).abs().max()) if a.shape == b.shape else float("inf")
