"""The code in a checkpoint loads it with older and newer transformers than hfprune itself: `make loader-versions`.

Every version is installed into an environment of its own, which takes the other packages from this one.
"""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

import hfprune
from hfprune.structure import find_blocks
from hfprune.structure.architectures import base_model_type
from tests.support.tiny import tiny_batch, tiny_model

ROOT = Path(__file__).parents[1]
#: What pip is asked for. vLLM 0.32 pins transformers below 5.20, hfprune itself needs 5.20.
VERSIONS = [*(f"==5.{minor}.*" for minor in range(16, 24)), "<6"]
MODELS = {
    "bert": "AutoModelForSequenceClassification",
    "llama": "AutoModelForCausalLM",
    "t5": "AutoModelForSeq2SeqLM",
    "whisper": "AutoModelForSpeechSeq2Seq",
}

pytestmark = [pytest.mark.loaders, pytest.mark.slow]


def cut(model_type, removed):
    """A model that lost a unit of its first attention and some neurons, or these blocks whole."""
    dense = tiny_model(model_type, MODELS[model_type])
    blocks = find_blocks(dense)
    kept = {}
    for kind in ("attention", "ffn"):
        block = next(block for block in blocks if block.kind == kind)
        kept[block.name] = [] if removed else range(1, block.units)
    name = base_model_type(dense.config.model_type)
    return hfprune.apply_plan(dense, hfprune.PruningPlan.keep(blocks, kept, model_type=name, sequence_length=8))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    made = []
    for model_type, removed in [*((name, False) for name in MODELS), ("llama", True)]:
        small = cut(model_type, removed)
        batch = {name: value for name, value in tiny_batch(model_type).items() if name != "labels"}
        with torch.no_grad():
            logits = small(**batch).logits
        folder = hfprune.save(small, root / f"{model_type}{'_emptied' if removed else ''}")
        expected = {"auto_class": MODELS[model_type], "batch": batch, "logits": logits}
        torch.save(expected, folder / "expected.pt")
        made.append(folder)
    return made


def environment_of(folder):
    """The Python of a new environment, which takes what is not installed in it, such as torch, from the present one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


@pytest.mark.parametrize("version", VERSIONS)
def test_checkpoints_load_without_hfprune(version, folders, tmp_path):
    python = environment_of(tmp_path / "environment")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--upgrade"]
    installed = subprocess.run([*install, f"transformers{version}"], capture_output=True, text=True, check=False)
    if installed.returncode:
        pytest.skip(f"pip cannot install transformers{version}: {installed.stderr.strip().splitlines()[-1]}")
    settings = os.environ | {"PYTHONPATH": "", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [str(python), str(ROOT / "tests/support/load_alone.py"), *map(str, folders)]
    done = subprocess.run(command, env=settings, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = done.stdout.strip().splitlines()[-1]
    print(found)
    assert found.startswith("transformers 5.")
    if version != "<6":
        assert found.startswith(f"transformers {version.removeprefix('==').removesuffix('*')}")
