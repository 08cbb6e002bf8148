"""Writes Kubernetes manifests that train a sweep; nothing is applied.

    cl-jax shards experiments/quickstart --out /runs/fleet --members 20
    python launch/k8s.py /runs/fleet --image registry/cl_jax:1 --claim runs --mount /runs
    kubectl apply -f /runs/fleet/launch/job.yaml

job     an Indexed Job: a pod a shard
jobset  a JobSet a shard, whose pods are the hosts of a TPU slice
rayjob  a RayJob: `cl-jax launch ray` on a cluster that lives as long as the sweep trains

Kubernetes only decides where and when; what makes that safe is in the worker and in the folder. Nothing but Python's
standard library is imported here, and what is written is the same each time. Exit codes: 0 written; 2 a mistake.

Source: the API references of Kubernetes (Job), JobSet (v1alpha2), KubeRay (v1) and Kueue; GKE's of TPU and spot nodes.
"""

import argparse
import json
import math
import re
import shlex
import sys
from pathlib import Path, PurePosixPath
from typing import Any

MISTAKE, PREEMPTED = 2, 75  # of a worker
FAULTS = 3  # times that a shard may end by a fault or a signal and is started again
RESTARTS = 20  # of a slice: a host that is lost takes the others with it, which Kubernetes cannot tell from a fault
GRACE_SECONDS, SPOT_SECONDS = 60, 15  # from SIGTERM to SIGKILL; a spot node of GKE gives no more
MOST_SHARDS = 100_000  # of an Indexed Job with a limit of failures for each index
SPOT = "cloud.google.com/gke-spot"
HEAD = {"cpu": "1", "memory": "4Gi"}  # of a Ray cluster: it trains nothing

LABEL = r"[a-z0-9]([a-z0-9-]{0,%d}[a-z0-9])?"
PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
TAG = r"(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[0-9a-f]{64})?"
IMAGE = rf"([a-zA-Z0-9.-]+(:[0-9]{{1,5}})?/)?{PART}(/{PART})*{TAG}"
RULES = {  # by option: what it has to match, and that in words
    "image": (IMAGE, "an image such as registry/cl_jax:1"),
    # Pods and their host names are called after it, with numbers behind.
    "name": (LABEL % 30, "1 to 32 letters a-z, digits and '-', no '-' at the ends, such as fleet"),
    "claim": (LABEL % 61, "the name of a PersistentVolumeClaim: letters a-z, digits and '-', such as runs"),
    "queue": (LABEL % 61, "the name of a Kueue LocalQueue: letters a-z, digits and '-', such as research"),
    "mount": (r"(/[A-Za-z0-9_.=+-]+)+/?", "an absolute path of letters, digits and _.=+-, such as /runs"),
    "memory": (r"[1-9][0-9]{0,5}(\.[0-9]{1,3})?[KMGT]i?", "a size with its unit, such as 8Gi"),
    "accelerator": (LABEL % 61, "a type of GKE, such as tpu-v5-lite-podslice"),
    "topology": (r"[1-9][0-9]{0,2}x[1-9][0-9]{0,2}(x[1-9][0-9]{0,2})?", "chips by chips, such as 2x4 or 2x2x4"),
}
KINDS = ("job", "jobset", "rayjob")
TPU = ("accelerator", "topology", "chips")

Tree = dict[str, Any]


