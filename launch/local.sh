#!/usr/bin/env bash
# Everything on one machine: set-up on first use, then cl-jax or the tests. `bash launch/local.sh help` says more.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
venv="$root/.venv"
held="$root/.venv.lock"
lock="$root/launch/requirements.lock"
lock_dev="$root/launch/requirements-dev.lock"

usage() {
  cat <<'TEXT'
bash launch/local.sh run experiments/quickstart   set-up on first use, then the experiment
bash launch/local.sh adapt <model> <talks> ...    a language model learns from a stream of conversations
bash launch/local.sh plan|report|list ...         as cl-jax; `... run --help` tells the options
bash launch/local.sh shards|worker|...         an experiment trained by many processes, see launch/README.md
bash launch/local.sh benchmark [--quick]          how fast this machine trains; `... benchmark --help` tells the options
bash launch/local.sh conversations [--size smoke] every way to learn from a stream of conversations, compared
bash launch/local.sh parity [--seeds 1]           does KL on new inputs predict forgetting? a toy, two minutes
bash launch/local.sh test [pytest args]           set-up on first use, then the tests, but for the slow ones
bash launch/local.sh test --slow|--fast|--all ... the slow ones alone; the quick ones alone; every test
bash launch/local.sh lint                         ruff and the type checker
bash launch/local.sh setup [--dev]                only the set-up: .venv in the checkout, pinned packages
bash launch/local.sh lock                         remake the two lock files in launch from pyproject.toml
Works from any folder. An experiment may be given relative to where you are, or to the checkout.
Needs Python 3.11 or newer; CL_JAX_PYTHON names another interpreter than python3.
TEXT
}

say() { printf 'cl_jax: %s\n' "$1" >&2; }
fail() { say "$1"; exit "${2:-2}"; }

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
  local candidate found=""
  if [ -n "${CL_JAX_PYTHON:-}" ]; then
    command -v "$CL_JAX_PYTHON" >/dev/null 2>&1 || fail "CL_JAX_PYTHON names $CL_JAX_PYTHON, which is not there."
    new_enough "$CL_JAX_PYTHON" ||
      fail "Python 3.11 or newer is needed; CL_JAX_PYTHON names $CL_JAX_PYTHON ($("$CL_JAX_PYTHON" --version 2>&1 || true))."
    printf '%s' "$CL_JAX_PYTHON"; return
  fi
  for candidate in python3 python3.14 python3.13 python3.12 python3.11 python; do
    command -v "$candidate" >/dev/null 2>&1 || continue
    if new_enough "$candidate"; then printf '%s' "$candidate"; return; fi
    found="$found${found:+, }$candidate ($("$candidate" --version 2>&1 || true))"
  done
  if [ -n "$found" ]; then
    fail "Python 3.11 or newer is needed; found only $found. Install a newer one, or name it in CL_JAX_PYTHON."
  fi
  fail "Python is not installed (looked for python3, python3.14 ... python). Install Python 3.11 or newer."
}

# Which set-up a stamp stands for: the pinned packages, and where the checkout is (console scripts hold its path).
state() { printf '%s:%s' "$(cat "$@" "$root/pyproject.toml" | cksum | tr ' ' '-')" "$root"; }
stamped() { [ -x "$venv/bin/python" ] && [ -f "$1" ] && [ "$(cat "$1")" = "$(state "${@:2}")" ]; }
have() { stamped "$venv/run.stamp" "$lock" && { [ "$1" = run ] || stamped "$venv/dev.stamp" "$lock" "$lock_dev"; }; }

hold() {
  local waited=0
  until mkdir "$held" 2>/dev/null; do
    # A set-up that was killed leaves its lock; one on this machine is known dead by its process, any other by age.
    if [ "$waited" -ge 600 ] || { [ "$(cat "$held/host" 2>/dev/null)" = "$(uname -n)" ] &&
         ! kill -0 "$(cat "$held/pid" 2>/dev/null)" 2>/dev/null; }; then
      rm -rf "$held"; continue
    fi
    [ -w "$root" ] || fail "$root is not writable, and .venv has to be made in it."
    [ "$waited" -gt 0 ] || say "another set-up is under way (or was killed: $held), waiting"
    sleep 2; waited=$((waited + 2))
  done
  trap 'rm -rf "$held"' EXIT
  printf '%s' "$$" >"$held/pid"; uname -n >"$held/host"
}

imported="jax, optax, orbax.checkpoint, pyarrow.parquet, tyro, rich.progress, matplotlib.pyplot"

