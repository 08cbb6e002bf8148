#!/usr/bin/env bash
# Everything on one machine: set-up on first use, then cl-jax or the tests. `bash launch/local.sh help` says more.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
venv="$root/.venv"
lock="$root/launch/requirements.lock"
stamp="$venv/cl_jax.stamp"

usage() {
  cat <<'TEXT'
bash launch/local.sh run experiments/quickstart   set-up on first use, then the experiment
bash launch/local.sh test [--fast] [pytest args]  set-up on first use, then every test (--fast: without the slow ones)
bash launch/local.sh lint                         ruff and the type checker
bash launch/local.sh plan|report|list ...         as cl-jax
bash launch/local.sh setup                        only the set-up: .venv in the checkout, pinned packages
bash launch/local.sh lock                         remake launch/requirements.lock from pyproject.toml
Needs Python 3.11 or newer; CL_JAX_PYTHON names another interpreter than python3.
TEXT
}

fail() { printf 'cl_jax: %s\n' "$1" >&2; exit "${2:-2}"; }

find_python() {
  local candidate found=""
  for candidate in ${CL_JAX_PYTHON:+"$CL_JAX_PYTHON"} python3 python3.13 python3.12 python3.11 python; do
    command -v "$candidate" >/dev/null 2>&1 || continue
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      printf '%s' "$candidate"; return
    fi
    found="$found $candidate ($("$candidate" --version 2>&1 || true))"
  done
  if [ -n "$found" ]; then
    fail "Python 3.11 or newer is needed; found only$found. Install a newer one, or name it in CL_JAX_PYTHON."
  fi
  fail "Python is not installed (looked for python3, python3.13 ... python). Install Python 3.11 or newer."
}

digest() { cat "$lock" "$root/pyproject.toml" "$root/launch/local.sh" | cksum | tr ' ' '-'; }

setup() {
  # The stamp is written last: without the right one, whatever is in .venv is made anew.
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(digest):$root" ] && [ -x "$venv/bin/python" ]; then return; fi
  local python held="$root/.venv.lock" log waited=0
  python=$(find_python)
  until mkdir "$held" 2>/dev/null; do
    # A set-up that was killed leaves its lock; after five minutes nobody is taken to hold it.
    if [ "$waited" -ge 300 ]; then rmdir "$held" 2>/dev/null || true; continue; fi
    [ "$waited" -gt 0 ] || echo "cl_jax: another set-up is under way, waiting" >&2
    sleep 2; waited=$((waited + 2))
  done
  trap 'rmdir "$root/.venv.lock" 2>/dev/null || true' EXIT
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(digest):$root" ]; then rmdir "$held"; trap - EXIT; return; fi
  echo "cl_jax: setting up .venv with $(grep -c '==' "$lock") packages, once; a minute or two" >&2
  rm -rf "$venv"
  "$python" -m venv "$venv" || fail "python -m venv failed: install your system's package for it (Debian: python3-venv)"
  log="$venv/setup.log"
  if ! { "$venv/bin/python" -m pip install --disable-pip-version-check -r "$lock" &&
         "$venv/bin/python" -m pip install --disable-pip-version-check --no-deps -e "$root"
       } >"$log" 2>&1; then
    tail -n 15 "$log" >&2
    fail "installing failed (whole log: .venv/setup.log). Check the network and the disk, then run this again." 1
  fi
  printf '%s:%s' "$(digest)" "$root" >"$stamp"
  rmdir "$held"; trap - EXIT
}

remake_lock() {
  local python scratch
  python=$(find_python); scratch=$(mktemp -d)
  cp "$root/pyproject.toml" "$root/README.md" "$scratch"
  mkdir "$scratch/cl_jax" && touch "$scratch/cl_jax/__init__.py" && cp "$root/LICENSE" "$scratch"
  "$python" -m venv "$scratch/venv"
  "$scratch/venv/bin/pip" install --quiet "$scratch[dev]"
  { head -n 1 "$lock"; "$scratch/venv/bin/pip" freeze --exclude cl_jax; } >"$scratch/requirements.lock"
  mv "$scratch/requirements.lock" "$lock"; rm -rf "$scratch"
}

command=${1:-help}
[ $# -gt 0 ] && shift
case "$command" in
  help|-h|--help) usage ;;
  setup) setup ;;
  lock) remake_lock ;;
  lint)
    setup; cd "$root"
    "$venv/bin/ruff" check . && "$venv/bin/ruff" format --check . && "$venv/bin/basedpyright" ;;
  test)
    setup; cd "$root"
    marks=()
    if [ "${1:-}" = --fast ]; then marks=(-m "not slow"); shift; fi
    JAX_PLATFORMS=cpu exec "$venv/bin/python" -m pytest -n 2 --dist loadfile "${marks[@]}" "$@" ;;
  *)
    setup
    # An experiment that is not where the caller stands may be the checkout's own.
    if [ $# -gt 0 ] && [ ! -e "$1" ] && [ -e "$root/$1" ]; then set -- "$root/$1" "${@:2}"; fi
    exec "$venv/bin/cl-jax" "$command" "$@" ;;
esac
