"""What a model is made of: blocks and units, gates on them, and surgery that removes them."""

from hfprune.structure.anatomy import Anatomy, anatomy_of, find_blocks
from hfprune.structure.architectures import Support, known_architectures, register_architecture, support_of
from hfprune.structure.blocks import Block, Slice
from hfprune.structure.discovery import proven_entry
from hfprune.structure.gates import gate_gradients, gated
from hfprune.structure.running import frozen
from hfprune.structure.specs import Architecture, BlockSpec
from hfprune.structure.surgery import keep_units

__all__ = [
    "Anatomy",
    "Architecture",
    "Block",
    "BlockSpec",
    "Slice",
    "Support",
    "anatomy_of",
    "find_blocks",
    "frozen",
    "gate_gradients",
    "gated",
    "keep_units",
    "known_architectures",
    "proven_entry",
    "register_architecture",
    "support_of",
]
