"""An architecture entry as Python, to be pasted, corrected and run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from hfprune.structure.specs import BlockSpec


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What discovery found of the blocks of one name in one list of layers.

    Attributes:
        stack: Path of the list.
        name: Of the block.
        specs: Its entry, proven or likely; empty if something is missing.
        problem: Why it was not proven; empty if it was.
    """

    stack: str
    name: str
    specs: tuple[BlockSpec, ...]
    problem: str = ""

    def __str__(self) -> str:
        """One line."""
        where = " or ".join(f"{', '.join(spec.producers)} -> {spec.consumer}" for spec in self.specs)
        return f"{self.stack}: {self.name}{f' ({where})' if where else ''}: {self.problem or 'proven'}"


def entry_text(model_type: str, findings: Sequence[Finding], unclaimed: Mapping[str, Sequence[str]]) -> str:
    """The call that teaches hfprune a model type, as far as it is known.

    Args:
        model_type: The model type.
        findings: What was found; what is not proven is put behind `#`.
        unclaimed: By path of a list of layers, the projections that no block has, with their sizes.

    Returns:
        Python that runs as it stands if anything was proven.
    """
    stacks = dict.fromkeys([*unclaimed, *(finding.stack for finding in findings)]) or {"path.of.the.list.of.layers": 0}
    lines = [
        "from hfprune.structure import Architecture, BlockSpec, register_architecture",
        "",
        f'register_architecture("{model_type}", Architecture(stacks={{',
    ]
    for stack in stacks:
        lines.append(f'    "{stack}": {{')
        for finding in findings:
            if finding.stack == stack:
                mark = "# " if finding.problem else ""
                lines += [f"        {mark}{line}" for line in _block(finding)]
        if not findings:
            lines.append(
                '        # "attention": BlockSpec(producers=("...", "...", "..."), consumer="...", head_dim="..."),'
            )
            lines.append('        # "ffn": BlockSpec(producers=("...",), consumer="..."),')
        lines += [f"        # not in a block: {projection}" for projection in unclaimed.get(stack, ())]
        lines.append("    },")
    return "\n".join([*lines, "}))"])


def _block(finding: Finding) -> list[str]:
    specs = finding.specs or (BlockSpec(producers=("...",), consumer="...", head_dim="..."),)
    if len(specs) == 1:
        return [f'"{finding.name}": {_spec(specs[0])},']
    return [f'"{finding.name}": (', *(f"    {_spec(spec)}," for spec in specs), "),"]


def _spec(spec: BlockSpec) -> str:
    blank = BlockSpec(producers=(), consumer="")
    said = [f for f in fields(spec) if getattr(spec, f.name) != getattr(blank, f.name)]
    return f"BlockSpec({', '.join(f'{f.name}={getattr(spec, f.name)!r}' for f in said)})"
