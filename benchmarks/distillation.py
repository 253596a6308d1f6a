"""Distilling a language model's logits: `logits_loss` and its gradient against the same formula through autograd.

    python benchmarks/distillation.py [--batch 4] [--length 256] [--words 49152] [--rounds 5]

Random logits of a student and a teacher, by default with as many words as SmolLM2 has. Both sides run in turn in one
process; the median seconds of loss and backward pass, their ratio, peak memory over that of the logits (Linux), and how
far the two gradients are apart. CPU, float32 and bfloat16 logits.
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from common import memory_over
from torch import Tensor

from hfprune.recovery.losses.logits import logits_loss


def by_autograd(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """KL(teacher ‖ student), a mean over the tokens of the mask."""
    log_p, log_q = (F.log_softmax(logits[mask].float(), dim=-1) for logits in (student, teacher))
    return F.kl_div(log_p, log_q, log_target=True, reduction="batchmean")


def ours(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """The same by the library."""
    return logits_loss(student, teacher, temperature=1.0, problem="single_label_classification", mask=mask)


def compare(shape: tuple[int, int, int], dtype: torch.dtype, rounds: int) -> None:
    """Measure and print, with logits of one shape and dtype."""
    mask = torch.ones(shape[:2], dtype=torch.bool)
    mask[:, -1] = False  # nothing follows the last token
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    student.requires_grad_()
    sides = {"autograd": by_autograd, "hfprune": ours}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    peaks: dict[str, int] = {}
    gradients: dict[str, Tensor] = {}
    for _ in range(rounds):
        for name, loss in sides.items():
            began = time.perf_counter()
            peaks[name] = memory_over(lambda loss=loss: loss(student, teacher, mask).backward())
            seconds[name].append(time.perf_counter() - began)
            if student.grad is not None:
                gradients[name] = student.grad.float()
            student.grad = None
    print(f"\n{shape[0]} × {shape[1]} tokens, {shape[2]:,} words, cpu, {dtype}, {torch.get_num_threads()} threads")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name in sides:
        print(f"{name:10} {medians[name]:6.3f} s, peak {peaks[name] / 2**20:6.0f} MiB over the logits")
    apart = float((gradients["autograd"] - gradients["hfprune"]).norm() / gradients["autograd"].norm())
    print(f"{medians['autograd'] / medians['hfprune']:.1f} × faster; gradients are {apart:.1e} of their norm apart")


def main() -> None:
    """Compare in both dtypes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"batch": 4, "length": 256, "words": 49152, "rounds": 5, "threads": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for dtype in (torch.float32, torch.bfloat16):
        compare((args.batch, args.length, args.words), dtype, args.rounds)


if __name__ == "__main__":
    main()
