"""launch/Dockerfile, read: what of it other parts rely on. It is built nowhere here."""

import json
import re
from pathlib import Path

import pytest

from launch import k8s

ROOT = Path(__file__).parents[2]
ALLOWED = {"FROM", "SHELL", "RUN", "COPY", "ARG", "USER", "WORKDIR", "STOPSIGNAL", "ENTRYPOINT"}


@pytest.fixture
def steps() -> list[tuple[str, str]]:
    """Instructions and what follows them."""
    lines = [line for line in (ROOT / "launch" / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in whole.splitlines() if line)]


def of(steps: list[tuple[str, str]], word: str) -> list[str]:
    return [rest for each, rest in steps if each == word]


def test_it_runs_cl_jax_as_nobody_special(steps: list[tuple[str, str]]) -> None:
    assert {word for word, _ in steps} <= ALLOWED
    assert [json.loads(rest) for rest in of(steps, "ENTRYPOINT")] == [["cl-jax"]]  # signals reach the worker itself
    assert of(steps, "STOPSIGNAL") == ["SIGTERM"]
    (user,) = of(steps, "USER")
    assert user.isdecimal() and int(user) > 0  # by number, which Kubernetes can check
    assert steps.index(("USER", user)) > max(i for i, (word, _) in enumerate(steps) if word in ("RUN", "COPY"))
    assert f"useradd --uid {user} " in " ".join(of(steps, "RUN"))
    given = k8s.parse(["out", "--image", "a", "--claim", "b", "--mount", "/c"])
    assert k8s.pod(given, {"name": "worker"})["spec"]["securityContext"]["fsGroup"] == int(user)


def test_packages_are_pinned_and_come_before_the_source(steps: list[tuple[str, str]]) -> None:
    (base,) = of(steps, "FROM")
    assert re.fullmatch(r"python:3\.[0-9]+\.[0-9]+-slim-[a-z]+", base)
    lock = next(
        i for i, (word, rest) in enumerate(steps) if word == "COPY" and rest.startswith("launch/requirements.lock")
    )
    used = next(
        i for i, (word, rest) in enumerate(steps) if word == "RUN" and "-r /opt/cl_jax/launch/requirements.lock" in rest
    )
    source = steps.index(("COPY", ". /opt/cl_jax"))
    assert lock < used < source
    installs = [rest for rest in of(steps, "RUN") if "pip install" in rest]
    assert all(
        "-r /opt/cl_jax/launch/requirements.lock" in rest or "-c " in rest or "--no-deps" in rest for rest in installs
    )
    assert of(steps, "ARG") == ['EXTRA=""']


def test_nothing_names_a_host_or_brings_what_is_not_needed() -> None:
    ignored = (ROOT / ".dockerignore").read_text()
    for text in (ignored, (ROOT / "launch" / "Dockerfile").read_text()):
        assert "://" not in text and "index-url" not in text and "localhost" not in text
    lines = [line for line in ignored.splitlines() if line and not line.startswith("#")]
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert lines[0] == "*" and kept == {"LICENSE", "README.md", "pyproject.toml", "cl_jax", "experiments", "launch"}
    assert all((ROOT / name).exists() for name in kept)
