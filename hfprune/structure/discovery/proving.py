"""Try entries on a twin: gating units must equal removing them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfprune.errors import StructureError
from hfprune.structure.batches import Batch
from hfprune.structure.blocks import Block
from hfprune.structure.discovery.entry_text import Finding
from hfprune.structure.discovery.proposals import Proposal, propose
from hfprune.structure.discovery.twin import (
    Stack,
    Trace,
    dense_fields,
    output_of,
    projections_of,
    stacked_weights_of,
    trace,
    watch_inputs,
)
from hfprune.structure.gates import gated
from hfprune.structure.modeling_pruned import PrunedModel
from hfprune.structure.reading import read_blocks
from hfprune.structure.specs import Architecture, BlockSpec, Quantity
from hfprune.structure.surgery import keep_units

#: How far outputs after removal may be from outputs with gates, relative to what gating changes.
_TOLERANCE = 1e-3
#: The least that gating must change, relative to the largest output: less would prove nothing.
_LEAST_EFFECT = 1e-4
#: The most entries that are tried for one block, each with two forward passes or more.
_MOST_TRIED = 16
#: How the problem of an entry starts whose pruned model runs, but computes something else than the gated one.
_NOT_ITS_GATE = "removing units is not gating them"
#: The config field that may say how often shared layers are run.
_RUNS_FIELD = "num_hidden_layers"
#: What the stock config may say of attention, for all layers at once. The fields of models that share key/value heads
#: come first, because they include those of other models.
_HEAD_FIELDS: tuple[dict[str, Quantity], ...] = (
    {"num_attention_heads": "heads", "num_key_value_heads": "units", "head_dim": "head_dim"},
    {"num_attention_heads": "heads", "head_dim": "head_dim"},
)


@dataclass(frozen=True, kw_only=True)
class StackFindings:
    """The findings in one list of layers.

    Attributes:
        findings: Its blocks, one for each name.
        unclaimed: Paths, in a layer, of the projections that are in no block.
        runs: `Architecture.runs`.
    """

    findings: list[Finding]
    unclaimed: list[str]
    runs: str


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A possible entry of the blocks of one name in one list of layers.

    Attributes:
        stack: Path of the list.
        name: Name of the block in its layer.
        specs: One spec for each set of projections that the layers have.
        runs: `Architecture.runs`.
    """

    stack: str
    name: str
    specs: tuple[BlockSpec, ...]
    runs: str

    def entry(self) -> Architecture:
        """The entry of a model that has these blocks only."""
        return Architecture(stacks={self.stack: {self.name: self.specs}}, runs=self.runs)

    def changed(self, **fields: Any) -> "_Candidate":
        """The candidate with some fields changed in all of its specs."""
        return replace(self, specs=_with_fields(self.specs, **fields))

    def finding(self, problem: str = "") -> Finding:
        """The line of a report on the candidate."""
        return Finding(stack=self.stack, name=self.name, specs=self.specs, problem=problem)


def _with_fields(specs: Iterable[BlockSpec], **fields: Any) -> tuple[BlockSpec, ...]:
    return tuple(replace(spec, **fields) for spec in specs)


