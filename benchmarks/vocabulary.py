"""What vocabulary pruning saves on MiniLM-L6 and TREC, and what it changes: `python benchmarks/vocabulary.py`.

The corpus is all questions, or the training split only, so that the test questions hold words that it has not.
"""

import argparse
from pathlib import Path

import torch
from common import dense_task
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import hfprune
from hfprune.data.classification import load_text_dataset
from hfprune.data.loading import load_texts
from hfprune.data.packages import resolve_model
from hfprune.measuring.size import measure_size


def logits_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> torch.Tensor:
    """`(texts, classes)`; batches of 64."""
    found = []
    with torch.no_grad():
        for start in range(0, len(texts), 64):
            batch = tokenizer(texts[start : start + 64], truncation=True, padding=True, return_tensors="pt")
            found.append(model(**batch).logits)
    return torch.cat(found)


def main() -> None:
    """Print a line for the dense model and for each corpus."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dense", type=Path, default=Path("runs/dense"), help="Where dense models are kept.")
    dense = dense_task("trec", parser.parse_args().dense).model
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("minilm-l6"))
    data = load_text_dataset("trec")
    test, labels = list(data["test"]["text"]), torch.tensor(data["test"]["label"])
    expected = logits_of(dense, tokenizer, test)
    corpora = {
        "all questions": load_texts("trec"),
        "training questions": [*data["train"]["text"], *data["validation"]["text"]],
    }
    print(f"{'corpus':<20} {'tokens':>8} {'parameters':>12} {'bytes':>12} {'accuracy':>9}  logits differ by")
    for name, corpus in {"(dense)": None, **corpora}.items():
        small, new = (dense, tokenizer) if corpus is None else hfprune.prune_vocabulary(dense, tokenizer, corpus)
        size, found = measure_size(small, sequence_length=128), logits_of(small, new, test)
        accuracy = (found.argmax(-1) == labels).float().mean()
        changed = int((found != expected).any(-1).sum())
        print(
            f"{name:<20} {small.config.vocab_size:>8,} {size.params:>12,} {size.weight_bytes:>12,} {accuracy:>8.2%}  "
            f"{(found - expected).abs().max():.2g}, of {changed} of {len(test)} questions"
        )


if __name__ == "__main__":
    main()
