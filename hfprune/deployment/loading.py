"""Models by the names that users give: pruned checkpoints with their plans, and any others; and their tokenizers."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from hfprune.data.models import load_whole
from hfprune.data.packages import resolve_model
from hfprune.errors import CheckpointError, one_line
from hfprune.publishing.checkpoint import load
from hfprune.publishing.hub import fetch
from hfprune.publishing.probe import PROBE_FILE, Probe
from hfprune.publishing.sources import is_pruned
from hfprune.publishing.verification import class_of

#: How files of tokenizers are called.
_TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "spiece.model", "sentencepiece*")


def load_model(name: str, *, revision: str | None = None, **options: Any) -> PreTrainedModel:
    """Load a pruned checkpoint with its plan, or any other model in the class that its config names.

    Args:
        name: Folder or repository, or the name of a model in an installed package.
        revision: Branch, tag or commit of a repository.
        **options: As for `from_pretrained`.

    Returns:
        The model.

    Raises:
        CheckpointError: The config names no class, or the checkpoint lacks weights.
    """
    source = resolve_model(name)
    # a pruned checkpoint that lost its plan must be refused, so the plan alone does not decide
    if is_pruned(source, revision=revision):
        return load(source, revision=revision, **options)
    config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    model_class = class_of(config.architectures or [], name)
    return load_whole(model_class, source, name=name, revision=revision, **options)


def place_of(name: str, *, revision: str | None = None) -> str:
    """Where the files of a model are that is loaded by `load_model`.

    Args:
        name: Folder or repository, or the name of a model in an installed package.
        revision: Branch, tag or commit of a repository.

    Returns:
        A folder; of a repository that is no pruned checkpoint its name, as not all of its files are downloaded.
    """
    source = resolve_model(name)
    return str(fetch(source, revision=revision)) if is_pruned(source, revision=revision) else source


def tokenizer_of(source: str | Path, *, revision: str | None = None) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer of a folder or repository.

    Args:
        source: The folder or repository.
        revision: Branch, tag or commit of a repository.

    Returns:
        The tokenizer; None if there is no file of one.

    Raises:
        CheckpointError: There are files of a tokenizer, and it cannot be loaded.
    """
    if not _has_tokenizer(source, revision):
        return None
    try:
        return AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    except Exception as error:
        raise CheckpointError(
            f"the tokenizer of {source} cannot be loaded: {type(error).__name__}: {one_line(error)}. Mend "
            "its files, or take them away; in Python, tokenizer= takes another."
        ) from error


def _has_tokenizer(source: str | Path, revision: str | None) -> bool:
    """Whether a folder or repository has files of a tokenizer."""
    if Path(source).is_dir():
        return any(file for pattern in _TOKENIZER_FILES for file in Path(source).glob(pattern))
    for name in ("tokenizer_config.json", "tokenizer.json"):
        try:
            cached_file(source, name, revision=revision)
        except OSError:
            continue
        return True
    return False


def probe_of(folder: Path) -> Probe | None:
    """Read the probe of a checkpoint.

    Args:
        folder: The folder of the checkpoint.

    Returns:
        The probe; None if there is none, or it does not say what the model computes in float32.
    """
    file = folder / PROBE_FILE
    if not file.is_file():
        return None
    probe = Probe.from_json(file.read_text(encoding="utf-8"))
    return probe if probe.dtype == "float32" else None
