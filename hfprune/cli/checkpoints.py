"""Commands about checkpoints and plans: inspect, verify, report, diff, import and push."""

import json
from pathlib import Path
from typing import Annotated

import typer

from hfprune.cli.options import ModelName, Output, Overwrite, Revision, errors_in_one_line

AsJson = Annotated[bool, typer.Option("--json", help="For machines.")]
PlanName = Annotated[str, typer.Argument(help="A plan file, a checkpoint folder, or a Hub name.")]


def inspect(
    model: ModelName,
    sequence_length: Annotated[int, typer.Option(help="Tokens in a sequence, for the multiply-adds.")] = 128,
    as_json: AsJson = False,
    revision: Revision = None,
) -> None:
    """Show the blocks of a model, what they cost, and what was pruned."""
    with errors_in_one_line():
        from hfprune.cli.reports import inspected
        from hfprune.structure.arguments import whole

        # before the model is loaded
        whole(least=1).check("--sequence-length", sequence_length)

        typer.echo(inspected(model, sequence_length=sequence_length, as_json=as_json, revision=revision))


def verify(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint folder, or a Hub name.")],
    revision: Revision = None,
) -> None:
    """Check every file of a checkpoint and what it computes; exit code 1 and the reasons if anything is wrong."""
    with errors_in_one_line():
        from hfprune.publishing.hub import fetch
        from hfprune.publishing.verification import verify as verify_folder
        from hfprune.publishing.verification import what_was_checked

        folder = fetch(checkpoint, revision=revision)
        problems = verify_folder(folder)
    for problem in problems:
        typer.echo(f"{checkpoint}: {problem}", err=True)
    if problems:
        raise typer.Exit(1)
    typer.echo(f"{checkpoint}: {what_was_checked(folder)}")


def report(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder.")],
    output: Annotated[Path, typer.Option(help="The HTML file.")] = Path("report.html"),
    sweep: Annotated[Path | None, typer.Option(help="A file that hfprune sweep wrote, for its curve.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write one page of HTML about a checkpoint: its plan, its costs, its latency and how it was made."""
    with errors_in_one_line():
        from hfprune.reporting import write_report

        if output.exists() and not overwrite:
            raise FileExistsError(f"{output} exists already: choose another --output, or add --overwrite.")
        typer.echo(f"written to {write_report(checkpoint, output, sweep=sweep)}")


def diff(a: PlanName, b: PlanName, as_json: AsJson = False) -> None:
    """Compare two plans block by block: how many units each keeps, and how many both keep."""
    with errors_in_one_line():
        from hfprune.cli.reports import plan_of

        first = plan_of(a)
        compared = first.compare(plan_of(b))
        if as_json:
            typer.echo(json.dumps(compared.to_dict(), indent=1))
        else:
            typer.echo(str(compared))


def import_(
    source: Annotated[
        str, typer.Argument(help="A checkpoint of transformers 4 with pruned_heads: folder or Hub name.")
    ],
    output: Output,
    sequence_length: Annotated[int, typer.Option(help="Tokens in a sequence, for the plan's multiply-adds.")] = 128,
    overwrite: Overwrite = False,
    pickled: Annotated[
        bool, typer.Option(help="Read pytorch_model.bin of a folder, tensors only, as TextPruner writes it.")
    ] = False,
) -> None:
    """Save a model that transformers 4 or TextPruner pruned so that transformers 5 loads it."""
    with errors_in_one_line():
        from hfprune.deployment.loading import tokenizer_of
        from hfprune.publishing.checkpoint import save
        from hfprune.publishing.hub import fetch
        from hfprune.publishing.legacy import load_legacy
        from hfprune.structure.arguments import whole

        whole(least=1).check("--sequence-length", sequence_length)
        # a model of transformers 4 may lie beside files of any kind
        folder = fetch(source, only_ours=False)
        model = load_legacy(folder, sequence_length=sequence_length, pickled=pickled)
        written = save(model, output, tokenizer=tokenizer_of(folder), overwrite=overwrite)
        typer.echo(f"saved in {written}")
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
        from hfprune.publishing.push import push_to_hub

        commit = push_to_hub(
            folder, repo, private=private, revision=revision, create_pr=create_pr, commit_message=message
        )
        if commit is not None:
            typer.echo(f"pushed to {commit.pr_url or commit.commit_url}")
