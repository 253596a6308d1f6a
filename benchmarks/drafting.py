"""Assisted generation: SmolLM2-135M alone, and with a pruned model of its own as the draft.

    python benchmarks/drafting.py --draft runs/smollm2/model [--prompts 20] [--new-tokens 64] [--ahead 2 4]

The draft is a checkpoint that hfprune wrote from SmolLM2 (as scripts/run_language_modeling.py leaves). Prompts
are 32 tokens of State of the Union addresses of 2016 to 2021, one at a time; greedy, so that assisted generation writes
what the dense model writes alone (checked for every prompt). Alone and assisted take turns. Printed are the tokens of a
second, the ratio, and how many tokens a pass of the dense model gave. CPU, float32, 2 threads.
Writes runs/drafting.json.
"""

import argparse
import time
from pathlib import Path

import torch
from common import write
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

import hfprune
from hfprune.data.corpus import load_documents, pack
from hfprune.data.packages import resolve_model


def generated(model: PreTrainedModel, prompt: Tensor, new: int, draft: PreTrainedModel | None) -> tuple[Tensor, float]:
    """What a model writes after a prompt, `(1, new)`, and the seconds that took."""
    began = time.perf_counter()
    with torch.no_grad():
        ids = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            assistant_model=draft,
        )
    return ids[:, prompt.shape[1] :], time.perf_counter() - began


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draft", required=True, help="a folder with the pruned model")
    parser.add_argument("--model", default="smollm2-135m", help="the dense model that it was cut from")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--ahead", nargs="+", type=int, default=[2, 4], help="tokens that the draft writes at a time")
    parser.add_argument("--output", type=Path, default=Path("runs/drafting.json"))
    args = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(2)
    folder = resolve_model(args.model)
    dense, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    draft = hfprune.load(args.draft).eval()
    windows = pack(load_documents("state_of_the_union"), tokenizer, max_length=32, whole=True)["test"]
    prompts = torch.tensor(windows.shuffle(seed=0).select(range(args.prompts))["input_ids"][:])
    passes = [0]
    dense.register_forward_hook(lambda *_: passes.__setitem__(0, passes[0] + 1))
    rows = []
    for ahead in args.ahead:
        draft.generation_config.update(num_assistant_tokens=ahead, num_assistant_tokens_schedule="constant")
        draft.generation_config.assistant_confidence_threshold = 0.0
        generated(dense, prompts[:1], 8, draft)  # warm up
        alone = assisted = 0.0
        count = 0
        for prompt in prompts.split(1):
            expected, seconds = generated(dense, prompt, args.new_tokens, None)
            alone += seconds
            passes[0] = 0
            found, seconds = generated(dense, prompt, args.new_tokens, draft)
            assisted += seconds
            count += passes[0]
            if not torch.equal(expected, found):
                raise SystemExit("assisted generation wrote other tokens than the dense model alone")
        tokens = args.new_tokens * len(prompts)
        rows.append(
            {
                "draft": args.draft,
                "ahead": ahead,
                "alone_tokens_per_second": round(tokens / alone, 2),
                "assisted_tokens_per_second": round(tokens / assisted, 2),
                "speedup": round(alone / assisted, 3),
                "tokens_per_pass": round(tokens / count, 2),
            }
        )
        print(*(f"{name}={value}" for name, value in rows[-1].items()), flush=True)
    write(args.output, rows)
    print(f"Rows: {args.output}")


if __name__ == "__main__":
    main()
