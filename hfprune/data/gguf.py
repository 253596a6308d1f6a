"""A model in a GGUF file as an ordinary checkpoint, made once and kept in the cache."""

import shutil
import tempfile
from pathlib import Path

from huggingface_hub.constants import HF_HOME
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel


def dequantised(path: Path, name: str) -> Path:
    """Make an ordinary checkpoint in float32 of a causal language model in a GGUF file, with its tokenizer.

    Args:
        path: The GGUF file.
        name: Name of the folder in `HF_HOME/hfprune/models`.

    Returns:
        The folder. If it exists already, it is returned as it is.

    Raises:
        ImportError: The package gguf, which reads such files, is not installed.
    """
    folder = Path(HF_HOME) / "hfprune" / "models" / name
    if folder.is_dir():
        return folder
    model = _without_quantization(AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name))
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Written beside its place and then moved there, so that a process that ends early leaves no half of a checkpoint.
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{name}."))
    try:
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        # mkdtemp makes folders that only their owner can read.
        draft.chmod(0o755)
        # Another process may have made the folder in the meantime.
        if not folder.is_dir():
            draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _without_quantization(loaded: PreTrainedModel) -> PreTrainedModel:
    """The same model with a config that does not call it quantized.

    transformers refuses to save a model that it loaded from a GGUF file, because of that config, though the weights in
    memory are not quantized any more.
    """
    fields = loaded.config.to_dict()
    fields.pop("quantization_config", None)
    model = type(loaded)(type(loaded.config)(**fields))
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    return model
