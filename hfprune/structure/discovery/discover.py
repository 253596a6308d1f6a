"""Entries for model types that the table lacks: proposed from the structure of a layer, and proven before they count.

The proof runs on a *twin*: a model of the same class and config with random weights and, where all layers are alike,
two of them. It depends on class and config only, so a pruned checkpoint needs to carry nothing: in a fresh process its
dense config gives the same twin, the same proposals and the same entry.
"""

import json
import logging
from dataclasses import dataclass, field

from transformers import PreTrainedModel

from hfprune.errors import UnsupportedArchitectureError
from hfprune.structure.architectures import register_finder
from hfprune.structure.devices import plain_tensors
from hfprune.structure.discovery.entry_text import Finding, entry_text
from hfprune.structure.discovery.proving import Prover, StackFindings
from hfprune.structure.discovery.twin import dense_fields, make_twin, stacks_of
from hfprune.structure.modeling_pruned import base_class, register_config
from hfprune.structure.specs import Architecture, BlockSpec
from hfprune.structure.surgery import pruned_class_for

logger = logging.getLogger(__name__)


#: The entries that this process has proven, by class and dense config: a proof takes seconds, a look-up nothing.
_PROVEN: dict[tuple[type, str], Architecture] = {}


@register_finder("proof")
def proven_entry(model: PreTrainedModel, model_type: str) -> Architecture:
    """The entry of a model whose type the table lacks: proposed, and proven once in a process for a class and config.

    Args:
        model: The model, dense or pruned.
        model_type: The type of its dense config.

    Returns:
        The entry.

    Raises:
        UnsupportedArchitectureError: No entry could be proven. The message lists what discovery found and holds the
            entry as far as it is known. Also raised where the model's class is neither one of transformers' nor
            registered with an Auto class.

    Examples:
        A model whose type is in the table serves as well. Its entry is found again without the table:

        >>> from hfprune.structure import proven_entry
        >>> entry = proven_entry(dense, "bert")
        >>> for path, layer in entry.stacks.items():
        ...     for name, specs in layer.items():
        ...         print(f"{path}.*, {name}: the consumer is {specs[0].consumer}")
        encoder.layer.*, attention: the consumer is attention.output.dense
        encoder.layer.*, ffn: the consumer is output.dense
    """
    fields = json.dumps(dense_fields(model.config), sort_keys=True, default=repr)
    key = (base_class(type(model)), fields)
    if key not in _PROVEN:
        # what is proven must not depend on the dtype and device that the user has set as default
        with plain_tensors():
            _PROVEN[key] = _discover(model, model_type)
        # the Auto classes learn of the types of the table when hfprune is imported, of a proven type only here
        register_config(model_type)
    return _PROVEN[key]