class Mistake(ValueError):
    """Of the user."""


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write Kubernetes manifests that train a sweep.", allow_abbrev=False)
    parser.add_argument("out", type=Path, help="the folder that sweep.json is in")
    parser.add_argument("--image", help="that pods run, with cl-jax on its path; see launch/Dockerfile")
    parser.add_argument("--kind", default="job", help=f"one of {', '.join(KINDS)}; left out: job")
    parser.add_argument("--name", help="of what is made; left out: the experiment's")
    parser.add_argument("--claim", help="the PersistentVolumeClaim that the sweep is in; many pods write to it")
    parser.add_argument("--mount", help="where pods see it; left out: as OUT")
    parser.add_argument("--cpus", type=float, default=1, help="CPUs a pod; left out: 1")
    parser.add_argument("--memory", default="8Gi", help="of a pod; left out: 8Gi")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs a pod, not of jobset; left out: 0")
    parser.add_argument("--accelerator", help="TPU type, such as tpu-v5-lite-podslice")
    parser.add_argument("--topology", help="of the TPU slice that a shard has, such as 2x4")
    parser.add_argument("--chips", type=int, help="TPU chips a host")
    parser.add_argument("--hosts", type=int, default=1, help="of the TPU slice; left out: 1")
    parser.add_argument("--queue", help="Kueue's LocalQueue, which says when it starts")
    parser.add_argument("--spot", action="store_true", help="on spot nodes of GKE, which may go at any time")
    parser.add_argument("--at-once", type=int, help="shards that train at a time, not of jobset; left out: all")
    return parser.parse_args(words)


def check(given: argparse.Namespace, shards: int) -> None:
    """Raises Mistake."""
    for name, (pattern, words) in RULES.items():
        value = getattr(given, name)
        if value is None and name in ("image", "claim"):
            raise Mistake(f"--{name}: give {words}")
        if value is not None and not re.fullmatch(pattern, value):
            raise Mistake(f"--{name}: was given {value!r}; give {words}")
    if given.kind not in KINDS:
        raise Mistake(f"--kind: was given {given.kind!r}; known: {', '.join(KINDS)}")
    if not 0.001 <= given.cpus <= 10_000:
        raise Mistake(f"--cpus: was given {given.cpus:g}; allowed are 0.001 to 10000")
    if not (0 <= given.gpus <= 1000 and given.gpus == int(given.gpus)):
        raise Mistake(f"--gpus: was given {given.gpus:g}; a pod has a whole number of them, 0 to 1000")
    for name, most in (("chips", 1000), ("hosts", 10_000), ("at_once", shards)):
        value = getattr(given, name)
        if value is not None and not 1 <= value <= most:
            raise Mistake(f"--{name.replace('_', '-')}: was given {value}; allowed are 1 to {most}")
    if ".." in PurePosixPath(given.mount).parts:
        raise Mistake(f"--mount: was given {given.mount!r}; give it without ..")
    if shards > MOST_SHARDS:
        raise Mistake(f"the sweep has {shards} shards, Kubernetes takes up to {MOST_SHARDS}: make larger ones")
    _check_tpu(given)


def _check_tpu(given: argparse.Namespace) -> None:
    asked = [name for name in TPU if getattr(given, name) is not None]
    if not asked and given.kind != "jobset":
        if given.hosts > 1:
            raise Mistake("--hosts: is of a TPU slice, with --kind jobset, --accelerator, --topology and --chips")
        return
    if len(asked) < len(TPU):
        lacking = " and ".join(f"--{name}" for name in TPU if name not in asked)
        raise Mistake(f"a TPU slice is named by --accelerator, --topology and --chips: give {lacking} too")
    if given.kind == "rayjob":
        raise Mistake("--accelerator: a rayjob has none; give --kind job for one host, jobset for several")
    if given.kind == "job" and given.hosts > 1:
        raise Mistake("--hosts: a job has one host a shard; give --kind jobset")
    if given.gpus:
        raise Mistake("--gpus: a pod has these or TPU chips; give one of them")
    if given.kind == "jobset" and given.at_once is not None:
        raise Mistake("--at-once: a jobset starts when a slice is free; leave it out, or bound it by --queue")
    there = math.prod(map(int, given.topology.split("x")))
    if there != given.chips * given.hosts:
        raise Mistake(
            f"--topology: {given.topology} has {there} chips, --hosts {given.hosts} with --chips {given.chips} "
            f"have {given.hosts * given.chips}; make them the same"
        )


def seen_by_pods(out: Path, mount: str) -> str:
    """The folder of the sweep: where it is, if the claim is mounted around that, or else the claim's root."""
    return str(out) if PurePosixPath(out).is_relative_to(mount) else mount


