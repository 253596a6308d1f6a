"""Models by the names that users give to commands."""

from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from hfprune.data.models import check_text_classifier, load_whole
from hfprune.data.packages import resolve_model
from hfprune.publishing.checkpoint import load
from hfprune.publishing.sources import check_source, is_pruned
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
    # a pruned checkpoint that lost its plan must be refused, so the plan alone does not decide
    if is_pruned(source, revision=revision):
        return load(source, revision=revision)
    config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    return load_whole(class_of(config.architectures or [], name), source, name=name, revision=revision)


def classifier_config(name: str) -> PretrainedConfig:
    """The config of a text classifier; a model that does not classify texts is refused, before it is loaded.

    Args:
        name: As for `load_model`.

    Returns:
        The config.

    Raises:
        CheckpointError: It does not, or it is a pruned checkpoint that `load` would refuse.
    """
    source = resolve_model(name)
    check_source(source)
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    check_text_classifier(class_of(config.architectures or [], name), config, name)
    return config
