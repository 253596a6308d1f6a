"""Texts and models: from the Hub, from files, or from installed packages.

`loading` reads data sets and gives them their splits, `classification` prepares labelled texts, `labels` translates
between the classes of a data set and those of a model, `corpus` packs plain text for language models, `named` has real
data sets for each task that need no Hub, and `packages` has the models that installed packages carry.
"""

from hfprune.data.classification import load_text_dataset, tokenize
from hfprune.data.loading import load_splits, load_texts
from hfprune.data.packages import package_file, resolve_model

__all__ = ["load_splits", "load_text_dataset", "load_texts", "package_file", "resolve_model", "tokenize"]
