"""The models, the tokenizer and the data of the examples in this reference.

Both models are tiny and have random weights. They are made in milliseconds and need no download.
"""

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from hfprune import PruningConfig

torch.manual_seed(0)

# 18 sentences of three classes, and a tokenizer that knows their words
texts, labels = [], []
for label, animal in enumerate(["cat", "dog", "bird"]):
    for action in ["sees", "hears", "follows"]:
        texts += [f"the {animal} {action} a mouse", f"a {animal} {action} the old man"]
        labels += [label, label]

words = ["[PAD]", "[UNK]", "[BOS]", "[MASK]", *sorted(set(" ".join(texts).split()))]
vocabulary = {word: number for number, word in enumerate(words)}
spelling = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
spelling.pre_tokenizer = pre_tokenizers.Whitespace()
roles = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[BOS]", "mask_token": "[MASK]"}
tokenizer = PreTrainedTokenizerFast(tokenizer_object=spelling, model_max_length=32, **roles)

dataset = Dataset.from_dict({**tokenizer(texts), "labels": labels})
collator = DataCollatorWithPadding(tokenizer)
batches = [dict(collator(dataset.select(range(start, start + 6)).to_list())) for start in (0, 6, 12)]

# two layers, each of 4 heads and 32 neurons
sizes = {
    "vocab_size": len(words),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": None,
}
dense = BertForSequenceClassification(BertConfig(**sizes, num_labels=3)).eval()

# the same, as a causal language model; two query heads share a key/value head
decoder = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2)).eval()

config = PruningConfig(sparsity=0.5, sequence_length=8, calibration_samples=18)
