"""launch/local.sh with fake interpreters in PATH: no network, no packages."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = """awk bash cat chmod cksum cp dirname env head mkdir mktemp mv printf rm rmdir sed sh sleep tail touch tr
uname""".split()

OLD = """#!/bin/sh
case "$1" in --version) echo "Python 3.9.2" ;; *) exit 1 ;; esac
"""
# Makes a .venv whose python writes down what it was asked to install, and whose cl-jax what it was called with.
NEW = """#!/bin/sh
case "$1" in --version) echo "Python 3.12.1"; exit 0 ;; -c) exit 0 ;; esac
mkdir -p "$3/bin"
cat >"$3/bin/python" <<'TEXT'
#!/bin/sh
case "$*" in *pip*) printf '%s\\n' "$*" >>"{log}"; exit {code} ;; *pytest*) printf '%s\\n' "$PWD" "$@" ;;
*experiments.*) printf '%s\\n' "$PWD" "$PYTHONPATH" "$@" ;; esac
TEXT
cat >"$3/bin/cl-jax" <<'TEXT'
#!/bin/sh
printf '%s\\n' "$@"
TEXT
chmod +x "$3/bin/python" "$3/bin/cl-jax"
"""


class Checkout:
    """A copy of what local.sh needs, and a PATH that holds nothing but `TOOLS` and fakes."""

    def __init__(self, folder: Path):
        self.root, self.bin, self.log = folder / "check out", folder / "bin", folder / "pip.log"
        shutil.copytree(ROOT / "launch", self.root / "launch")
        shutil.copy(ROOT / "pyproject.toml", self.root)
        self.bin.mkdir()
        for tool in TOOLS:
            if found := shutil.which(tool):
                (self.bin / tool).symlink_to(found)

    def fake(self, name: str, text: str, code: int = 0) -> None:
        (self.bin / name).write_text(text.replace("{log}", str(self.log)).replace("{code}", str(code)))
        (self.bin / name).chmod(0o755)

    def command(self, *words: str) -> list[str]:
        return [str(self.bin / "bash"), str(self.root / "launch" / "local.sh"), *words]

    def __call__(self, *words: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words),
            cwd=cwd or self.root,
            env={"PATH": str(self.bin), "HOME": str(self.root), **env},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def installed(self) -> list[str]:
        return [Path(word).name for word in self.log.read_text().split() if word.endswith(".lock")]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_without_python(checkout: Checkout) -> None:
    done = checkout("run", "experiments/quickstart")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        "cl_jax: Python is not installed (looked for python3, python3.14 ... python). Install Python 3.11 or newer.\n"
    )
    assert not (checkout.root / ".venv").exists()


def test_python_too_old(checkout: Checkout) -> None:
    checkout.fake("python3", OLD)
    checkout.fake("python", OLD)
    done = checkout("test")
    assert done.returncode == 2
    assert "3.11 or newer is needed; found only python3 (Python 3.9.2), python (Python 3.9.2)." in done.stderr


def test_a_newer_python_beside_an_old_one_is_found(checkout: Checkout) -> None:
    checkout.fake("python3", OLD)
    checkout.fake("python3.12", NEW)
    assert checkout("list").returncode == 0


@pytest.mark.parametrize(("named", "message"), [("python9", "python9, which is not there"), ("old", "Python 3.9.2")])
def test_named_python_is_the_one_used(checkout: Checkout, named: str, message: str) -> None:
    checkout.fake("python3", NEW)
    checkout.fake("old", OLD)
    done = checkout("list", CL_JAX_PYTHON=named)
    assert done.returncode == 2 and message in done.stderr


def test_run_installs_only_what_running_needs(checkout: Checkout) -> None:
    checkout.fake("python3", NEW)
    done = checkout("run", "somewhere", "--seeds", "3")
    assert done.returncode == 0 and done.stdout == "run\nsomewhere\n--seeds\n3\n"
    assert done.stderr.startswith("cl_jax: setting up .venv for run, once")
    assert checkout.installed() == ["requirements.lock"]
    assert "--no-deps -e" in checkout.log.read_text()

    again = checkout("plan", "somewhere")
    assert (again.stderr, checkout.installed()) == ("", ["requirements.lock"])  # nothing twice

    tested = checkout("test", "--fast", "-k", "name", cwd=checkout.bin)
    assert checkout.installed() == ["requirements.lock", "requirements-dev.lock"]
    words = tested.stdout.splitlines()
    assert words[0] == str(checkout.root) and words[-4:] == ["-m", "not slow and not thorough", "-k", "name"]
    for option, marks in ((), "not slow"), (("--slow",), "slow"), (("--all",), "slow or not slow"):
        assert checkout("test", *option, "-x").stdout.splitlines()[-3:] == ["-m", marks, "-x"]
    assert not (checkout.root / ".venv.lock").exists()


def test_a_moved_checkout_and_another_lock_are_set_up_anew(checkout: Checkout) -> None:
    checkout.fake("python3", NEW)
    assert checkout("setup", "--dev").returncode == 0
    (checkout.root / "launch" / "requirements-dev.lock").write_text("-r requirements.lock\n")
    assert "for dev" in checkout("setup", "--dev").stderr
    (checkout.root / ".venv" / "stays").touch()
    moved = checkout.root.rename(checkout.root.with_name("moved"))
    checkout.root = moved
    assert "for run" in checkout("setup").stderr
    assert not (moved / ".venv" / "stays").exists()


def test_a_failed_installation_says_where_its_log_is_and_is_repeated(checkout: Checkout) -> None:
    checkout.fake("python3", NEW, code=1)
    done = checkout("list")
    assert done.returncode == 1 and "installing failed (whole log:" in done.stderr
    assert not (checkout.root / ".venv.lock").exists()
    checkout.fake("python3", NEW)
    assert checkout("list").returncode == 0


def test_without_the_venv_module(checkout: Checkout) -> None:
    checkout.fake("python3", NEW.replace("mkdir -p", "exit 1;", 1))
    done = checkout("list")
    assert done.returncode == 2 and "python3-venv" in done.stderr


def test_the_lock_of_a_killed_set_up_is_taken_over(checkout: Checkout) -> None:
    checkout.fake("python3", NEW)
    held = checkout.root / ".venv.lock"
    held.mkdir()
    (held / "host").write_text(os.uname().nodename)
    gone = subprocess.Popen(["true"])
    gone.wait()
    (held / "pid").write_text(str(gone.pid))
    assert checkout("list").returncode == 0
    assert not held.exists()


def test_a_set_up_under_way_is_waited_for(checkout: Checkout) -> None:
    checkout.fake("python3", NEW)
    held = checkout.root / ".venv.lock"
    held.mkdir()
    waiting = subprocess.Popen(
        checkout.command("list"), env={"PATH": str(checkout.bin)}, stderr=subprocess.PIPE, text=True
    )
    assert waiting.stderr is not None
    assert "another set-up is under way" in waiting.stderr.readline()
    held.rmdir()
    _, rest = waiting.communicate(timeout=30)
    assert waiting.returncode == 0 and "setting up .venv" in rest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_set_up_leaves_no_lock(checkout: Checkout, number: int) -> None:
    checkout.fake("python3", NEW.replace("exit {code}", "sleep 30"))
    begun = subprocess.Popen(
        checkout.command("list"),
        env={"PATH": str(checkout.bin)},
        start_new_session=True,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 20
    while not checkout.log.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert checkout.log.exists()
    os.killpg(begun.pid, number)
    assert begun.wait(timeout=20) != 0
    assert not (checkout.root / ".venv.lock").exists()
    checkout.fake("python3", NEW)
    assert checkout("list").returncode == 0


def relative_to_caller(checkout: Checkout, there: Path) -> str:
    (there / "experiments" / "mine").mkdir(parents=True)
    (there / "experiments" / "mine" / "config.py").touch()
    return "experiments/mine"


def relative_to_checkout(checkout: Checkout, there: Path) -> str:
    return str(checkout.root / "experiments" / "mine")


@pytest.mark.parametrize("where", [relative_to_caller, relative_to_checkout])
def test_experiment_of_the_caller_or_of_the_checkout(
    checkout: Checkout, tmp_path: Path, where: Callable[[Checkout, Path], str]
) -> None:
    checkout.fake("python3", NEW)
    relative_to_caller(checkout, checkout.root)
    there = tmp_path / "some where"
    there.mkdir()
    meant = where(checkout, there)
    for words in (["experiments/mine", "--quiet"], ["--quiet", "experiments/mine"]):
        done = checkout("run", *words, cwd=there)
        assert done.stdout.splitlines() == ["run", *(meant if word != "--quiet" else word for word in words)]


@pytest.mark.parametrize(
    ("command", "module"),
    [("benchmark", "benchmark"), ("conversations", "conversation_stream"), ("parity", "parity_kl")],
)
def test_modules_of_the_checkout_run_where_the_caller_stands(
    command: str, module: str, checkout: Checkout, tmp_path: Path
) -> None:
    checkout.fake("python3", NEW)
    done = checkout(command, "--quick", "--out", "some where", cwd=tmp_path)
    words = [str(tmp_path), str(checkout.root), "-P", "-m", f"experiments.{module}", "--quick", "--out", "some where"]
    assert done.stdout.splitlines() == words
    assert checkout.installed() == ["requirements.lock"]


def test_unknown_command_and_help(checkout: Checkout) -> None:
    done = checkout("rnu")
    assert done.returncode == 2 and "unknown command 'rnu'; known: run, plan," in done.stderr
    helped = checkout()
    assert helped.returncode == 0 and "bash launch/local.sh run experiments/quickstart" in helped.stdout
    assert max(map(len, helped.stdout.splitlines())) <= 120


def test_locks_hold_a_digest_of_everything_and_no_place() -> None:
    texts = [(ROOT / "launch" / name).read_text() for name in ("requirements.lock", "requirements-dev.lock")]
    names = []
    for text in texts:
        assert not re.search(r"://|^-[ef]|--(extra-)?index|--find-links|(?<![\w])/", text, re.MULTILINE)
        pins = re.split(r"\n(?=[a-z0-9])", text.partition("\n")[2].removeprefix("-r requirements.lock\n"))
        for pin in pins:
            assert re.match(r"[a-z0-9][a-z0-9._-]*==[^ ]+( ; [^\n\\]+)? \\\n", pin, re.IGNORECASE), pin[:80]
            assert re.fullmatch(r"( +--hash=sha256:[0-9a-f]{64}( \\)?\n?)+", pin.partition("\n")[2]), pin[:80]
            names.append(pin.partition("==")[0])
    assert len(names) == len(set(names)) > 70
    assert {"jax", "tyro", "pytest", "ruff"} <= set(names)
    assert "pytest" not in texts[0] and "\njax==" not in texts[1]
