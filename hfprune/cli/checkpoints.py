"""Commands about checkpoints and plans: inspect, verify, diff, import and push."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import cached_file

from hfprune.cli.options import ModelName, errors_in_one_line, load_model
from hfprune.data.packages import resolve_model
from hfprune.errors import CheckpointError
from hfprune.measuring.size import Size, measure_size
from hfprune.planning.plan import PruningPlan
from hfprune.publishing.checkpoint import save
from hfprune.publishing.contents import PLAN_FILE
from hfprune.publishing.hub import fetch
from hfprune.publishing.legacy import load_legacy
from hfprune.publishing.push import push_to_hub
from hfprune.publishing.verification import verify as verify_folder
from hfprune.publishing.verification import what_was_checked
from hfprune.structure.anatomy import Anatomy, anatomy_of
from hfprune.structure.arguments import whole
from hfprune.structure.blocks import Block

AsJson = Annotated[bool, typer.Option("--json", help="For machines.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a repository.")]
PlanName = Annotated[str, typer.Argument(help="A plan file, a checkpoint folder, or a Hub name.")]


def inspect(
    model: ModelName,
    sequence_length: Annotated[int, typer.Option(help="Tokens in a sequence, for the multiply-adds.")] = 128,
    as_json: AsJson = False,
    revision: Revision = None,
) -> None:
    """Show the blocks of a model, what they cost, and what was pruned."""
    with errors_in_one_line():
        # before the model is loaded
        whole(least=1).check("--sequence-length", sequence_length)
        anatomy = anatomy_of(load_model(model, revision=revision))
        size = measure_size(anatomy, sequence_length=sequence_length)
        if as_json:
            typer.echo(json.dumps(_description(anatomy, size), indent=1))
        else:
            typer.echo("\n".join(_report(anatomy, size)))


def _description(anatomy: Anatomy, size: Size) -> dict[str, Any]:
    """The report of `inspect` for machines, as plain values."""
    plan = _attached_plan(anatomy)
    table = []
    for block in anatomy.blocks:
        table.append(
            {
                "name": block.name,
                "kind": block.kind,
                "units": block.units,
                "dense_units": anatomy.dense_units[block.name],
                "unit_params": block.unit_params,
                "unit_macs": block.unit_macs(size.sequence_length),
            }
        )
    return {
        "class": type(anatomy.model).__name__,
        "support": anatomy.support.by,
        "not_pruned": anatomy.support.entry.note,
        "plan_digest": plan.digest if plan else None,
        "size": asdict(size),
        "blocks": table,
    }


def _report(anatomy: Anatomy, size: Size) -> list[str]:
    """The lines that `inspect` prints: totals, then the plan of a pruned model or the blocks of a dense one."""
    lines = [
        f"{type(anatomy.model).__name__}: {size.params:,} parameters ({size.prunable_params:,} prunable), "
        f"{size.macs:,} MACs for {size.sequence_length} tokens ({size.prunable_macs:,} prunable), "
        f"{size.weight_bytes:,} bytes"
    ]
    support = f"supported by {anatomy.support.by}"
    note = anatomy.support.entry.note
    lines.append(f"{support}; {note}" if note else support)
    plan = _attached_plan(anatomy)
    # the text of a plan lists all blocks, with the units that each has and had
    if plan is not None:
        return [*lines, str(plan)]
    largest = max(block.units * block.unit_params for block in anatomy.blocks)
    for block in anatomy.blocks:
        params = block.units * block.unit_params
        bar = "█" * round(20 * params / largest)
        lines.append(f"{block.name:<36} {block.units:>6} {unit_word(block):<16} {params:>12,} parameters  {bar}")
    return lines


def unit_word(block: Block) -> str:
    """The name of the units of a block in the report, in the plural.

    Args:
        block: The block.

    Returns:
        `neurons`, `heads`, or `key/value groups` where several query heads share a key/value head.
    """
    if block.kind == "ffn":
        return "neurons"
    if block.heads == 1:
        return "heads"
    return "key/value groups"


def _attached_plan(anatomy: Anatomy) -> PruningPlan | None:
    """The plan that a pruned model carries."""
    plan: PruningPlan | None = getattr(anatomy.model, "pruning_plan", None)
    return plan


def verify(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint folder, or a Hub name.")],
    revision: Revision = None,
) -> None:
    """Check every file of a checkpoint and what it computes; exit code 1 and the reasons if anything is wrong."""
    with errors_in_one_line():
        folder = fetch(checkpoint, revision=revision)
        problems = verify_folder(folder)
    for problem in problems:
        typer.echo(f"{checkpoint}: {problem}", err=True)
    if problems:
        raise typer.Exit(1)
    typer.echo(f"{checkpoint}: {what_was_checked(folder)}")


def diff(a: PlanName, b: PlanName, as_json: AsJson = False) -> None:
    """Compare two plans block by block: how many units each keeps, and how many both keep."""
    with errors_in_one_line():
        first = _plan_of(a)
        compared = first.compare(_plan_of(b))
        if as_json:
            typer.echo(json.dumps(compared.to_dict(), indent=1))
        else:
            typer.echo(str(compared))


def import_(
    source: Annotated[
        str, typer.Argument(help="A checkpoint of transformers 4 with pruned_heads: folder or Hub name.")
    ],
    output: Annotated[Path, typer.Argument(help="Folder to write.")],
    sequence_length: Annotated[int, typer.Option(help="Tokens in a sequence, for the plan's multiply-adds.")] = 128,
    overwrite: Annotated[bool, typer.Option(help="Replace the output folder if it is there.")] = False,
    pickled: Annotated[
        bool, typer.Option(help="Read pytorch_model.bin of a folder, tensors only, as TextPruner writes it.")
    ] = False,
) -> None:
    """Save a model that transformers 4 or TextPruner pruned so that transformers 5 loads it."""
    with errors_in_one_line():
        whole(least=1).check("--sequence-length", sequence_length)
        # a model of transformers 4 may lie beside files of any kind
        folder = fetch(source, only_ours=False)
        model = load_legacy(folder, sequence_length=sequence_length, pickled=pickled)
        written = save(model, output, tokenizer=_tokenizer_of(folder), overwrite=overwrite)
        typer.echo(f"saved in {written}")
        typer.echo(str(model.pruning_plan))


def _tokenizer_of(folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer in a folder, if there is one."""
    # many checkpoints of transformers 4 come without a tokenizer, and the new one then has none either
    if not any((folder / name).is_file() for name in ("tokenizer_config.json", "tokenizer.json")):
        return None
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def push(
    folder: Annotated[Path, typer.Argument(help="A checkpoint folder.")],
    repo: Annotated[str, typer.Argument(help="The repository, with or without its owner.")],
    private: Annotated[bool | None, typer.Option(help="Whether a new repository is private.")] = None,
    revision: Annotated[str | None, typer.Option(help="A branch, by default the main one.")] = None,
    create_pr: Annotated[bool, typer.Option(help="Open a pull request.")] = False,
    message: Annotated[str, typer.Option(help="The commit's message.")] = "Pruned with hfprune",
) -> None:
    """Push a checkpoint folder to the Hub in one commit, with the token that `hf auth login` stored."""
    with errors_in_one_line():
        commit = push_to_hub(
            folder, repo, private=private, revision=revision, create_pr=create_pr, commit_message=message
        )
        if commit is not None:
            typer.echo(f"pushed to {commit.pr_url or commit.commit_url}")


def _plan_of(name: str) -> PruningPlan:
    """The plan in a file, a folder or a repository."""
    return PruningPlan.from_json(_plan_file(name).read_text(encoding="utf-8"))


def _plan_file(name: str) -> Path:
    """The file of a plan: the file itself, or the one in a folder or repository."""
    # a path counts before a name, so that a folder here is not looked up as a repository
    source = name if Path(name).exists() else resolve_model(name)
    if Path(source).is_file():
        return Path(source)
    # None in place of an error, as ours also says why the file is missing
    plan_file = cached_file(source, PLAN_FILE, _raise_exceptions_for_missing_entries=False)
    if plan_file is None:
        raise CheckpointError(f"{name} has no {PLAN_FILE}: it was not pruned by hfprune.")
    return Path(plan_file)
