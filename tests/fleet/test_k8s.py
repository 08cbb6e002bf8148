"""launch/k8s.py: what it writes is what Kubernetes, JobSet and KubeRay accept, and keeps the rule of launch/README.md.

Jobs and pods are checked by Kubernetes' own schemas, the objects round them by small ones of ours, all of them strict.
"""

import copy
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

kubernetes_validate = pytest.importorskip(
    "kubernetes_validate", reason="kubernetes-validate is not installed: bash launch/local.sh setup --dev"
)
import jsonschema  # noqa: E402
import yaml  # noqa: E402
from kubernetes_validate import utils  # noqa: E402

from cl_jax import cli, options  # noqa: E402
from cl_jax.fleet import options as fleet  # noqa: E402
from cl_jax.fleet.start import PREEMPTED  # noqa: E402
from launch import k8s  # noqa: E402
from tests.fleet.sweeps import failed  # noqa: E402

KUBERNETES = "1.33"  # the first in which all of an Indexed Job's limits are stable
SCHEMAS = Path(__file__).parent / "schemas"
TPU = ["--accelerator", "tpu-v5-lite-podslice", "--topology", "4x4", "--chips", "4", "--hosts", "4"]
USED = {
    "job": ["--gpus", "1", "--spot", "--queue", "research", "--at-once", "2", "--cpus", "2.5", "--memory", "16Gi"],
    "jobset": [*TPU, "--spot", "--queue", "research"],
    "rayjob": ["--cpus", "4", "--gpus", "1", "--spot", "--queue", "research"],
}
FREE = ("nodeSelector", "requests", "limits", "rayStartParams")  # maps whose keys are anything


@pytest.fixture(scope="module", autouse=True)
def schemas_are_read_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "schema_contents", functools.cache(utils.schema_contents))
        yield


@pytest.fixture
def out(tmp_path: Path) -> Path:
    content = {"name": "Split digits, 2nd", "experiment": "/runs/experiment.py", "shards": [1, 2, 3]}
    (tmp_path / "sweep.json").write_text(json.dumps(content))
    return tmp_path


def written(out: Path, kind: str, *words: str) -> list[dict[str, Any]]:
    k8s.main([str(out), "--image", "example.org/cl_jax:1", "--claim", "runs", "--kind", kind, *words])
    return list(yaml.safe_load_all((out / "launch" / f"{kind}.yaml").read_text()))


def check(made: dict[str, Any]) -> None:
    """Raises jsonschema.ValidationError."""

    def by_kubernetes(version: str, kind: str, part: dict[str, Any]) -> None:
        named = {"metadata": {"name": "part"}, **part, "apiVersion": version, "kind": kind}
        kubernetes_validate.validate(named, KUBERNETES, strict=True)

    if made["kind"] == "Job":
        by_kubernetes("batch/v1", "Job", made)
    else:
        jsonschema.validate(made, json.loads((SCHEMAS / f"{made['kind'].lower()}.json").read_text()))
    if made["kind"] == "JobSet":
        for each in made["spec"]["replicatedJobs"]:
            by_kubernetes("batch/v1", "Job", each["template"])
    if made["kind"] == "RayJob":
        cluster = made["spec"]["rayClusterSpec"]
        for each in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            by_kubernetes("v1", "Pod", each["template"])
    jsonschema.validate(made["metadata"], json.loads((SCHEMAS / "kueue.json").read_text()))


