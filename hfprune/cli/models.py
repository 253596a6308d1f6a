"""Models by the names that users give to commands."""

from transformers import AutoConfig

from hfprune.data.models import check_text_classifier
from hfprune.data.packages import resolve_model
from hfprune.publishing.sources import check_source
from hfprune.publishing.verification import class_of


def check_classifier(name: str) -> None:
    """Refuse a model that does not classify texts, before it is loaded.

    Args:
        name: As for `load_model`.

    Raises:
        CheckpointError: It does not, or it is a pruned checkpoint that `load` would refuse.
    """
    source = resolve_model(name)
    check_source(source)
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    check_text_classifier(class_of(config.architectures or [], name), config, name)
