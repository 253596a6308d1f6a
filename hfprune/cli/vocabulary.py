"""The command `hfprune vocabulary`: a model and its tokenizer with the tokens of a corpus only."""

from pathlib import Path
from typing import Annotated

import typer
from transformers import AutoTokenizer

from hfprune.cli.options import (
    ModelName,
    PairColumn,
    TextColumn,
    errors_in_one_line,
    load_model,
    refuse_filled,
)
from hfprune.data.loading import load_texts
from hfprune.data.packages import resolve_model
from hfprune.measuring.size import checkpoint_bytes
from hfprune.publishing.checkpoint import save
from hfprune.publishing.provenance import public_name
from hfprune.publishing.report import command_line, comparison_table
from hfprune.structure.predictions import predicts_next_token
from hfprune.vocabulary import prune_vocabulary


def vocabulary(
    model: ModelName,
    output: Annotated[Path, typer.Argument(help="Folder to write.")],
    data: Annotated[
        str,
        typer.Option("--data", help="The texts: a txt, csv, json or parquet file, trec or the like, a Hub name."),
    ],
    min_count: Annotated[int, typer.Option(help="How often a token must occur in them to stay.")] = 1,
    keep: Annotated[
        list[str] | None, typer.Option(help="Token to keep, as the vocabulary spells it; several may be given.")
    ] = None,
    pad_to_multiple_of: Annotated[int | None, typer.Option(help="Keep more tokens, up to a multiple of this.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the output folder if it is there.")] = False,
    text_column: TextColumn = "text",
    pair_column: PairColumn = None,
) -> None:
    """Drop the tokens that never occur in your texts, from a model, dense or pruned, and its tokenizer.

    A txt file is one text a line; for a causal language model it is one text, line breaks and all.
    """
    with errors_in_one_line():
        refuse_filled(output, overwrite=overwrite)
        source = resolve_model(model)
        large = load_model(model)
        columns = [text_column]
        if pair_column:
            columns.append(pair_column)
        texts = load_texts(data, columns, documents=predicts_next_token(large))
        small, tokenizer = prune_vocabulary(
            large,
            AutoTokenizer.from_pretrained(source),
            texts,
            keep=keep or (),
            min_count=min_count,
            pad_to_multiple_of=pad_to_multiple_of,
        )
        record = small.pruning_record
        # the record of a model that was pruned before names data sets already, perhaps this one
        datasets = list(dict.fromkeys([*record.datasets, public_name(data)]))
        small.pruning_record = record.with_(command=command_line("hfprune"), datasets=datasets)
        folder = save(small, output, tokenizer=tokenizer, overwrite=overwrite)
        sizes = {"dense": _bytes_of(source), "pruned": checkpoint_bytes(folder)}
        typer.echo(comparison_table(small.pruning_record, sizes))
        typer.echo(f"saved in {folder}")


def _bytes_of(source: str) -> int:
    """Bytes of the weight files in a checkpoint folder; 0 for a repository, which has no folder here."""
    # the table leaves out a size of 0
    if not Path(source).is_dir():
        return 0
    return checkpoint_bytes(source)
