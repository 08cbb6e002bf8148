"""PyTorch beside us: found where it is installed, run in a process of its own, timed in turns with our contestants."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

from cl_jax.devices import cores
from cl_jax.errors import UserError
from experiments.benchmark.cases import Case, model_of
from experiments.benchmark.measure import Contestant

WORKER = Path(__file__).with_name("torch_worker.py")


class Torch:
    """A process that trains with PyTorch when told to; it waits without using the processor in between.

    Raises:
        UserError: the interpreter is not there, or has no PyTorch.
    """

    def __init__(self, python: str):
        device = "cpu" if jax.default_backend() == "cpu" else "cuda"
        if shutil.which(python) is None:
            raise UserError(f"--torch-python {python}: there is no such program; give a Python that has PyTorch")
        self._process = subprocess.Popen(
            [python, str(WORKER), device, str(cores())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.version = str(self._answer()["version"])
        self._made: dict[str, float] = {}

    def contestant(self, case: Case, seconds: float) -> Contestant:
        """Steps of one training that take about so many seconds."""
        name = f"{case.model} {case.batch_size} {case.optimizer}"
        if name not in self._made:
            kind = case.model.partition("-")[0]
            hidden = list(model_of(case.model).hidden) if kind == "mlp" else []
            self._ask(make=name, model=kind, hidden=hidden, batch_size=case.batch_size, optimizer=case.optimizer)
            self._ask(run=name, steps=2)
            self._made[name] = self._ask(run=name, steps=3)["seconds"] / 3
        steps = max(3, min(1000, round(seconds / self._made[name])))
        return Contestant(name="PyTorch", run=lambda: self._ask(run=name, steps=steps)["seconds"], units=steps)

    def close(self) -> None:
        self._process.terminate()
        self._process.communicate()

    def _ask(self, **question: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            said = self._process.communicate()[1].strip().splitlines()
            raise UserError(f"PyTorch cannot be measured: {said[-1] if said else 'its process ended'}")
        return json.loads(line)


def find(python: str | None) -> Torch | None:
    """PyTorch of the interpreter named, or of this one where it is installed; None: there is none."""
    if python is not None:
        return Torch(python)
    return Torch(sys.executable) if importlib.util.find_spec("torch") else None


def covered(case: Case) -> bool:
    """Whether PyTorch has the same network."""
    return case.model.partition("-")[0] in ("mlp", "cnn")
