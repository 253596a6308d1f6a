"""Model types that the table lacks: entries proposed from the structure of a layer, and proven.

Importing the package registers its finder with `hfprune.structure.architectures`.
"""

from hfprune.structure.architectures import Support, support_of
from hfprune.structure.discovery.discover import proven_entry

__all__ = ["Support", "proven_entry", "support_of"]
