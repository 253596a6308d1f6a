"""Decoders as GGUF files, which llama.cpp and what is built on it run."""

from types import MappingProxyType

from hfprune.deployment.gguf.checks import refusal
from hfprune.deployment.gguf.running import LlamaCppRunner, check_tokens, open_runner
from hfprune.deployment.gguf.writing import QUANTIZATIONS, Written, write, write_file
from hfprune.deployment.targets import Target, Tolerance, register_target

__all__ = ["LlamaCppRunner", "Written", "check_tokens", "open_runner", "refusal", "write", "write_file"]

#: By quantisation how far log-probabilities may be from those in PyTorch, relative to the largest.
TOLERANCE = MappingProxyType(
    {
        None: Tolerance(difference=1e-3, agreement=0.99),
        "f16": Tolerance(difference=1e-2, agreement=0.98),
        "bf16": Tolerance(difference=5e-2, agreement=0.9),
        "q8_0": Tolerance(difference=1e-1, agreement=0.9),
        "q4_0": Tolerance(difference=5e-1, agreement=0.5),
        "q4_1": Tolerance(difference=5e-1, agreement=0.5),
    }
)

register_target(
    Target(
        name="gguf",
        extra="gguf",
        modules=("gguf", "xllamacpp"),
        packages=("gguf", "xllamacpp"),
        quantizations=MappingProxyType(QUANTIZATIONS),
        tolerance=TOLERANCE,
        write=write,
        open=open_runner,
        refusal=refusal,
    )
)