@dataclass(kw_only=True)
class _Report:
    """What discovery has found out about a model so far: the material of an entry, or of a refusal.

    Attributes:
        model: The model.
        model_type: The type of its dense config.
        findings: The blocks of every list of layers, proven or not.
        unclaimed: By path of a list of layers, the projections that are in no block.
        runs: `Architecture.runs`.
    """

    model: PreTrainedModel
    model_type: str
    findings: list[Finding] = field(default_factory=list)
    unclaimed: dict[str, list[str]] = field(default_factory=dict)
    runs: str = ""

    def add(self, path: str, stack: StackFindings) -> None:
        """Add the findings of one list of layers.

        Args:
            path: Path of the list.
            stack: Its findings.
        """
        self.findings += stack.findings
        self.unclaimed[path] = stack.unclaimed
        self.runs = self.runs or stack.runs

    def forget_lists_without_blocks(self) -> None:
        """Leave out the projections of lists without any block, unless no list has one.

        Such a list is no list of transformer layers (convolutions, heads), so its projections are not worth a note.
        """
        with_blocks = {finding.stack for finding in self.findings}
        if not with_blocks:
            return
        for path in list(self.unclaimed):
            if path not in with_blocks:
                del self.unclaimed[path]

    def entry(self) -> Architecture:
        """The entry of all proven blocks, with a note of the other ones and of the projections that are in none."""
        stacks: dict[str, dict[str, tuple[BlockSpec, ...]]] = {}
        not_proven: list[Finding] = []
        for finding in self.findings:
            if finding.problem:
                not_proven.append(finding)
            else:
                stacks.setdefault(finding.stack, {})[finding.name] = finding.specs
        unclaimed: set[str] = set()
        for names in self.unclaimed.values():
            unclaimed.update(names)
        notes = []
        if unclaimed:
            notes.append(f"not recognised, so not pruned: {', '.join(sorted(unclaimed))}")
        if not_proven:
            places = [f"{finding.name} of {finding.stack}" for finding in not_proven]
            notes.append(f"not proven, so not pruned: {', '.join(places)}")
        left_out = "\n".join(f"  {finding}" for finding in not_proven)
        return Architecture(stacks=stacks, runs=self.runs, note="; ".join(notes), left_out=left_out)

    def advice(self) -> str:
        """What to do about blocks that are not proven: the entry to write, as far as it is known."""
        return (
            "Write the entry: correct what failed, or leave it out to prune the rest (CONTRIBUTING.md, "
            '"Add an architecture"). As far as it is known:\n\n'
            f"{entry_text(self.model_type, self.findings, self.unclaimed)}"
        )

    def refusal(self, failure: str = "") -> UnsupportedArchitectureError:
        """The error for a model of which no block could be proven.

        Args:
            failure: What failed besides the findings; empty if the findings say all.

        Returns:
            The error; its message ends with the entry as far as it is known.
        """
        lines = [f"  {finding}" for finding in self.findings]
        if failure:
            lines.append(f"  {failure}")
        listed = "\n".join(lines)
        class_name = base_class(type(self.model)).__name__
        return UnsupportedArchitectureError(
            f"no architecture entry for model_type {self.model_type!r}, and none could be proven from the structure of "
            f"{class_name}:\n{listed}\n{self.advice()}"
        )


def _discover(model: PreTrainedModel, model_type: str) -> Architecture:
    """Propose the entry of a model and prove it.

    Args:
        model: The model, dense or pruned.
        model_type: The type of its dense config.

    Returns:
        The entry.

    Raises:
        UnsupportedArchitectureError: As for `support_of`.
    """
    # refuses, before anything is tried, a class that could not be loaded again once it is pruned
    pruned_class_for(model)
    report = _Report(model=model, model_type=model_type)
    try:
        twin, batch = make_twin(model)
        prover = Prover(twin, batch)
        for stack in stacks_of(twin.base_model):
            report.add(stack.path, prover.stack(stack))
    except Exception as error:
        # the code of an unknown model may raise anything
        reason = f"{type(error).__name__}: {error}"
        raise report.refusal(f"a random model of its config cannot be run: {reason}") from error
    report.forget_lists_without_blocks()
    if not report.findings:
        raise report.refusal(
            "no list of layers of one kind was found that holds the projections of attention or of a feed-forward"
        )
    if all(finding.problem for finding in report.findings):
        raise report.refusal()
    entry = report.entry()
    # every block was proven alone so far, and blocks may still depend on each other's sizes
    problem = prover.problem(entry)
    if problem:
        raise report.refusal(f"all blocks together: {problem}")
    _log(report, entry)
    return entry


def _log(report: _Report, entry: Architecture) -> None:
    """Say that the blocks were found by proof: a warning where parts of the model are left out."""
    level = logging.WARNING if entry.note else logging.INFO
    message = f"model_type {report.model_type!r} is not in the table; its blocks were found by proof. {entry.note}"
    if entry.left_out:
        message += f"\n{entry.left_out}\n{report.advice()}"
    logger.log(level, "%s", message)
