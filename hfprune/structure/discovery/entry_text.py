"""An architecture entry as Python, to be pasted, corrected and run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from textwrap import indent

from hfprune.structure.specs import BlockSpec

#: Stands for the path of a list of layers where none was found.
_UNKNOWN_STACK = "path.of.the.list.of.layers"
#: Stands for a block of which nothing is known but that its units are heads.
_UNKNOWN_SPEC = BlockSpec(producers=("...",), consumer="...", head_dim="...")
#: What a layer of most models holds, to be filled in where nothing was found.
_TEMPLATE = """\
# "attention": BlockSpec(producers=("...", "...", "..."), consumer="...", head_dim="..."),
# "ffn": BlockSpec(producers=("...",), consumer="..."),"""
#: Stands before every line about a list of layers.
_INDENT = "        "


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What discovery found of the blocks of one name in one list of layers.

    Attributes:
        stack: Path of the list.
        name: Name of the block in its layer.
        specs: Its entry, proven or likely; empty if something is missing.
        problem: Why it was not proven; empty if it was.

    Examples:
        >>> spec = BlockSpec(producers=("up",), consumer="down")
        >>> print(Finding(stack="layers", name="ffn", specs=(spec,)))
        layers: ffn (up -> down): proven
    """

    stack: str
    name: str
    specs: tuple[BlockSpec, ...]
    problem: str = ""

    def __str__(self) -> str:
        """One line: the list, the block, its projections and the verdict."""
        places = []
        for spec in self.specs:
            places.append(f"{', '.join(spec.producers)} -> {spec.consumer}")
        block = self.name
        if places:
            block = f"{self.name} ({' or '.join(places)})"
        return f"{self.stack}: {block}: {self.problem or 'proven'}"


def entry_text(model_type: str, findings: Sequence[Finding], unclaimed: Mapping[str, Sequence[str]]) -> str:
    """The call that teaches hfprune a model type, as far as the model is known.

    Args:
        model_type: The model type.
        findings: The blocks; those not proven are commented out.
        unclaimed: By path of a list of layers, the projections that are in no block. They stand as comments.

    Returns:
        Python that runs as it stands if anything was proven.

    Examples:
        >>> spec = BlockSpec(producers=("up",), consumer="down")
        >>> print(entry_text("mine", [Finding(stack="layers", name="ffn", specs=(spec,))], {"layers": ["router"]}))
        from hfprune.structure import Architecture, BlockSpec, register_architecture
        <BLANKLINE>
        register_architecture("mine", Architecture(stacks={
            "layers": {
                "ffn": BlockSpec(producers=('up',), consumer='down'),
                # not in a block: router
            },
        }))
    """
    # a dict, as a set would lose the order
    stacks = dict.fromkeys(unclaimed)
    for finding in findings:
        stacks.setdefault(finding.stack)
    lines = [
        "from hfprune.structure import Architecture, BlockSpec, register_architecture",
        "",
        f'register_architecture("{model_type}", Architecture(stacks={{',
    ]
    for stack in stacks or [_UNKNOWN_STACK]:
        lines.append(f'    "{stack}": {{')
        for finding in findings:
            if finding.stack == stack:
                lines.append(indent(_block_text(finding), _INDENT))
        if not findings:
            lines.append(indent(_TEMPLATE, _INDENT))
        for projection in unclaimed.get(stack, ()):
            lines.append(f"{_INDENT}# not in a block: {projection}")
        lines.append("    },")
    lines.append("}))")
    return "\n".join(lines)


def _block_text(finding: Finding) -> str:
    """One block of a layer as Python, commented out if it is not proven."""
    specs = finding.specs or (_UNKNOWN_SPEC,)
    if len(specs) == 1:
        text = f'"{finding.name}": {_spec_text(specs[0])},'
    else:
        lines = [f'"{finding.name}": (']
        for spec in specs:
            lines.append(f"    {_spec_text(spec)},")
        lines.append("),")
        text = "\n".join(lines)
    return indent(text, "# ") if finding.problem else text


def _spec_text(spec: BlockSpec) -> str:
    """A spec as Python, without the fields that are at their defaults."""
    # projections have no default, but neither do they ever equal these empty ones
    defaults = BlockSpec(producers=(), consumer="")
    arguments = []
    for field in fields(spec):
        value = getattr(spec, field.name)
        if value != getattr(defaults, field.name):
            arguments.append(f"{field.name}={value!r}")
    return f"BlockSpec({', '.join(arguments)})"