def places(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of everything in a tree."""
    yield at
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from places(value, (*at, key))


def found(tree: Any, at: tuple[Any, ...]) -> Any:
    return functools.reduce(lambda part, key: part[key], at, tree)


def wrong(value: Any) -> Any:
    """Something of another type."""
    return ["wrong"] if isinstance(value, str | dict) else {"wrong": "type"}


@pytest.mark.parametrize("kind", k8s.KINDS)
def test_schemas_accept_it(kind: str, out: Path) -> None:
    """With every option and with none that may be left out."""
    for words in (USED[kind], TPU if kind == "jobset" else []):
        made = written(out, kind, *words)
        for each in made:
            check(each)
        assert len(made) == (3 if kind == "jobset" else 1)


@pytest.mark.parametrize("kind", k8s.KINDS)
def test_schemas_refuse_an_unknown_key_and_a_wrong_type_anywhere(kind: str, out: Path) -> None:
    made = written(out, kind, *USED[kind])[0]
    checked = 0
    for at in places(made):
        if at in ((), ("kind",), ("apiVersion",)):  # which schema is meant
            continue
        broken = copy.deepcopy(made)
        found(broken, at[:-1])[at[-1]] = wrong(found(made, at))
        with pytest.raises(jsonschema.ValidationError):
            check(broken)
            pytest.fail(f"a wrong type passes at {at}")
        checked += 1
    for at in places(made):
        if isinstance(found(made, at), dict) and not (at and at[-1] in FREE):
            broken = copy.deepcopy(made)
            found(broken, at)["unknownKey"] = "x"
            with pytest.raises(jsonschema.ValidationError):
                check(broken)
                pytest.fail(f"an unknown key passes at {at}")
            checked += 1
    assert checked > 60


@pytest.mark.parametrize("kind", k8s.KINDS)
def test_the_same_file_each_time(kind: str, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = out / "launch" / f"{kind}.yaml"
    made = written(out, kind, *USED[kind])
    content = file.read_bytes()
    written(out, kind, *USED[kind])
    assert file.read_bytes() == content
    assert f"kubectl apply -f {file}" in capsys.readouterr().out.splitlines()
    assert made[0]["metadata"]["name"] == f"split-digits-2nd{'-0' if kind == 'jobset' else ''}"
    assert made[0]["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "research"} and made[0]["spec"]["suspend"]


def test_words_that_yaml_would_take_for_something_else() -> None:
    tree = {"no": ["yes", "0x10", "1e3", "2", "~", "", "a: b", "- a", "1:30", "null", "x\n#y", "2x4", "é"]}
    tree |= {"a": {"b": [{"c": 1, "d": [["e"], {}]}, True]}, "f": {}, "g": []}
    assert yaml.safe_load(k8s.in_yaml(tree)) == tree


def rules(made: dict[str, Any]) -> dict[Any, str]:
    given = made["podFailurePolicy"]["rules"]
    return {each["onExitCodes"]["values"][0]: each["action"] for each in given if "onExitCodes" in each}


def test_a_job_keeps_the_rule(out: Path) -> None:
    """A pod a shard, again after 75 and lost nodes without end, never after 2, a few times after anything else."""
    (made,) = written(out, "job", *USED["job"])
    spec = made["spec"]
    assert (spec["completions"], spec["parallelism"], spec["backoffLimitPerIndex"]) == (3, 2, 3)
    assert "backoffLimit" not in spec and "maxFailedIndexes" not in spec  # would end the other shards
    assert rules(spec) == {2: "FailIndex", PREEMPTED: "Ignore"}
    assert spec["podFailurePolicy"]["rules"][-1]["onPodConditions"][0]["type"] == "DisruptionTarget"
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"] == {k8s.SPOT: "true"} and pod["tolerations"][0]["key"] == k8s.SPOT
    needs = pod["containers"][0]["resources"]
    assert needs["requests"] == needs["limits"] == {"cpu": "2.5", "memory": "16Gi", "nvidia.com/gpu": "1"}


def test_the_command_of_a_pod_is_one(out: Path) -> None:
    """As Kubernetes would call it for each shard."""
    (made,) = written(out, "job")
    container = made["spec"]["template"]["spec"]["containers"][0]
    assert container["command"] == ["cl-jax"]
    for shard in range(made["spec"]["completions"]):
        words = [word.replace("$(JOB_COMPLETION_INDEX)", str(shard)) for word in container["args"]]
        assert options.parse(words) == fleet.Worker(sweep=str(out / "sweep.json"), shard=shard, quiet=True)


def test_a_jobset_a_shard(out: Path) -> None:
    made = written(out, "jobset", *USED["jobset"])
    assert [each["metadata"]["name"][-2:] for each in made] == ["-0", "-1", "-2"]
    for shard, each in enumerate(made):
        (slice_,) = each["spec"]["replicatedJobs"]
        job = slice_["template"]["spec"]
        pod = job["template"]["spec"]
        assert job["completions"] == job["parallelism"] == 4 and job["backoffLimit"] == 0
        assert rules(job) == {2: "FailJob", PREEMPTED: "Ignore"}
        (rule,) = each["spec"]["failurePolicy"]["rules"]  # what FailJob gives as its reason
        assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
        words = pod["containers"][0]["args"]
        assert words[words.index("--shard") + 1] == str(shard) and words[words.index("--processes") + 1] == "auto"
        assert pod["containers"][0]["resources"]["limits"]["google.com/tpu"] == "4"
        assert pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == "tpu-v5-lite-podslice"
        assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"


def test_a_rayjob_calls_launch_ray(out: Path) -> None:
    (made,) = written(out, "rayjob", *USED["rayjob"])
    name, *words = made["spec"]["entrypoint"].split()
    assert name == "cl-jax" and made["spec"]["shutdownAfterJobFinishes"] is True
    assert made["spec"]["backoffLimit"] == 0  # it ends by 1 where a shard is a mistake, which nobody tries again
    command = options.parse(words)
    assert (command.engine, command.out, command.cpus, command.gpus) == ("ray", str(out), 4, 1)
    cluster = made["spec"]["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    assert group["replicas"] == 3 and cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    assert "nodeSelector" not in cluster["headGroupSpec"]["template"]["spec"]  # the head has to stay
    assert group["template"]["spec"]["nodeSelector"] == {k8s.SPOT: "true"}


def test_where_pods_find_the_sweep(out: Path) -> None:
    def seen(mount: str) -> str:
        (made,) = written(out, "job", "--mount", mount)
        container = made["spec"]["template"]["spec"]["containers"][0]
        assert container["volumeMounts"] == [{"name": "sweep", "mountPath": mount}]
        return container["args"][2]

    assert seen(str(out.parent)) == seen(str(out)) == f"{out}/sweep.json"
    assert seen("/elsewhere") == "/elsewhere/sweep.json"


MISTAKES = [
    ("--image Reg/X", "--image: was given 'Reg/X'; give an image such as registry/cl_jax:1"),
    ("--image a:b:c", "--image: was given 'a:b:c'"),
    ("--kind pod", "--kind: was given 'pod'; known: job, jobset, rayjob"),
    ("--name Fleet", "--name: was given 'Fleet'; give 1 to 32 letters"),
    ("--name a-", "--name: was given 'a-'"),
    (f"--name {'a' * 33}", "--name: was given 'aaa"),
    ("--claim my_runs", "--claim: was given 'my_runs'; give the name of a PersistentVolumeClaim"),
    ("--queue -", "--queue: was given '-'; give the name of a Kueue LocalQueue"),
    ("--mount runs", "--mount: was given 'runs'; give an absolute path"),
    ("--mount /a/$(X)", "--mount: was given '/a/$(X)'"),
    ("--mount /a/../b", "--mount: was given '/a/../b'; give it without .."),
    ("--memory 8", "--memory: was given '8'; give a size with its unit, such as 8Gi"),
    ("--memory 8GB", "--memory: was given '8GB'"),
    ("--memory 0Gi", "--memory: was given '0Gi'"),
    ("--cpus 0", "--cpus: was given 0; allowed are 0.001 to 10000"),
    ("--cpus nan", "--cpus: was given nan"),
    ("--gpus 0.5", "--gpus: was given 0.5; a pod has a whole number of them"),
    ("--at-once 4", "--at-once: was given 4; allowed are 1 to 3"),
    ("--hosts 0", "--hosts: was given 0; allowed are 1 to 10000"),
    ("--hosts 2", "--hosts: is of a TPU slice"),
    ("--kind jobset", "give --accelerator and --topology and --chips too"),
    ("--topology 2x4", "give --accelerator and --chips too"),
    ("--accelerator V5 --topology 2x4 --chips 8", "--accelerator: was given 'V5'"),
    ("--accelerator v5 --topology 8 --chips 8", "--topology: was given '8'; give chips by chips, such as 2x4"),
    ("--accelerator v5 --topology 2x4 --chips 4", "2x4 has 8 chips, --hosts 1 with --chips 4 have 4"),
    ("--accelerator v5 --topology 2x4 --chips 4 --hosts 2", "a job has one host a shard; give --kind jobset"),
    ("--accelerator v5 --topology 2x4 --chips 8 --gpus 1", "a pod has these or TPU chips"),
    ("--accelerator v5 --topology 2x4 --chips 8 --kind rayjob", "a rayjob has none"),
    ("--accelerator v5 --topology 2x4 --chips 8 --kind jobset --at-once 1", "bound it by --queue"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_mistakes_are_told(words: str, message: str, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        written(out, "job", *words.split())
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and message in said and len(said.splitlines()) == 1
    assert not (out / "launch").exists()


@pytest.mark.parametrize("image", ["cl_jax", "cl_jax:1.0", "a.b:5000/c/d-e", f"a/b:c@sha256:{'0' * 64}"])
def test_images(image: str, out: Path) -> None:
    (made,) = written(out, "job", "--image", image)
    assert made["spec"]["template"]["spec"]["containers"][0]["image"] == image


def test_what_is_not_given_or_broken(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: Any) -> str:
        with pytest.raises(SystemExit) as stopped:
            k8s.main(list(map(str, words)))
        assert stopped.value.code == 2
        return capsys.readouterr().err

    assert "--image: give an image such as" in said(out, "--claim", "a")
    assert "--claim: give the name of a Persistent" in said(out, "--image", "a")
    assert "no sweep.json in" in said(out / "none")
    (out / "sweep.json").write_text("{}")
    assert "is broken ('name'); make the sweep anew" in said(out)


def test_by_the_command_line(out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["launch", "k8s", str(out), "--image", "a", "--claim", "runs", "--cpus", "2", "--at-once", "1", "--spot"]
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert stopped.value.code == 0 and "kubectl apply" in capfd.readouterr().out
    made = yaml.safe_load((out / "launch" / "job.yaml").read_text())
    assert made["spec"]["parallelism"] == 1


def test_options_of_other_engines(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--address: is no option of launch k8s" in failed(capsys, "launch", "k8s", out, "--address", "a")
    assert "--image: is no option of launch ray" in failed(capsys, "launch", "ray", out, "--image", "a")
    assert "expected a whole number" in failed(capsys, "launch", "k8s", out, "--chips", "2.5")
