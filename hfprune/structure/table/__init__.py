"""The architecture table: for each model type, where producers, consumers and sizes are. Data, no code.

Paths are relative to one layer, those of lists of layers relative to `model.base_model`. An entry is about ten lines;
CONTRIBUTING.md, "Add an architecture", shows how to write one, and the contract tests run on every entry.
"""

from hfprune.structure.specs import Architecture
from hfprune.structure.table.beyond_text import BEYOND_TEXT
from hfprune.structure.table.decoders import DECODERS
from hfprune.structure.table.encoder_decoders import ENCODER_DECODERS
from hfprune.structure.table.encoders import ENCODERS

#: By model type.
TABLE: dict[str, Architecture] = {**ENCODERS, **DECODERS, **ENCODER_DECODERS, **BEYOND_TEXT}
