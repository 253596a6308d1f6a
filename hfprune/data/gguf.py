"""A model in a GGUF file as an ordinary checkpoint, made once and kept in the cache."""

import shutil
import tempfile
from pathlib import Path

from huggingface_hub.constants import HF_HOME
from transformers import AutoModelForCausalLM, AutoTokenizer


def dequantised(path: Path, name: str) -> Path:
    """The folder of a causal language model in float32, with its tokenizer, read from a GGUF file.

    transformers refuses to save what it loads from such a file, as its config says that it is quantized; so the weights
    go into a model that is built from the config without that.

    Args:
        path: The GGUF file.
        name: Of the folder, in `HF_HOME/hfprune/models`.

    Returns:
        The folder.

    Raises:
        ImportError: The package gguf, which reads such files, is not installed.
    """
    folder = Path(HF_HOME) / "hfprune" / "models" / name
    if folder.is_dir():
        return folder
    place = {"gguf_file": path.name}
    loaded = AutoModelForCausalLM.from_pretrained(path.parent, **place)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, **place)
    config = type(loaded.config)(**{k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"})
    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{name}."))
    try:
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        draft.chmod(0o755)
        if not folder.is_dir():  # another process may have been faster
            draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder
