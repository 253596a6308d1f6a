"""How long vocabulary pruning takes, and how that grows: `python benchmarks/vocabulary_time.py`.

A tokenizer of up to 262,144 tokens (as many as Gemma's), with the merges of byte-pair encoding made up at random, and
texts of up to 3 million characters that are spelled with its tokens; a tiny Llama has the embeddings. Seconds are those
of one core, without the time in which the tokenizer and the texts are made. The last line is the largest case, which
must not take more than 30 s.

    python benchmarks/vocabulary_time.py --out docs/results/vocabulary_time.json
"""

import argparse
import json
import os
import random
import time
from functools import cache
from pathlib import Path

# one core: also the tokenizer's threads
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import hfprune

LARGEST = 262_144
CHARACTERS = 3_000_000
MOST_SECONDS = 30
#: Tokens of the vocabulary, and characters of the texts.
CASES = (
    (LARGEST // 8, CHARACTERS),
    (LARGEST // 4, CHARACTERS),
    (LARGEST // 2, CHARACTERS),
    (LARGEST, CHARACTERS // 4),
    (LARGEST, CHARACTERS // 2),
    (LARGEST, CHARACTERS),
)
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_LONGEST = 10


@cache
def made_up_tokenizer(size: int, seed: int = 0) -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer of `size` tokens, each but the first ones merged from two earlier ones."""
    draw = random.Random(seed)
    tokens = ["<unk>", "<s>", "</s>", "▁", *_LETTERS]
    known = set(tokens)
    merges = []
    while len(tokens) < size:
        # one of the first tokens beside any, so that tokens of all lengths come about
        left = tokens[draw.randrange(3, len(tokens))]
        right = tokens[draw.randrange(4, min(len(tokens), 2000))]
        merged = left + right
        if len(merged) <= _LONGEST and merged not in known:
            known.add(merged)
            tokens.append(merged)
            merges.append((left, right))
    numbers = {token: number for number, token in enumerate(tokens)}
    spelling = Tokenizer(models.BPE(numbers, merges, unk_token="<unk>"))
    spelling.pre_tokenizer = pre_tokenizers.Metaspace()
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=spelling, **names)


def made_up_texts(tokenizer: PreTrainedTokenizerFast, characters: int, seed: int = 0) -> list[str]:
    """Texts of 200 words, which are tokens of the vocabulary, frequent ones first as in a language."""
    draw = random.Random(seed)
    words = [token.removeprefix("▁") for token in tokenizer.convert_ids_to_tokens(range(4, len(tokenizer)))]
    texts = []
    made = 0
    while made < characters:
        # the logarithm of a word's rank is even: Zipf's law
        chosen = [words[int(len(words) ** draw.random()) - 1] for _ in range(200)]
        texts.append(" ".join(chosen)[: characters - made])
        made += len(texts[-1])
    return texts


def measured(size: int, characters: int) -> dict[str, int | float]:
    """A row: the sizes, how many tokens stay, and seconds."""
    tokenizer = made_up_tokenizer(size)
    texts = made_up_texts(tokenizer, characters)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=size, bos_token_id=1, eos_token_id=2, **sizes))
    # of this process: other programs on the machine do not count
    began = time.process_time()
    small, _ = hfprune.prune_vocabulary(model, tokenizer, texts)
    seconds = time.process_time() - began
    kept = small.get_input_embeddings().num_embeddings
    return {"vocabulary": size, "characters": characters, "kept": kept, "seconds": round(seconds, 1)}


def main() -> None:
    """Print a line for each case, and write all of them where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a JSON file for the rows")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    print(f"{'vocabulary':>10} {'characters':>11} {'kept':>8} {'seconds':>8}")
    for size, characters in CASES:
        row = measured(size, characters)
        rows.append(row)
        print(f"{size:>10,} {characters:>11,} {row['kept']:>8,} {row['seconds']:>8.1f}", flush=True)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if rows[-1]["seconds"] > MOST_SECONDS:
        raise SystemExit(f"{rows[-1]['seconds']} s is more than {MOST_SECONDS} s.")


if __name__ == "__main__":
    main()
