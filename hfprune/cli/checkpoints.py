"""Commands about checkpoints and plans: inspect, verify, diff, import and push."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from transformers import AutoTokenizer
from transformers.utils import cached_file

from hfprune.cli.options import ModelName, errors_in_one_line, load_model
from hfprune.data.packages import resolve_model
from hfprune.errors import CheckpointError
from hfprune.measuring.size import measure_size
from hfprune.planning.compare import compare, comparison
from hfprune.planning.plan import PruningPlan
from hfprune.publishing.checkpoint import save
from hfprune.publishing.hub import fetch
from hfprune.publishing.legacy import load_legacy
from hfprune.publishing.probe import PROBE_FILE
from hfprune.publishing.push import push_to_hub
from hfprune.publishing.verification import PLAN_FILE
from hfprune.publishing.verification import verify as verify_folder
from hfprune.structure.anatomy import anatomy_of

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
        loaded = load_model(model, revision=revision)
        anatomy = anatomy_of(loaded)
        blocks = anatomy.blocks
        size = measure_size(anatomy, sequence_length=sequence_length)
        plan: PruningPlan | None = getattr(loaded, "pruning_plan", None)
        dense = anatomy.dense_units
        support = anatomy.support
        if as_json:
            table = [
                {
                    "name": block.name,
                    "kind": block.kind,
                    "units": block.units,
                    "dense_units": dense[block.name],
                    "unit_params": block.unit_params,
                    "unit_macs": block.unit_macs(sequence_length),
                }
                for block in blocks
            ]
            digest = plan.digest if plan else None
            about = {
                "class": type(loaded).__name__,
                "support": support.by,
                "not_pruned": support.entry.note,
                "plan_digest": digest,
                "size": asdict(size),
                "blocks": table,
            }
            typer.echo(json.dumps(about, indent=1))
            return
        typer.echo(
            f"{type(loaded).__name__}: {size.params:,} parameters ({size.prunable_params:,} prunable), {size.macs:,} "
            f"MACs for {sequence_length} tokens ({size.prunable_macs:,} prunable), {size.weight_bytes:,} bytes"
        )
        typer.echo(f"supported by {support.by}" + (f"; {support.entry.note}" if support.entry.note else ""))
        if plan is not None:
            typer.echo(str(plan))
            return
        largest = max(block.units * block.unit_params for block in blocks)
        for block in blocks:
            unit = "neurons" if block.kind == "ffn" else "heads" if block.heads == 1 else "key/value groups"
            bar = "█" * round(20 * block.units * block.unit_params / largest)
            params = block.units * block.unit_params
            typer.echo(f"{block.name:<36} {block.units:>6} {unit:<16} {params:>12,} parameters  {bar}")


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
    if (folder / PROBE_FILE).is_file():
        typer.echo(f"{checkpoint}: every file is the one that was saved, and the model computes what its author saw")
    else:
        typer.echo(f"{checkpoint}: weights, config, plan and record agree; outputs were not saved to compare with")


def diff(a: PlanName, b: PlanName, as_json: AsJson = False) -> None:
    """Compare two plans block by block: how many units each keeps, and how many both keep."""
    with errors_in_one_line():
        first, second = _plan_of(a), _plan_of(b)
        if as_json:
            typer.echo(json.dumps(comparison(first, second), indent=1))
        else:
            typer.echo(compare(first, second))


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
        folder = fetch(source)
        model = load_legacy(folder, sequence_length=sequence_length, pickled=pickled)
        has_tokenizer = (folder / "tokenizer_config.json").is_file() or (folder / "tokenizer.json").is_file()
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False) if has_tokenizer else None
        typer.echo(f"saved in {save(model, output, tokenizer=tokenizer, overwrite=overwrite)}")
        typer.echo(str(model.pruning_plan))


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
    source = name if Path(name).exists() else resolve_model(name)
    found = (
        source
        if Path(source).is_file()
        else cached_file(source, PLAN_FILE, _raise_exceptions_for_missing_entries=False)
    )
    if found is None:
        raise CheckpointError(f"{name} has no {PLAN_FILE}: it was not pruned by hfprune.")
    return PruningPlan.from_json(Path(found).read_text(encoding="utf-8"))
