"""A plugin for pytest in a checkout of peft: pruned folders can be loaded by Auto classes."""

import hfprune  # noqa: F401 (registers pruned types with the Auto classes)
