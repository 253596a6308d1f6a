"""The command `hfprune vocabulary`: a model and its tokenizer with the tokens of a corpus only."""

from typing import Annotated

import typer

from hfprune.cli.options import (
    Encoding,
    ModelName,
    Output,
    Overwrite,
    PairColumn,
    Separator,
    errors_in_one_line,
    refuse_filled,
)


def vocabulary(
    model: ModelName,
    output: Output,
    data: Annotated[
        str,
        typer.Option("--data", help="The texts: a txt, csv, json or parquet file, trec or the like, a Hub name."),
    ],
    min_count: Annotated[int, typer.Option(help="How often a token must occur in them to stay.")] = 1,
    keep: Annotated[
        list[str] | None, typer.Option(help="Token to keep, as the vocabulary spells it; several may be given.")
    ] = None,
    pad_to_multiple_of: Annotated[int | None, typer.Option(help="Keep more tokens, up to a multiple of this.")] = None,
    overwrite: Overwrite = False,
    text_column: Annotated[str, typer.Option(help="Column with the text.")] = "text",
    pair_column: PairColumn = None,
    separator: Separator = None,
    encoding: Encoding = None,
) -> None:
    """Drop the tokens that never occur in your texts, from a model, dense or pruned, and its tokenizer.

    A txt file is one text a line; for a causal language model it is one text, line breaks and all.
    """
    with errors_in_one_line():
        from hfprune.cli.tokens import prune_and_save

        refuse_filled(output, overwrite=overwrite)
        columns = [text_column]
        if pair_column:
            columns.append(pair_column)
        lines = prune_and_save(
            model,
            output,
            data,
            columns=columns,
            keep=keep or [],
            min_count=min_count,
            pad_to_multiple_of=pad_to_multiple_of,
            separator=separator,
            encoding=encoding,
            overwrite=overwrite,
        )
        for line in lines:
            typer.echo(line)
