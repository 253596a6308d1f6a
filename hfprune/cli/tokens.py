"""The work of `hfprune vocabulary`."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from transformers import AutoTokenizer

from hfprune.data.loading import load_texts
from hfprune.data.packages import resolve_model
from hfprune.deployment.loading import load_model
from hfprune.measuring.size import checkpoint_bytes
from hfprune.publishing.checkpoint import save
from hfprune.publishing.provenance import public_name
from hfprune.publishing.report import command_line, comparison_table
from hfprune.structure.predictions import predicts_next_token
from hfprune.vocabulary import prune_vocabulary


def prune_and_save(
    model: str,
    output: Path,
    data: str,
    *,
    columns: Sequence[str],
    keep: Sequence[str],
    min_count: int,
    pad_to_multiple_of: int | None,
    separator: str | None,
    encoding: str | None,
    overwrite: bool,
) -> Iterator[str]:
    """Drop the tokens that do not occur in texts, and save what is left.

    Args:
        model: Folder or repository.
        output: The folder to write.
        data: The texts.
        columns: Their columns.
        keep: Tokens to keep in any case.
        min_count: How often a token must occur.
        pad_to_multiple_of: As for `prune_vocabulary`.
        separator: Of the columns of a csv file.
        encoding: Of the texts in a file.
        overwrite: Whether the folder may be replaced.

    Yields:
        What to print.
    """
    source = resolve_model(model)
    large = load_model(model)
    documents = predicts_next_token(large)
    texts = load_texts(data, columns, documents=documents, separator=separator, encoding=encoding)
    small, tokenizer = prune_vocabulary(
        large,
        AutoTokenizer.from_pretrained(source),
        texts,
        keep=keep,
        min_count=min_count,
        pad_to_multiple_of=pad_to_multiple_of,
    )
    record = small.pruning_record
    # the record of a model that was pruned before names data sets already, perhaps this one
    datasets = list(dict.fromkeys([*record.datasets, public_name(data)]))
    small.pruning_record = record.with_(command=command_line("hfprune"), datasets=datasets)
    folder = save(small, output, tokenizer=tokenizer, overwrite=overwrite)
    sizes = {"dense": _bytes_of(source), "pruned": checkpoint_bytes(folder)}
    yield comparison_table(small.pruning_record, sizes)
    yield f"saved in {folder}"


def _bytes_of(source: str) -> int:
    """Bytes of the weight files in a checkpoint folder; 0 for a repository, which has no folder here."""
    # the table leaves out a size of 0
    if not Path(source).is_dir():
        return 0
    return checkpoint_bytes(source)
