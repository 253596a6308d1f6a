"""Ten prunings of fixed seeds: the digest of each plan, and of the weights and files that it leaves; and all scores.

`python -m tests.support.fixed_results` prints them as JSON; `--write` keeps them in `tests/fixed_results.json`, which
`tests/test_fixed_results.py` compares with. They were written down before the code moved into rooms, and change only
when what the program computes is meant to change. Weights are compared to the last bit on one thread, so their digests
belong to one version of torch and one set of processor instructions, which the file names.
"""

import argparse
import hashlib
import json
import tempfile
from pathlib import Path

import torch
from transformers import PreTrainedModel

import hfprune
from hfprune import PruningConfig
from hfprune.scoring import known_scorers
from tests.support.tiny import DECODERS, tiny_batch, tiny_model

RESULTS = Path(__file__).parent.parent / "fixed_results.json"
CAUSAL = "AutoModelForCausalLM"

#: By name: the model type, its head, what `tiny_model` changes, and the fields of the config.
CASES = {
    "bert, the default": ("bert", "AutoModelForSequenceClassification", {}, {"sparsity": 0.6}),
    "bert, block by block": (
        "bert",
        "AutoModelForSequenceClassification",
        {},
        {"allocation": "layerwise", "scorer": "kl_fisher", "schedule": "one_shot"},
    ),
    "distilbert, whole blocks": (
        "distilbert",
        "AutoModelForSequenceClassification",
        {},
        {"sparsity": 0.8, "min_units": 0, "scorer": "residual_fisher", "budget": "params"},
    ),
    "gpt2, obs and thresholds": ("gpt2", CAUSAL, {}, {"scorer": "obs", "allocation": "threshold", "rounds": 2}),
    "llama, query heads": ("llama", CAUSAL, {}, {"attention_unit": "query", "sparsity": 0.4}),
    "llama, key/value cache": (
        "llama",
        CAUSAL,
        {},
        {"budget": "kv_cache", "scorer": "fluctuation", "allocation": "knapsack", "schedule": "one_shot"},
    ),
    "qwen2, stock widths": ("qwen2", CAUSAL, {}, {"portable": True, "scorer": "logit_fisher", "round_to": 4}),
    "t5, a hybrid": (
        "t5",
        "AutoModelForSeq2SeqLM",
        {},
        {
            "scorer": "hybrid(l2, apoz, rank)",
            "schedule": "cubic",
            "rounds": 2,
            "exclude": ["decoder.*.cross_attention"],
        },
    ),
    "albert, movement": (
        "albert",
        "AutoModelForSequenceClassification",
        {},
        {"scorer": "movement", "allocation": "uniform", "schedule": "one_shot"},
    ),
    "phi3, at random": ("phi3", CAUSAL, {}, {"allocation": "random", "scorer": "random", "seed": 5}),
}


def machine() -> str:
    """What the last bits of a result depend on."""
    return f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"


def batches_for(model_type: str) -> list[dict[str, torch.Tensor]]:
    """Four batches with labels."""
    batches = []
    for seed in range(4):
        batch = tiny_batch(model_type, samples=6, seed=seed)
        if model_type in (*DECODERS, "t5"):
            batch["labels"] = batch["input_ids"].clone()
            batch.pop("decoder_input_ids", None)
        else:
            batch["labels"] = torch.arange(6) % 2
        batches.append(batch)
    return batches


def pruned(case: str) -> PreTrainedModel:
    """The small model of a case."""
    model_type, head, changes, fields = CASES[case]
    model = tiny_model(model_type, head, **changes)
    return hfprune.prune(model, batches_for(model_type), PruningConfig(sequence_length=8, **fields))


def result_of(model: PreTrainedModel) -> dict[str, str]:
    """Digests of the plan and the weights of a pruned model, and of what `save_pretrained` says of them."""
    weights = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        weights.update(name.encode())
        weights.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
        plan = Path(folder, "pruning_plan.json")
        plan_file = plan.read_bytes() if plan.is_file() else model.pruning_plan.to_json().encode()
    record = json.loads(model.pruning_record.to_json())
    kept = {name: value for name, value in record.items() if name not in ("versions", "digest", "rounds")}
    kept["rounds"] = [
        {name: value for name, value in entry.items() if not name.endswith("seconds")} for entry in record["rounds"]
    ]
    # wall-clock time, which differs from run to run
    kept["seconds"] = 0.0
    return {
        "plan": model.pruning_plan.digest,
        "plan_file": hashlib.sha256(plan_file).hexdigest(),
        "config": _digest(config),
        "record": _digest(kept),
        "weights": weights.hexdigest(),
    }


def scores_of() -> dict[str, str]:
    """Digests of the scores of every registered scorer, on a BERT whose feed-forwards are wide enough for sums."""
    model = tiny_model("bert", intermediate_size=600)
    digests = {}
    for name in sorted(known_scorers()):
        scores = hfprune.score(model, batches_for("bert"), scorer=name)
        digest = hashlib.sha256()
        for block, values in sorted(scores.items()):
            digest.update(block.encode() + values.numpy().tobytes())
        digests[name] = digest.hexdigest()
    return digests


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def main() -> None:
    """Print the results, or write them down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"keep the results in {RESULTS.name}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = {case: result_of(pruned(case)) for case in CASES}
    kept = {"machine": machine(), "results": results, "scores": scores_of()}
    text = json.dumps(kept, indent=1) + "\n"
    print(text)
    if arguments.write:
        RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
