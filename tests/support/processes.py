"""Run Python in processes of its own."""

import json
import os
import selectors
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

WITHOUT_HFPRUNE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hfprune":
            raise ImportError("hfprune is not here, on purpose")
sys.meta_path.insert(0, Refuse())
"""

ANSWER = """
import json, os, traceback
questions, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
os.dup2(2, 1)
for line in questions:
    question, said, error = json.loads(line), {}, ""
    os.chdir(question["folder"])
    try:
        exec(question["code"], {"__name__": "__main__", "say": lambda **what: said.update(what)})
    except BaseException:
        error = traceback.format_exc()
    print(json.dumps({**said, "_error": error}), file=answers, flush=True)
"""


def run_python(*arguments: object, processes: int = 1) -> None:
    """Run a script (or `-m module`) alone or by torchrun in several gloo processes, and fail with what it printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={port}"]
    done = subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


class Python:
    """A process that runs one piece of code after another, so that transformers is imported once and not for each.

    Every piece has names of its own, and no standard input.
    """

    def __init__(self, environment: dict[str, str], log: Path, *, with_hfprune: bool = True) -> None:
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", ("" if with_hfprune else WITHOUT_HFPRUNE) + ANSWER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            )

    def run(self, code: str, *, folder: Path, fails: bool = False, timeout: float = 240) -> dict:
        """What the code said by `say(name=value)`; and under `_error` what it raised, as a traceback."""
        print(json.dumps({"code": code, "folder": str(folder)}), file=self.process.stdin, flush=True)
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            answered = selector.select(timeout)
        line = self.process.stdout.readline() if answered else ""
        if not line:
            self.process.kill()
            raise AssertionError(f"no answer, in {timeout} s at most: {self.log.read_text()[-3000:]}")
        said = json.loads(line)
        assert fails or not said["_error"], said["_error"] + self.log.read_text()[-3000:]
        assert not fails or said["_error"], "it was to fail"
        return said

    def close(self) -> None:
        """End it: it holds nothing that would have to be put away, which would take seconds."""
        self.process.kill()
        self.process.communicate()