def pod(given: argparse.Namespace, container: Tree, needs: Tree | None = None) -> Tree:
    """A pod template: the container with the claim, what it needs and where it may run."""
    where: Tree = {}
    needs = dict(needs or {"cpu": f"{given.cpus:g}", "memory": given.memory})
    if container["name"] != "ray-head":
        if given.gpus:
            needs["nvidia.com/gpu"] = str(int(given.gpus))
        if given.accelerator:
            needs["google.com/tpu"] = str(given.chips)
            where["cloud.google.com/gke-tpu-accelerator"] = given.accelerator
            where["cloud.google.com/gke-tpu-topology"] = given.topology
        if given.spot:
            where[SPOT] = "true"
    spec: Tree = {
        "terminationGracePeriodSeconds": SPOT_SECONDS if given.spot else GRACE_SECONDS,
        "automountServiceAccountToken": False,
        "securityContext": {"fsGroup": 1000},  # the user of launch/Dockerfile may write to the claim
        "containers": [
            {
                "name": container["name"],
                "image": given.image,
                **container,
                "resources": {"requests": needs, "limits": dict(needs)},
                "volumeMounts": [{"name": "sweep", "mountPath": given.mount}],
            }
        ],
        "volumes": [{"name": "sweep", "persistentVolumeClaim": {"claimName": given.claim}}],
    }
    if where:
        spec["nodeSelector"] = where
    if SPOT in where:
        spec["tolerations"] = [{"key": SPOT, "operator": "Equal", "value": "true", "effect": "NoSchedule"}]
    return {"spec": spec}


def worker(given: argparse.Namespace, out: str, shard: str, *more: str) -> Tree:
    """A pod template that runs a worker once."""
    words = ["worker", "--sweep", f"{out}/sweep.json", "--shard", shard, *more, "--quiet"]
    made = pod(given, {"name": "worker", "command": ["cl-jax"], "args": words})
    made["spec"] = {"restartPolicy": "Never", **made["spec"]}
    return made


def failures(mistake: str) -> Tree:
    """Exit codes as launch/README.md has them; `mistake`: what to do where another start would only repeat it."""

    def code(action: str, value: int) -> Tree:
        return {"action": action, "onExitCodes": {"containerName": "worker", "operator": "In", "values": [value]}}

    gone = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    return {"rules": [code(mistake, MISTAKE), code("Ignore", PREEMPTED), gone]}


def head(given: argparse.Namespace, version: str, kind: str, name: str) -> Tree:
    metadata: Tree = {"name": name}
    if given.queue:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": given.queue}
    return {"apiVersion": version, "kind": kind, "metadata": metadata}


def waiting(given: argparse.Namespace) -> Tree:
    return {"suspend": True} if given.queue else {}  # until Kueue has room


def job(given: argparse.Namespace, out: str, shards: int) -> list[Tree]:
    spec = {
        **waiting(given),
        "completionMode": "Indexed",
        "completions": shards,
        "parallelism": given.at_once or shards,
        "backoffLimitPerIndex": FAULTS,  # and none for all: the other shards go on
        "podFailurePolicy": failures("FailIndex"),
        "template": worker(given, out, "$(JOB_COMPLETION_INDEX)"),
    }
    return [{**head(given, "batch/v1", "Job", given.name), "spec": spec}]


