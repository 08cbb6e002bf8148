"""A measurement that needs a fresh process: forced host devices, or the most memory that was ever in use."""

import json
import resource
import sys
from pathlib import Path
from typing import Any

import jax


def main(asked: dict[str, Any]) -> dict[str, Any]:
    """Trains `members` of `case` on `devices`; says how long a member-step took and how much memory it all took."""
    if jax.config.values["jax_platforms"] in (None, "", "cpu"):
        jax.config.update("jax_num_cpu_devices", asked["devices"])
    from experiments.benchmark import engine
    from experiments.benchmark.cases import Case, images
    from experiments.benchmark.measure import Contestant, race, timed, warm

    case = Case(**asked["case"])
    run, data, count = case.run(steps=asked["steps"]), images(case.kind), asked["members"]
    packing = engine.Packing(1, 1) if asked.get("one_by_one") else engine.chosen(run, data, [count])[count]
    group = engine.Engine(run, data, packing, count)
    found = warm(Contestant(name="steps", run=timed(lambda: group.steps(asked["steps"])), units=asked["steps"] * count))
    timing = race([found], rounds=9, seconds=asked["seconds"])["steps"]
    return {
        "ms": timing.spread(1e3)._asdict(),
        "devices": packing.devices,
        "width": packing.width,
        "peak_bytes": peak_bytes(),
        "state_bytes": engine.state_bytes(run, data) * count,
        "data_bytes": data.images.nbytes + data.labels.nbytes,
    }


def peak_bytes() -> int:
    """Of the accelerator where it tells, else of this process."""
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    status = Path("/proc/self/status")
    if status.is_file():  # ru_maxrss would also count the process that started this one
        return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
