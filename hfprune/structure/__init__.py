"""What a model is made of: blocks and units, gates on them, and surgery that removes them."""

from hfprune.structure.architectures import known_architectures, register_architecture
from hfprune.structure.blocks import Block
from hfprune.structure.discovery import Support, support_of
from hfprune.structure.gates import frozen, gate_gradients, gated
from hfprune.structure.reading import find_blocks
from hfprune.structure.specs import Architecture, BlockSpec
from hfprune.structure.surgery import keep_units

__all__ = [
    "Architecture",
    "Block",
    "BlockSpec",
    "Support",
    "find_blocks",
    "frozen",
    "gate_gradients",
    "gated",
    "keep_units",
    "known_architectures",
    "register_architecture",
    "support_of",
]
