"""Models by the names that users give to commands."""

from transformers import AutoConfig, PreTrainedModel
from transformers.utils import cached_file

from hfprune.data.models import check_text_classifier, load_whole
from hfprune.data.packages import resolve_model
from hfprune.publishing.checkpoint import load
from hfprune.publishing.contents import PLAN_FILE
from hfprune.publishing.verification import class_of


def load_model(name: str, *, revision: str | None = None) -> PreTrainedModel:
    """Load a pruned checkpoint with its plan, or any other model in the class that its config names.

    Args:
        name: Folder or repository, or the name of a model in an installed package.
        revision: Branch, tag or commit of a repository.

    Returns:
        The model.

    Raises:
        CheckpointError: The config names no class, or the checkpoint lacks weights.
    """
    source = resolve_model(name)
    plan_file = cached_file(source, PLAN_FILE, revision=revision, _raise_exceptions_for_missing_entries=False)
    if plan_file is not None:
        return load(source, revision=revision)
    config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    return load_whole(class_of(config.architectures or [], name), source, name=name, revision=revision)


def check_classifier(name: str) -> None:
    """Refuse a model that does not classify texts, before it is loaded.

    Args:
        name: As for `load_model`.

    Raises:
        CheckpointError: It does not.
    """
    config = AutoConfig.from_pretrained(resolve_model(name), trust_remote_code=False)
    check_text_classifier(class_of(config.architectures or [], name), config, name)