def jobset(given: argparse.Namespace, out: str, shards: int) -> list[Tree]:
    """One a shard: a JobSet that starts again does so as a whole, and the other shards go on."""
    made = []
    for shard in range(shards):
        together = ("--processes", "auto") if given.hosts > 1 else ()
        spec = {
            "completionMode": "Indexed",
            "completions": given.hosts,
            "parallelism": given.hosts,
            "backoffLimit": 0,  # hosts start again together
            "podFailurePolicy": failures("FailJob"),
            "template": worker(given, out, str(shard), *together),
        }
        rule = {"name": "mistake", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
        whole = {
            **waiting(given),
            "network": {"enableDNSHostnames": True},
            "failurePolicy": {"maxRestarts": RESTARTS, "rules": [rule]},
            "replicatedJobs": [{"name": "slice", "replicas": 1, "template": {"spec": spec}}],
        }
        made.append({**head(given, "jobset.x-k8s.io/v1alpha2", "JobSet", f"{given.name}-{shard}"), "spec": whole})
    return made


def rayjob(given: argparse.Namespace, out: str, shards: int) -> list[Tree]:
    count, cpus = given.at_once or shards, math.ceil(given.cpus)
    words = ["cl-jax", "launch", "ray", out, "--cpus", str(cpus), "--gpus", str(int(given.gpus))]
    group = {
        "groupName": "workers",
        "replicas": count,
        "minReplicas": count,
        "maxReplicas": count,
        "rayStartParams": {"num-cpus": str(cpus)},
        "template": pod(given, {"name": "ray-worker"}, {"cpu": str(cpus), "memory": given.memory}),
    }
    first = {"rayStartParams": {"num-cpus": "0"}, "template": pod(given, {"name": "ray-head"}, HEAD)}
    spec = {
        **waiting(given),
        "entrypoint": shlex.join(words),
        "shutdownAfterJobFinishes": True,
        "backoffLimit": 0,  # `launch ray` has tried what is worth it, and fails for mistakes too
        "rayClusterSpec": {"headGroupSpec": first, "workerGroupSpecs": [group]},
    }
    return [{**head(given, "ray.io/v1", "RayJob", given.name), "spec": spec}]


def in_yaml(tree: Any, indent: str = "") -> str:
    """Block style; only words that no version of YAML reads as anything else are without quotes."""
    if isinstance(tree, dict):
        return "".join(f"{indent}{_scalar(key)}:{_value(value, indent + '  ')}" for key, value in tree.items())
    lines = []
    for value in tree:
        inner = in_yaml(value, indent + "  ") if _block(value) else f"{indent}  {_scalar(value)}\n"
        lines.append(f"{indent}- {inner[len(indent) + 2 :]}")
    return "".join(lines)


def _value(value: Any, indent: str) -> str:
    return "\n" + in_yaml(value, indent) if _block(value) else f" {_scalar(value)}\n"


def _block(value: Any) -> bool:
    return isinstance(value, dict | list) and bool(value)


def _scalar(value: Any) -> str:
    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z][A-Za-z0-9]*([./_-]+[A-Za-z0-9]+)*", value)
    if plain and value.lower() not in ("y", "n", "yes", "no", "on", "off", "true", "false", "null"):
        return value
    return json.dumps(value)


def read(file: Path) -> tuple[str, str, int]:
    """The name of a sweep, its experiment and how many shards it has."""
    try:
        sweep = json.loads(file.read_text())
        return str(sweep["name"]), str(sweep["experiment"]), len(sweep["shards"])
    except (ValueError, KeyError, TypeError) as error:
        raise Mistake(f"{file}: is broken ({error}); make the sweep anew by `cl-jax shards`") from error


def main(words: list[str] | None = None) -> None:
    given = parse(words)
    file = given.out.resolve() / "sweep.json"
    try:
        if not file.is_file():
            raise Mistake(f"no sweep.json in {given.out}: give the folder that `cl-jax shards` has written")
        name, experiment, shards = read(file)
        given.mount = given.mount or str(file.parent)
        given.name = given.name or re.sub(r"[^a-z0-9]+", "-", name.lower())[:32].strip("-") or "sweep"
        check(given, shards)
    except (Mistake, OSError) as mistake:
        print(f"launch k8s: {mistake}", file=sys.stderr)
        raise SystemExit(MISTAKE) from None
    out = seen_by_pods(file.parent, given.mount)
    made = {"job": job, "jobset": jobset, "rayjob": rayjob}[given.kind](given, out, shards)
    target = given.out / "launch" / f"{given.kind}.yaml"
    target.parent.mkdir(exist_ok=True)
    target.write_text("# Written by cl-jax launch k8s.\n" + "---\n".join(map(in_yaml, made)))
    print(f"{given.kind} of {shards} shards: {target}")
    print(f"pods read {out}/sweep.json in claim {given.claim}, and the experiment at {experiment}")
    if given.spot:
        print(f"spot nodes give a pod {SPOT_SECONDS} s to save; what takes longer is trained again from its last save")
    print(f"kubectl apply -f {shlex.quote(str(target))}")


if __name__ == "__main__":
    main()
