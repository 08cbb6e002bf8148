"""Everything the README shows runs."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
MOST_LINES = 20


def block(words: str) -> str:
    (found,) = [each for each in BLOCKS if words in each]
    return found


@pytest.fixture(scope="module")
def tasks() -> list[tuple[jax.Array, jax.Array]]:
    """The digits with their pixels in three orders."""
    images, labels = load_digits(return_X_y=True)
    orders = [np.random.default_rng(seed).permutation(64) for seed in range(3)]
    return [(jnp.asarray(images[:, order] / 16, jnp.float32), jnp.asarray(labels, jnp.int32)) for order in orders]


@pytest.fixture(autouse=True)
def as_in_a_users_process() -> Iterator[None]:
    """JAX's own promotion rules, in every thread."""
    strict = jax.config.values["jax_numpy_rank_promotion"], jax.config.values["jax_numpy_dtype_promotion"]
    jax.config.update("jax_numpy_rank_promotion", "allow")
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    yield
    jax.config.update("jax_numpy_rank_promotion", strict[0])
    jax.config.update("jax_numpy_dtype_promotion", strict[1])


def execute(code: str, **names: Any) -> dict[str, Any]:
    exec(compile(code, "README.md", "exec"), names)
    return names


def test_examples_are_short() -> None:
    for each in BLOCKS:
        assert len(each.strip().splitlines()) <= MOST_LINES, each


def test_strengths_over_seeds(tasks: Any) -> None:
    accuracy = np.asarray(execute(block("jax.vmap(jax.vmap(run"), tasks=tasks)["accuracy"])
    assert accuracy.shape == (3, 4, 3)
    by_strength = accuracy.mean(axis=(0, 2))
    assert by_strength[1:].max() > by_strength[0] + 0.05  # EWC forgets less than strength 0
    assert accuracy[:, 0, 2].min() > 0.9  # the last task is learned


def test_own_training_loop(tasks: Any) -> None:
    names = execute(block("cl.StepInfo"), tasks=tasks)
    start = names["params"]
    names = execute(block("for i in range(300)"), **names)
    accuracy = [jnp.mean(names["model"].apply(names["params"], x).argmax(1) == y) for x, y in tasks]
    assert min(map(float, accuracy)) > 0.8, accuracy  # fine-tuning ends near 0.5 on the first task
    assert jax.tree.structure(names["params"]) == jax.tree.structure(start)


def test_experiment_with_own_method_and_stream(tmp_path: Path) -> None:
    code = block("ewc + replay") + block("class StayNearStart") + block("class Inverted")
    code += """
own = replace(base, {"methods": {"start": StayNearStart()}, "stream": Inverted()})
entries = (*experiment.entries, *sweep("start", own, {"methods.start.strength": [0.1, 1.0]}))
experiment = Experiment(name="mine", description="", entries=entries, seeds=(0,))
"""
    (tmp_path / "config.py").write_text(code)
    from cl_jax import cli, results

    cli.main(["run", str(tmp_path), "--out", str(tmp_path / "out"), "--steps", "20", "--quiet"])
    table = results.read_table(tmp_path / "out")
    assert set(table["stream"].to_pylist()) == {"permuted-digits/domain", "inverted-digits/domain"}
    assert set(table["config.methods.start.strength"].to_pylist()) >= {0.1, 1.0}
    assert (tmp_path / "out" / "report" / "report.html").is_file()


def test_what_support_costs_a_coder(tmp_path: Path) -> None:
    (tmp_path / "config.py").write_text(block("Pretrained"))
    from cl_jax import cli, results

    cli.main(["run", str(tmp_path), "--out", str(tmp_path / "out"), "--steps", "20", "--quiet"])
    table = results.read_table(tmp_path / "out").to_pylist()
    assert {row["stream"] for row in table} == {"domains-code,made_support/domain"}
    assert len({row["member"] for row in table}) == 4
    bits = {row["after_task"]: row["value"] / np.log(2) for row in table if (row["metric"], row["task"]) == ("loss", 1)}
    assert 7.5 < bits[0] < 8.5 > bits[1] + 0.3  # a random model knows nothing of bytes; the base knows some code
    assert (tmp_path / "out" / "report" / "report.html").is_file()


def test_commands_and_links_exist() -> None:
    for command in re.findall(r"bash (launch/\S+) (\w+) ?(experiments/\w+)?", README):
        assert (ROOT / command[0]).is_file() and (ROOT / command[2]).exists()
    for link in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / link).exists(), link
    shown = subprocess.run(["bash", str(ROOT / "launch/local.sh"), "help"], capture_output=True, text=True, check=True)
    assert "run experiments/quickstart" in shown.stdout


def test_names_at_the_top() -> None:
    import cl_jax as cl

    for name in dir(cl):
        assert getattr(cl, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'ewk'"):
        cl.ewk  # noqa: B018
    code = "import sys, cl_jax; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nnx_adapter() -> None:
    nnx = pytest.importorskip("flax.nnx", reason="flax.nnx does not import with this pair of flax and jax")
    import cl_jax as cl

    model, params = cl.nnx(nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
    x = jnp.ones((2, 4))
    expected = x @ params["kernel"] + params["bias"][None, :]
    np.testing.assert_allclose(model.apply(params, x), expected, rtol=1e-6)
    fisher = cl.diagonal_fisher(jax.random.key(0), model, params, cl.Batch(x, jnp.zeros(2, jnp.int32)))
    assert jax.tree.structure(fisher) == jax.tree.structure(params)
