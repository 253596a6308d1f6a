"""Try entries on a twin: gating units must equal removing them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice, product

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfprune.errors import StructureError
from hfprune.structure.batches import Batch
from hfprune.structure.blocks import Block
from hfprune.structure.discovery.entry_text import Finding
from hfprune.structure.discovery.proposals import Proposal, propose
from hfprune.structure.discovery.twin import Stack, dense_fields, output_of, projections_of, trace, watch_inputs
from hfprune.structure.gates import gated
from hfprune.structure.modeling_pruned import PrunedModel
from hfprune.structure.reading import read_blocks
from hfprune.structure.specs import Architecture, BlockSpec, Quantity
from hfprune.structure.surgery import keep_units

#: How far removal may be from gating, relative to what gating changes; and the least that gating must change.
_TOLERANCE, _LEAST_EFFECT = 1e-3, 1e-4
_MOST_TRIED = 16
_NOT_ITS_GATE = "removing units is not gating them"
#: What the stock config may say of attention, for all layers at once.
_HEAD_FIELDS: tuple[dict[str, Quantity], ...] = (
    {"num_attention_heads": "heads", "num_key_value_heads": "units", "head_dim": "head_dim"},
    {"num_attention_heads": "heads", "head_dim": "head_dim"},
)


def _with_places_of_their_own(findings: Sequence[Finding]) -> list[Finding]:
    """Where attention and feed-forward join the residual stream together, each repairs its own output."""
    places = [finding.specs[0].residual_sum if finding.specs else None for finding in findings]
    return [
        replace(finding, specs=tuple(replace(spec, residual_sum=None) for spec in finding.specs))
        if places.count(place) > 1
        else finding
        for finding, place in zip(findings, places, strict=True)
    ]


class Prover:
    """Tries entries on a twin.

    Args:
        twin: The twin.
        batch: Arguments for it.
    """

    def __init__(self, twin: PreTrainedModel, batch: Batch) -> None:
        self.twin, self.batch = twin, batch
        self.dense = output_of(twin, batch)

    def stack(self, stack: Stack) -> tuple[list[Finding], list[str], str]:
        """What is found in one list of layers; projections that are in no block; `Architecture.runs`."""
        traced = trace(self.twin, self.batch, stack)
        times, runs, problem = traced.times, "", ""
        by_layer = [propose(layer, traced.projections[path]) for path, layer in stack.layers.items()]
        if times > 1 and getattr(self.twin.config, "num_hidden_layers", 0) == times * stack.outermost:
            runs = "num_hidden_layers"
        if times == 0 or (times > 1 and not runs):
            problem = f"its layers run {times or 'a different number of'} times in one pass"
        elif times == 1 and not traced.chained:
            problem = "its layers do not run each on what the one before gives"
        findings = []
        for name in dict.fromkeys(proposal.name for proposals in by_layer for proposal in proposals):
            proposals = [proposal for proposals in by_layer for proposal in proposals if proposal.name == name]
            if problem:
                findings.append(Finding(stack=stack.path, name=name, specs=proposals[0].specs[:1], problem=problem))
            else:
                findings.append(self._block(stack.path, name, proposals, runs))
        taken = {path for p in by_layer for proposal in p for path in proposal.projections}
        rest = [path for layer in stack.layers.values() for path in projections_of(layer) if path not in taken]
        return _with_places_of_their_own(findings), list(dict.fromkeys(rest)), runs

    def _block(self, stack: str, name: str, proposals: Sequence[Proposal], runs: str) -> Finding:
        """Try the possible entries of one block until one is proven."""
        missing = next((proposal.missing for proposal in proposals if proposal.missing), "")
        if missing:
            return Finding(stack=stack, name=name, specs=(), problem=missing)
        families = list({proposal.projections: proposal.specs for proposal in proposals}.values())
        tried: list[Finding] = []
        for specs in islice(product(*families), _MOST_TRIED):
            found = self.problem(Architecture(stacks={stack: {name: specs}}, runs=runs))
            if not found:
                return Finding(stack=stack, name=name, specs=self._completed(stack, name, specs, runs))
            tried.append(Finding(stack=stack, name=name, specs=specs, problem=found))
        return next((finding for finding in tried if finding.problem.startswith(_NOT_ITS_GATE)), tried[0])

    def problem(self, entry: Architecture) -> str:
        """Why an entry is wrong; empty if gating units equals removing them in all its blocks."""
        try:
            blocks = read_blocks(self.twin, entry)
        except StructureError as error:
            return " ".join(line.strip() for line in str(error).splitlines()[1:-1]) or str(error)
        generator = torch.Generator().manual_seed(0)
        some, seen = {}, Counter[str]()
        for block in blocks:  # another number in neighbouring layers; a block that cannot shrink stays
            name = block.name.rpartition(".")[2]
            removed = max(1, block.units // 4) + seen[name] % 2
            count = max(block.least, block.units - removed)
            seen[name] += 1
            some[block.name] = torch.randperm(block.units, generator=generator)[:count].sort().values
        none = {block.name: torch.arange(0) for block in blocks if block.least == 0}
        return self._difference(blocks, some) or (self._difference(blocks, none) if none else "")

    def _completed(self, stack: str, name: str, specs: tuple[BlockSpec, ...], runs: str) -> tuple[BlockSpec, ...]:
        """A proven entry with the fields of the stock config, and with the place that reconstruction aims at."""

        def blocks_with(fields: Mapping[str, Quantity]) -> list[Block]:
            fielded = tuple(replace(spec, config_fields=fields) for spec in specs)
            return read_blocks(self.twin, Architecture(stacks={stack: {name: fielded}}, runs=runs))

        blocks = blocks_with({})
        config = dense_fields(self.twin.config)
        candidates: Sequence[Mapping[str, Quantity]] = [f for f in _HEAD_FIELDS if f.keys() <= config.keys()]
        if specs[0].kind == "ffn":
            sizes = [field for field, value in config.items() if type(value) is int and value == blocks[0].units]
            candidates = [{field: "features"} for field in sizes]
        fields = next((found for found in candidates if self._sayable(blocks_with(found))), {})
        place = self._residual_sum(blocks[0]) if len(specs) == 1 else None
        return tuple(replace(spec, config_fields=fields, residual_sum=place) for spec in specs)

    def _sayable(self, blocks: Sequence[Block]) -> bool:
        """Whether the stock config says another size of all blocks, and gives a model that computes what it should."""
        counts = [count for count in blocks[0].portable_units if count < blocks[0].units]
        if not counts or len({block.units for block in blocks}) > 1:
            return False
        kept = torch.arange(counts[len(counts) // 2])
        return not self._difference(blocks, {block.name: kept for block in blocks}, stock=True)

    def _residual_sum(self, block: Block) -> str | None:
        """`BlockSpec.residual_sum`: what reads the consumer's output in a sum, as it is."""
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
        output = outputs[0]
        for path, value in before.items():
            if path in after and value.numel() == output.numel() and value.shape == after[path].shape:
                off = self._distance((after[path] - value).reshape(output.shape), output)
                alone = self._distance(value.reshape(output.shape), output)
                if off <= _TOLERANCE * output.abs().max() < alone:
                    return path
        return None

    def _difference(self, blocks: Sequence[Block], kept: Mapping[str, Tensor], *, stock: bool = False) -> str:
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
            if stock and isinstance(small, PrunedModel):
                return "the stock config cannot say it"
            pruned = output_of(small, self.batch)
        except Exception as error:  # noqa: BLE001 (whatever a wrong proposal makes fail is what was found)
            return f"without some units it does not run ({type(error).__name__}: {error})"
        difference = self._distance(pruned, self._gated(blocks, gates))
        if not difference <= _TOLERANCE * min(effects.values()):
            return (
                f"{_NOT_ITS_GATE}: outputs differ by {difference:.2g}, where gating changes them by "
                f"{min(effects.values()):.2g}"
            )
        return ""

    def _gated(self, blocks: Sequence[Block], gates: Mapping[str, Tensor]) -> Tensor:
        with gated(self.twin, blocks, gates):
            return output_of(self.twin, self.batch)

    @staticmethod
    def _distance(a: Tensor, b: Tensor) -> float:
        return float((a - b).abs().max()) if a.shape == b.shape else float("inf")
