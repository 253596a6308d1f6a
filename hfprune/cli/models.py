"""Models by the names that users give to commands."""

from transformers import AutoConfig, PretrainedConfig

from hfprune.data.models import check_text_classifier
from hfprune.data.packages import resolve_model
from hfprune.publishing.sources import check_source
from hfprune.publishing.verification import class_of


def classifier_config(name: str, *, revision: str | None = None) -> PretrainedConfig:
    """The config of a text classifier; a model that does not classify texts is refused, before it is loaded.

    Args:
        name: As for `load_model`.
        revision: Branch, tag or commit of a repository.

    Returns:
        The config.

    Raises:
        CheckpointError: It does not, or it is a pruned checkpoint that `load` would refuse.
    """
    source = resolve_model(name)
    check_source(source, revision=revision)
    config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    check_text_classifier(class_of(config.architectures or [], name), config, name)
    return config