class Prover:
    """Tries entries on a twin.

    Args:
        twin: The twin.
        batch: Arguments for it.
    """

    def __init__(self, twin: PreTrainedModel, batch: Batch) -> None:
        self.twin = twin
        self.batch = batch
        self.dense = output_of(twin, batch)

    def stack(self, stack: Stack) -> StackFindings:
        """Look for the blocks of one list of layers, and prove them.

        Args:
            stack: The list.

        Returns:
            Its blocks, and the projections that are in none.
        """
        traced = trace(self.twin, self.batch, stack)
        runs = self._runs(stack, traced)
        problem = _problem_of_order(traced, runs)
        by_layer = []
        for path, layer in stack.layers.items():
            by_layer.append(propose(layer, traced.projections[path]))
        findings = []
        for name, proposals in _by_name(by_layer).items():
            if problem:
                specs = proposals[0].specs[:1]
                findings.append(Finding(stack=stack.path, name=name, specs=specs, problem=problem))
            else:
                some_lack_it = len(proposals) < len(stack.layers)
                findings.append(self._block(stack.path, name, _optional(proposals, some_lack_it), runs))
        return StackFindings(
            findings=_with_places_of_their_own(findings),
            unclaimed=_unclaimed(stack, by_layer),
            runs=runs,
        )

    def problem(self, entry: Architecture) -> str:
        """Try an entry on the twin.

        Args:
            entry: The entry.

        Returns:
            Why it is wrong; empty if gating units equals removing them in all its blocks.
        """
        try:
            blocks = read_blocks(self.twin, entry)
        except StructureError as error:
            return _listed_problems(error)
        fewer = _fewer_units(blocks)
        # a block that may lose all its units must be right without any, too
        none = {block.name: torch.arange(0, dtype=torch.long, device="cpu") for block in blocks if block.least == 0}
        return self._difference(blocks, fewer) or self._difference(blocks, none)

    def _runs(self, stack: Stack, traced: Trace) -> str:
        """The config field that says how often the layers run, where each runs several times."""
        if traced.times <= 1:
            return ""
        said = getattr(self.twin.config, _RUNS_FIELD, 0)
        if said != traced.times * stack.outermost:
            return ""
        return _RUNS_FIELD

    def _block(self, stack: str, name: str, proposals: Sequence[Proposal], runs: str) -> Finding:
        """Try the possible entries of one block until one is proven."""
        for proposal in proposals:
            if proposal.missing:
                return Finding(stack=stack, name=name, specs=(), problem=proposal.missing)
        # layers of one list may have different projections: the entry then needs one spec for each set of them
        choices = {proposal.projections: proposal.specs for proposal in proposals}
        failed: list[Finding] = []
        for specs in islice(product(*choices.values()), _MOST_TRIED):
            candidate = _Candidate(stack=stack, name=name, specs=specs, runs=runs)
            problem = self.problem(candidate.entry())
            if not problem:
                return self._completed(candidate).finding()
            failed.append(candidate.finding(problem + self._own_parameters(stack, specs)))
        # an entry whose pruned model runs is nearer to the truth than one that fails, so its problem says more
        for finding in failed:
            if finding.problem.startswith(_NOT_ITS_GATE):
                return finding
        return failed[0]

    def _own_parameters(self, stack: str, specs: Sequence[BlockSpec]) -> str:
        """A remark on parameters beside the projections of attention, such as one number for every head."""
        holder, _, _ = specs[0].consumer.rpartition(".")
        try:
            first_layer = self.twin.base_model.get_submodule(f"{stack}.0")
            module = first_layer.get_submodule(holder)
        except AttributeError:
            # layers in lists inside of lists, or of different kinds
            return ""
        cut = specs[0].head_parameters
        names = [name for name, _ in module.named_parameters(recurse=False) if f"{holder}.{name}" not in cut]
        if specs[0].of_neurons or not holder or not names:
            return ""
        return f"; {holder} has parameters of its own, which hfprune cannot cut: {', '.join(names)}"

    def _completed(self, candidate: _Candidate) -> _Candidate:
        """A proven entry with the fields of the stock config, and with the place that reconstruction aims at."""
        blocks = read_blocks(self.twin, candidate.entry())
        config_fields: Mapping[str, Quantity] = {}
        for fields in self._fields_to_try(blocks[0]):
            with_fields = candidate.changed(config_fields=fields)
            if self._is_sayable(read_blocks(self.twin, with_fields.entry())):
                config_fields = fields
                break
        residual_sum = None
        # several specs have their consumers in different places, and one sum would be right for one of them only
        if len(candidate.specs) == 1:
            residual_sum = self._residual_sum(blocks[0])
        return candidate.changed(config_fields=config_fields, residual_sum=residual_sum)

    def _fields_to_try(self, block: Block) -> list[Mapping[str, Quantity]]:
        """The `BlockSpec.config_fields` that blocks like this one may have, the likeliest first."""
        config = dense_fields(self.twin.config)
        if block.unit != "neuron":
            return [fields for fields in _HEAD_FIELDS if fields.keys() <= config.keys()]
        choices: list[Mapping[str, Quantity]] = []
        # a field of any name may say the width of a feed-forward: only its value tells
        for name, value in config.items():
            if type(value) is int and value == block.units:
                choices.append({name: "features"})
        return choices

    def _is_sayable(self, blocks: Sequence[Block]) -> bool:
        """Whether the stock config says another size of all blocks, and gives a model that computes what it should."""
        first = blocks[0]
        fewer = [count for count in first.portable_units if count < first.units]
        # fields hold for all layers, so layers of different sizes cannot all be said
        if not fewer or any(block.units != first.units for block in blocks):
            return False
        count = fewer[len(fewer) // 2]
        kept = {block.name: torch.arange(count, dtype=torch.long, device="cpu") for block in blocks}
        return not self._difference(blocks, kept, stock=True)

    def _residual_sum(self, block: Block) -> str | None:
        """Look for `BlockSpec.residual_sum`: the module whose input is the consumer's output plus something else.

        The consumer's output is doubled. Where a module reads it in a sum, the module's input then grows by just that
        output.

        Args:
            block: A block of a proven entry.

        Returns:
            Path of the module in its layer, empty for the output of the layer; None where there is no such module.
        """
        layer = self.twin.base_model.get_submodule(block.layer)
        consumer = self.twin.base_model.get_submodule(block.consumer)
        outputs: list[Tensor] = []

        def double(_: nn.Module, __: object, output: Tensor) -> Tensor:
            outputs.append(output)
            return 2 * output

        before = watch_inputs(self.twin, self.batch, layer)
        hook = consumer.register_forward_hook(double)
        try:
            after = watch_inputs(self.twin, self.batch, layer)
        finally:
            hook.remove()
        for path, value in before.items():
            if path in after and _is_sum_with(outputs[0], value, after[path]):
                return path
        return None

    def _difference(self, blocks: Sequence[Block], kept: Mapping[str, Tensor], *, stock: bool = False) -> str:
        """Compare the twin without some units to the twin with gates on them.

        Args:
            blocks: All blocks of the entry.
            kept: By block name, for some or all blocks, the indices of the units that stay.
            stock: Demand that the smaller model is of the stock class.

        Returns:
            How the two differ; empty if they do not, or if no unit goes.
        """
        gates = _gates(blocks, kept)
        if not gates:
            return ""
        effects: dict[str, float] = {}
        least_effect = _LEAST_EFFECT * self.dense.abs().max()
        for name, gate in gates.items():
            effects[name] = _distance(self._gated(blocks, {name: gate}), self.dense)
            # `not >=` here and `not <=` below, so that NaN is a problem too
            if not effects[name] >= least_effect:
                return f"gating units of {name} changes nothing (by {effects[name]:.2g})"
        try:
            small = keep_units(self.twin, {name: kept[name].tolist() for name in gates}, blocks=blocks)
            if stock and isinstance(small, PrunedModel):
                return "the stock config cannot say it"
            pruned = output_of(small, self.batch)
        except Exception as error:  # noqa: BLE001 (whatever a wrong proposal makes fail is the finding)
            return f"without some units it does not run ({type(error).__name__}: {error})"
        difference = _distance(pruned, self._gated(blocks, gates))
        effect = min(effects.values())
        if not difference <= _TOLERANCE * effect:
            return f"{_NOT_ITS_GATE}: outputs differ by {difference:.2g}, where gating changes them by {effect:.2g}"
        return ""

    def _gated(self, blocks: Sequence[Block], gates: Mapping[str, Tensor]) -> Tensor:
        with gated(self.twin, blocks, gates):
            return output_of(self.twin, self.batch)


def _problem_of_order(traced: Trace, runs: str) -> str:
    """Why the layers of a list cannot be pruned and repaired one after the other; empty if they can.

    Args:
        traced: What the layers do in one pass.
        runs: `Architecture.runs`.

    Returns:
        The problem.
    """
    if traced.times == 0:
        return "its layers do not run, or do not all run equally often, in one pass"
    if traced.times > 1 and not runs:
        return f"its layers run {traced.times} times in one pass, and {_RUNS_FIELD} does not say so"
    if traced.times == 1 and not traced.chained:
        return "some of its layers do not take the output of the layer before them"
    return ""


def _by_name(by_layer: Sequence[Sequence[Proposal]]) -> dict[str, list[Proposal]]:
    """The proposals of all layers by name of the block, in the order in which a layer runs its blocks."""
    # the first layer may lack a block that others run before those that it has
    most = max(by_layer, key=len, default=())
    by_name: dict[str, list[Proposal]] = {proposal.name: [] for proposal in most}
    for proposals in by_layer:
        for proposal in proposals:
            by_name.setdefault(proposal.name, []).append(proposal)
    return by_name


def _optional(proposals: Sequence[Proposal], some_lack_it: bool) -> list[Proposal]:
    """The proposals of one name, with specs that say whether some layers of the list lack the block."""
    return [replace(proposal, specs=_with_fields(proposal.specs, optional=some_lack_it)) for proposal in proposals]


def _unclaimed(stack: Stack, by_layer: Iterable[Sequence[Proposal]]) -> list[str]:
    """Paths, in a layer, of projections and stacked experts that no proposal of any layer has, each path once."""
    claimed: set[str] = set()
    for proposals in by_layer:
        for proposal in proposals:
            claimed.update(proposal.projections)
    # a dict, as a set would lose the order
    unclaimed: dict[str, None] = {}
    for layer in stack.layers.values():
        for path in (*projections_of(layer), *stacked_weights_of(layer)):
            if path not in claimed:
                unclaimed[path] = None
    return list(unclaimed)


def _with_places_of_their_own(findings: Sequence[Finding]) -> list[Finding]:
    """Where attention and feed-forward join the residual stream together, each repairs its own output.

    Both would aim at the same sum otherwise, and the second would correct what the first has corrected already.

    Args:
        findings: The blocks of one list of layers.

    Returns:
        The blocks, without `residual_sum` where several have the same.
    """
    blocks_at = Counter[str | None]()
    for finding in findings:
        blocks_at.update(_places(finding))
    separated = []
    for finding in findings:
        if any(blocks_at[place] > 1 for place in _places(finding)):
            separated.append(replace(finding, specs=_with_fields(finding.specs, residual_sum=None)))
        else:
            separated.append(finding)
    return separated


def _places(finding: Finding) -> set[str | None]:
    """The `residual_sum` of a block: one for all of its specs."""
    return {spec.residual_sum for spec in finding.specs}


def _listed_problems(error: StructureError) -> str:
    """The problems that `read_blocks` lists, in one line.

    They stand between a first line that names the model type and a last one with advice for users of the table; neither
    helps with an entry that is only tried.

    Args:
        error: The error of `read_blocks`.

    Returns:
        The problems, or the whole message where it lists none.
    """
    lines = str(error).splitlines()[1:-1]
    return " ".join(map(str.strip, lines)) or str(error)


def _fewer_units(blocks: Iterable[Block]) -> dict[str, Tensor]:
    """Units to keep on trial, drawn at random: about three quarters of every block, at least as many as it needs.

    Neighbouring layers keep different numbers, so that an entry fails whose layers must all be of one size.

    Args:
        blocks: The blocks.

    Returns:
        By block name, increasing indices of units.
    """
    generator = torch.Generator().manual_seed(0)
    # by name of the block in its layer: the number of layers that came before
    layers_before = Counter[str]()
    kept: dict[str, Tensor] = {}
    for block in blocks:
        name = block.name.rpartition(".")[2]
        removed = max(1, block.units // 4) + layers_before[name] % 2
        layers_before[name] += 1
        # a block that cannot shrink so far stays larger
        count = max(block.least, block.units - removed)
        kept[block.name] = (
            torch.randperm(block.units, dtype=torch.long, device="cpu", generator=generator)[:count].sort().values
        )
    return kept


def _gates(blocks: Iterable[Block], kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gates that are 1 for the kept units and 0 for the others, of the blocks that lose a unit.

    Args:
        blocks: All blocks.
        kept: By block name, the indices of the units that stay.

    Returns:
        `(units,)` by block name.
    """
    gates: dict[str, Tensor] = {}
    for block in blocks:
        # a block that is not named stays whole
        if block.name in kept:
            gate = torch.zeros(block.units, dtype=torch.float32, device="cpu").index_fill(0, kept[block.name], 1.0)
            if not gate.all():
                gates[block.name] = gate
    return gates


def _is_sum_with(output: Tensor, before: Tensor, after: Tensor) -> bool:
    """Whether a value is an output plus something else, from what doubling the output does to it.

    Args:
        output: The output of a consumer.
        before: The value.
        after: The value where the output is doubled.

    Returns:
        False too where the value is the output alone, or of another size.
    """
    if before.numel() != output.numel() or before.shape != after.shape:
        return False
    change = (after - before).reshape(output.shape)
    # a module may read samples and tokens flattened into one dimension
    value = before.reshape(output.shape)
    tolerated = _TOLERANCE * output.abs().max()
    return bool(_distance(change, output) <= tolerated < _distance(value, output))


def _distance(a: Tensor, b: Tensor) -> float:
    """The largest difference between two tensors; infinite where their shapes differ."""
    if a.shape != b.shape:
        return float("inf")
    return float((a - b).abs().max())