# run: what experiments need. dev: also what tests and lint need. A stamp is written last: without the right one for
# `run`, whatever is in .venv is made anew.
setup() {
  local kind=$1 python wanted=$lock log="$venv/setup.log"
  if have "$kind"; then return; fi
  python=$(find_python)
  hold
  if [ "$kind" = dev ]; then wanted=$lock_dev; fi
  if ! have "$kind"; then
    say "setting up .venv for $kind, once; less than a minute where the network is fast"
    if ! have run; then
      rm -rf "$venv"
      "$python" -m venv "$venv" || fail "python -m venv failed: install your system's package for it (Debian: python3-venv)"
    fi
    rm -f "$venv/dev.stamp"
    # Without --no-compile pip compiles every module of every package, which takes as long as the rest; the import
    # compiles those that are used, and finds what does not work on this machine.
    if ! { "$venv/bin/python" -m pip install --disable-pip-version-check --no-compile -r "$wanted" &&
           "$venv/bin/python" -m pip install --disable-pip-version-check --no-deps -e "$root" &&
           env -u PYTHONDONTWRITEBYTECODE JAX_PLATFORMS=cpu "$venv/bin/python" -c "import $imported"
         } >"$log" 2>&1; then
      tail -n 15 "$log" >&2
      fail "installing failed (whole log: $log). Check the network and the disk, then run this again." 1
    fi
    state "$lock" >"$venv/run.stamp"
    if [ "$kind" = dev ]; then state "$lock" "$lock_dev" >"$venv/dev.stamp"; fi
  fi
  rm -rf "$held"; trap - EXIT
}

# Both files have a sha256 of every distribution and markers for every platform and Python from 3.11 on.
remake_lock() {
  local python scratch made="by: bash launch/local.sh lock"
  python=$(find_python); scratch=$(mktemp -d); trap "rm -rf '$scratch'" EXIT
  "$python" -m venv "$scratch/venv"
  "$scratch/venv/bin/python" -m pip install --quiet --disable-pip-version-check uv
  cp "$root/pyproject.toml" "$scratch"; cd "$scratch"
  set -- venv/bin/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest --generate-hashes \
    --no-header --no-annotate pyproject.toml
  # All first: what tests need may bound what runs need, and both are installed into one .venv.
  "$@" --extra dev -o all.txt
  "$@" --constraints all.txt -o run.txt
  { printf '# What cl_jax needs to run, pinned; made from pyproject.toml %s\n' "$made"; cat run.txt; } >run.lock
  {
    printf "# What tests and lint need on top; made from pyproject.toml's extra 'dev' %s\n" "$made"
    printf -- '-r requirements.lock\n'
    awk 'FNR == 1 { file++ } file == 1 { if (/==/) held[$1] = 1; next } /==/ { keep = !($1 in held) } keep' run.txt all.txt
  } >dev.lock
  mv run.lock "$lock"; mv dev.lock "$lock_dev"
}

# An experiment or a run that is not where the caller stands may be the checkout's own.
in_checkout() { [ ! -e "$1" ] && { [ -f "$root/$1/config.py" ] || [ -f "$root/$1/results.parquet" ]; }; }

command=${1:-help}
[ $# -gt 0 ] && shift
case "$command" in
  help|-h|--help) usage ;;
  setup) if [ "${1:-}" = --dev ]; then setup dev; else setup run; fi ;;
  lock) remake_lock ;;
  lint)
    setup dev; cd "$root"
    "$venv/bin/ruff" check . && "$venv/bin/ruff" format --check . && "$venv/bin/basedpyright" ;;
  test)
    setup dev; cd "$root"
    marks="not slow"
    case "${1:-}" in
      --slow) marks="slow"; shift ;;
      --fast) marks="not slow and not thorough"; shift ;;
      --all) marks="slow or not slow"; shift ;;
    esac
    JAX_PLATFORMS=cpu exec "$venv/bin/python" -m pytest -n 2 --dist loadfile -m "$marks" "$@" ;;
  run|plan|report|adapt|list|shards|worker|launch|status|gather)
    setup run
    words=()
    for word in "$@"; do
      if in_checkout "$word"; then word="$root/$word"; fi
      words+=("$word")
    done
    exec "$venv/bin/cl-jax" "$command" ${words[@]+"${words[@]}"} ;;
  benchmark)
    setup run
    # -P: a folder named experiments where the caller stands is not meant.
    PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec "$venv/bin/python" -P -m experiments.benchmark "$@" ;;
  conversations)
    setup run
    PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec "$venv/bin/python" -P -m experiments.conversation_stream "$@" ;;
  parity)
    setup run
    PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec "$venv/bin/python" -P -m experiments.parity_kl "$@" ;;
  *) usage >&2; fail "unknown command '$command'; known: run, plan, report, adapt, list, shards, worker, launch, status, gather, benchmark, conversations, parity, test, lint, setup, lock" ;;
esac
