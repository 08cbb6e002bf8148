"""Trains a sweep on a SLURM cluster: a job array, each task of which runs `cl-jax worker` for one shard.

    cl-jax shards experiments/quickstart --out runs/fleet --members 20
    python launch/slurm.py runs/fleet --partition short --cpus 4

SLURM only decides where and when. What makes that safe is in the worker and in the folder, which every node has to see
under the same path: a task may be run again, elsewhere or twice. The script that is submitted stays in OUT/launch, and
is all that SLURM gets to see. Only the shards that are not done are in it, so that the same command again goes on.

Exit codes: 0 submitted, or written (--dry), or nothing is left to do; 2 a mistake, or there is no sbatch.
"""

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

DIGITS = r"[0-9]{1,9}"
NOTICE = 120  # seconds before the time is up at which a task is told; SLURM may be a minute early
LEAST = 300  # seconds of --time
SIGNALS = 3  # times that a shard's process may die by a signal, such as that of a machine out of memory
HEAD = """\
#!/bin/bash
# By `cl-jax launch slurm`, which writes it anew each time.
{directives}
set -u
signals={signals}
logs={logs}
worker=({worker})
tell() {{ {tell}; }}
"""
BODY = """\
shard=$SLURM_ARRAY_TASK_ID
task=${SLURM_ARRAY_JOB_ID}_$shard  # not SLURM_JOB_ID: of one task, that is the whole array's

say() { echo "slurm: task $task, shard $shard: $1"; }

again() {
  trap '' TERM
  for pause in 1 10 30; do
    # In any other state it is being cancelled, which is meant to last, or requeued by somebody else.
    if state=$(scontrol --oneliner show job "$task"); then
      [[ $state == *JobState=RUNNING* ]] || break
      scontrol requeue "$task" && break
    fi
    sleep "$pause"
  done
  exit 75
}

told=0
trap 'told=$((told + 1)); tell' TERM
"${worker[@]}" --shard "$shard" &
heard=-1
until [ "$heard" = "$told" ]; do  # being told ends `wait` before the worker has ended
  heard=$told
  wait "$!"
  code=$?
done

if [ "$code" = 75 ] || { [ "$code" = 143 ] && [ "$told" -gt 0 ]; }; then  # 143: it had not begun to listen
  say "told to go; again"
  again
elif [ "$code" -gt 128 ]; then
  say "signal $((code - 128))"
  deaths=$logs/shard-$shard.deaths  # SLURM_RESTART_COUNT would count how often it was told to go, too
  echo "$task $code" >>"$deaths" && [ "$(grep -c "^$task " "$deaths")" -le "$signals" ] && again
fi
say "exit code $code"
exit "$code"
"""


class Mistake(ValueError):
    """Of the user's."""


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a sweep on a SLURM cluster.")
    parser.add_argument("out", type=Path, help="the folder that sweep.json is in; every node sees it under this path")
    parser.add_argument("--partition", help="to submit to, or several with commas; left out: the cluster's default")
    parser.add_argument("--time", default="04:00:00", help="that a task may run at a time; left out: 04:00:00")
    parser.add_argument("--cpus", default="1", help="CPUs a shard, on each of its nodes; left out: 1")
    parser.add_argument("--gpus", default="0", help="GPUs a shard, on each of its nodes; left out: 0")
    parser.add_argument("--nodes", default="1", help="nodes that train a shard together; left out: 1")
    parser.add_argument("--at-once", help="shards that run at a time; left out: as many as fit")
    parser.add_argument(
        "--worker", default=f"{shlex.quote(sys.executable)} -m cl_jax.cli worker", help="command of a worker"
    )
    parser.add_argument("--dry", action="store_true", help="only write the script")
    return parser.parse_args(words)


def shards_left(file: Path) -> tuple[list[int], int]:
    """Numbers of the shards that are not done, and how many there are in all."""
    if not file.is_file():
        raise Mistake(f"no sweep.json in {file.parent}: give the folder that `cl-jax shards` has written")
    try:
        folders = [file.parent / "shards" / shard["folder"] for shard in json.loads(file.read_text())["shards"]]
    except (ValueError, TypeError, KeyError) as error:
        raise Mistake(f"{file}: is broken ({error!r}); make the sweep anew by `cl-jax shards`") from error
    return [number for number, folder in enumerate(folders) if not (folder / "DONE.json").is_file()], len(folders)


