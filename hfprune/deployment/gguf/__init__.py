"""Decoders as GGUF files, which llama.cpp and what is built on it run."""

from types import MappingProxyType

from hfprune.deployment.gguf.checks import refusal
from hfprune.deployment.gguf.running import open_runner
from hfprune.deployment.gguf.writing import QUANTIZATIONS, with_weights_of_file, write
from hfprune.deployment.targets import Target, Tolerance, register_target

#: By quantisation how far logits may be from those in PyTorch. A file of other weights would be off by more than 1.
TOLERANCE = MappingProxyType(
    {
        None: Tolerance(largest=1e-3, typical=1e-4, agreement=0.99),
        "f16": Tolerance(largest=2e-2, typical=5e-3, agreement=0.95),
        "bf16": Tolerance(largest=1e-1, typical=3e-2, agreement=0.85),
        "q8_0": Tolerance(typical=1e-1, agreement=0.75),
        "q4_0": Tolerance(typical=6e-1, agreement=0.2),
        "q4_1": Tolerance(typical=6e-1, agreement=0.2),
    }
)

#: How far logits may be from those of the weights that are in the file: what they are multiplied with is rounded too.
ROUNDED = Tolerance(typical=1e-1, agreement=0.75)

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
        rounded=with_weights_of_file,
        rounded_tolerance=ROUNDED,
    )
)
