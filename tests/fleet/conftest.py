"""A sweep that is trained in this process, for the tests of this folder."""

from pathlib import Path
from typing import Any

import pytest

from cl_jax import cli
from cl_jax.fleet import worker as workers
from tests.fleet.stores import store as store
from tests.fleet.sweeps import train, write


@pytest.fixture(scope="session", autouse=True)
def one_process() -> Any:
    """JAX of this process has started long ago."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "distributed", lambda: None)
        yield


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment, its run, and the same trained shard by shard."""
    folder = tmp_path_factory.mktemp("shards")
    experiment = str(write(folder, 40))
    cli.main(["run", experiment, "--out", str(folder / "whole"), "--quiet"])
    cli.main(["shards", experiment, "--out", str(folder / "out"), "--members", "2"])
    for shard in range(3):
        train(folder / "out", shard)
    cli.main(["gather", str(folder / "out")])
    return folder