def render(given: argparse.Namespace, left: Sequence[int]) -> str:
    """The script that is submitted.

    Args:
        given: options, as they were typed.
        left: numbers of the shards to train, in order.

    Raises:
        Mistake: an option is not right.
    """
    out = given.out.resolve()
    if re.search(r"[\\\x00-\x1f\x7f]", str(out)):
        raise Mistake(f"{str(out)!r}: SLURM has no way to write a backslash or a line break in a path; move the folder")
    cpus, gpus, nodes = _count("cpus", given.cpus), _count("gpus", given.gpus, least=0), _count("nodes", given.nodes)
    at_once = "" if given.at_once is None else f"%{_count('at-once', given.at_once)}"
    if given.partition is not None and not re.fullmatch(r"\w[\w.-]*(,\w[\w.-]*)*", given.partition, re.ASCII):
        raise Mistake(f"--partition: was given {given.partition!r}; give the name of one, see sinfo, or a,b for either")
    options = {
        "job-name": re.sub(r"[^A-Za-z0-9_.-]+", "-", f"cl-jax-{out.name}"),
        "array": _ranges(left) + at_once,
        "partition": given.partition,
        "time": _time(given.time),
        "nodes": str(nodes),
        "ntasks-per-node": "1",
        "cpus-per-task": str(cpus),
        "gres": f"gpu:{gpus}" if gpus else None,
        "signal": f"B:TERM@{NOTICE}",
        "open-mode": "append",
        "output": f"{out}/logs/shard-".replace("%", "%%") + "%a.log",
    }
    lines = ["--requeue", *(f"--{name}={_quoted(value)}" for name, value in options.items() if value)]
    worker, tell = [*_words(given.worker), "--sweep", str(out / "sweep.json"), "--quiet"], "kill -TERM $(jobs -p)"
    if nodes > 1:  # srun itself, told to go, would kill what it has started
        tell = 'scancel --signal=TERM "$task"'
        worker = ["srun", f"--ntasks={nodes}", f"--cpus-per-task={cpus}", *worker, "--processes", "auto"]
    head = HEAD.format(
        directives="\n".join(f"#SBATCH {line}" for line in lines),
        logs=shlex.quote(str(out / "logs")), worker=shlex.join(worker), signals=SIGNALS,
        tell=f"{tell} 2>/dev/null",
    )  # fmt: skip
    return head + BODY


def _quoted(value: str) -> str:
    """As SLURM reads its lines: between double quotes a backslash makes plain what follows, and nothing else counts."""
    return value if re.fullmatch(r"[\w./=%:@,+-]+", value) else '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'


def _count(name: str, text: str, least: int = 1) -> int:
    if not re.fullmatch(rf"{DIGITS}(\.0)?", text) or float(text) < least:
        raise Mistake(f"--{name}: was given {text!r}; SLURM takes a whole number from {least}")
    return int(float(text))


def _time(text: str) -> str:
    """SLURM's own forms: minutes, minutes:seconds, hours:minutes:seconds, days-hours, with minutes, with seconds."""
    found = re.fullmatch(rf"(?:({DIGITS})-)?({DIGITS}(?::{DIGITS}){{0,2}})", text)
    if found is None:
        raise Mistake(f"--time: was given {text!r}; give hours:minutes:seconds, such as 04:00:00, or days-hours, 1-12")
    parts = [int(part) for part in found[2].split(":")]
    units = (3600, 60, 1) if found[1] or len(parts) == 3 else (60, 1)
    seconds = int(found[1] or 0) * 86400 + sum(part * unit for part, unit in zip(parts, units, strict=False))
    if seconds < LEAST:
        raise Mistake(
            f"--time: was given {text!r}, which is {seconds} s; from 00:05:00 on there is time to train before a task "
            f"is told to go, {NOTICE} s before the end"
        )
    return text


def _words(text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise Mistake(f"--worker: was given {text!r}, whose quotes do not match ({error})") from error
    if not words or any("\n" in word for word in words):
        raise Mistake(f"--worker: was given {text!r}; give a command in one line, such as 'cl-jax worker'")
    return words


def _ranges(numbers: Sequence[int]) -> str:
    """`0-2,5` for 0, 1, 2, 5."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def launch(given: argparse.Namespace) -> None:
    """Writes the script and submits it. Raises Mistake."""
    left, count = shards_left(given.out / "sweep.json")
    content = render(given, left)
    if not left:
        print(f"all {count} shards are done; next: cl-jax gather {shlex.quote(str(given.out))}")
        return
    script = given.out.resolve() / "launch" / "slurm.sh"
    for folder in (script.parent, script.parents[1] / "logs"):  # SLURM makes no folder of an output
        folder.mkdir(exist_ok=True)
    script.write_text(content)
    print(f"script: {script}", flush=True)
    if given.dry:
        return
    submit = shlex.join(["sbatch", str(script)])
    if shutil.which("sbatch") is None:
        raise Mistake(f"sbatch is not installed here; the script is written: on a machine of the cluster, {submit}")
    sent = subprocess.run(["sbatch", "--parsable", str(script)], stdout=subprocess.PIPE, text=True, check=False)
    if sent.returncode:
        many = "; MaxArraySize of slurm.conf is 1001 unless it says so: cut larger shards" if left[-1] > 1000 else ""
        raise Mistake(f"sbatch has refused it, see above{many}. Again: {submit}")
    job = sent.stdout.strip().partition(";")[0]
    print(f"job {job}: {len(left)} of {count} shards; logs: {script.parents[1] / 'logs'}")
    print(f"watch: cl-jax status {shlex.quote(str(given.out))} --watch")
    print(f"queue: squeue --jobs {job}; end it: scancel {job}")


def main(words: Sequence[str] | None = None) -> None:
    try:
        launch(parse(words))
    except Mistake as mistake:
        print(f"slurm: {mistake}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
