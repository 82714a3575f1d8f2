"""Does the server's record hold every task run of a prediction with thousands of shards?

::

    python -m benchmarks.record                   # 5,000 shards
    python -m benchmarks.record --shards 500

A prediction of as many shards as images runs against a real Prefect server on this machine,
with the settings that the project ships (``[tool.prefect]`` in pyproject.toml). The network is
a real one, a SqueezeNet with random weights, on images of 12 x 16 pixels: shards end as fast as
they can, faster than any real ones. What ran is read from the prediction's own output on the
console, what was recorded from the server's API. The progress artifact is read all the while,
and each of its values held against the parts that were there when it was written. A second
prediction of the same images in one shard tells what the shards cost.
Writes ``docs/benchmarks/record.md``.
"""

import argparse
import re
import shlex
import sys
import tempfile
import time
from bisect import bisect_right
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from uuid import UUID

import numpy as np
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    FlowRunFilter,
    FlowRunFilterId,
)

from benchmarks.machine import describe, seconds_of_process
from tests.e2e.machine import Machine, children, machine
from tests.tasks.pictures import encoded, pixels, put, save_model

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "record.md"

FINISHED = re.compile(r"Task run '.*' - Finished in state (\w+)")
"""What Prefect writes on the console when a task run ends."""

PATIENCE = 60.0
"""Seconds without a further record after which no more are awaited."""

LOOK = 3.0
"""Seconds between two looks at the progress artifact."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What ran, and what the record says of it.

    Attributes:
        ran: task runs by final state, as the prediction's console tells.
        recorded: task runs by state, as the server's API tells in the end.
        num_parts: parts that the prediction put.
        seconds: from the start of the prediction's process to its end.
        seconds_of_one: the same, of the same images in one shard.
        lag: from the end of the prediction's process until the last record changed.
        flow_state: what the flow run ended in.
        num_looks: different values of the progress artifact that were seen.
        off: by how many percentage points the worst of them was off.
        last: the artifact's value in the end, percent.
        megabytes: size of the server's database in the end, above that of an empty one.
        server_seconds: processor time that the server took, from the start of the prediction
            until the last record changed.
    """

    ran: Counter[str]
    recorded: Counter[str]
    num_parts: int
    seconds: float
    seconds_of_one: float
    lag: float
    flow_state: str
    num_looks: int
    off: float
    last: float
    megabytes: float
    server_seconds: float


def measure(work: Path, num_shards: int) -> Outcome:
    """A prediction against a new server, and another one for comparison."""
    with machine(work / "home") as made, get_client(sync_client=True) as client:
        server = made.start_server()
        empty, used = megabytes(made), processor_seconds(server.pid)
        start = time.monotonic()
        console, looks = watched(made, client, work)
        end = time.monotonic()
        ran = Counter(FINISHED.findall(console))
        [flow_run] = client.read_flow_runs()
        recorded, changed = settled(client, flow_run.id, ran)
        used = processor_seconds(server.pid) - used
        size = megabytes(made) - empty
        parts = sorted(path.stat().st_mtime for path in (work / "out").glob("parts/*/*.parquet"))
        one = time.monotonic()
        predict(made, work, "one", num_shards)
        return Outcome(
            ran=ran,
            recorded=recorded,
            num_parts=len(parts),
            seconds=end - start,
            seconds_of_one=time.monotonic() - one,
            lag=max(0.0, changed - end),
            flow_state=str(flow_run.state_name),
            num_looks=len(looks),
            off=max(
                abs(percent - 100 * bisect_right(parts, written) / num_shards)
                for written, percent in looks.items()
            ),
            last=looks[max(looks)],
            megabytes=size,
            server_seconds=used,
        )


def watched(made: Machine, client: SyncPrefectClient, work: Path) -> tuple[str, dict[float, float]]:
    """What a prediction wrote on the console; its progress by the time it was written, percent."""
    wanted = ArtifactFilter(key=ArtifactFilterKey(any_=["predict-progress"]))
    looks: dict[float, float] = {}

    def look() -> None:
        for artifact in client.read_artifacts(artifact_filter=wanted):
            assert artifact.updated is not None
            looks[artifact.updated.timestamp()] = float(str(artifact.data))

    with ThreadPoolExecutor(1) as pool:
        prediction = pool.submit(predict, made, work, "out", 1)
        while wait([prediction], LOOK).not_done:
            look()
    look()
    return prediction.result(), looks


def megabytes(made: Machine) -> float:
    """Size of the server's database."""
    return sum(path.stat().st_size for path in made.home.glob("prefect.db*")) / 1e6


def processor_seconds(pid: int) -> float:
    """Of a process and those that it has started."""
    return sum(seconds_of_process(Path("/proc") / str(one)) for one in (pid, *children(pid)))


def predict(made: Machine, work: Path, name: str, images_per_shard: int) -> str:
    """Run a prediction in a process of its own; what it wrote on the console."""
    options = {
        "collection-url": f"{work}/in",
        "model-url": f"{work}/model.safetensors",
        "output-url": f"{work}/{name}",
        "config.images-per-shard": str(images_per_shard),
        "config.max-failed": "1",
    }
    given = [text for name, value in options.items() for text in (f"--{name}", value)]
    return made.run("-m", "flows", "predict", *given, timeout=1200)


def settled(
    client: SyncPrefectClient, flow_run_id: UUID, ran: Counter[str]
) -> tuple[Counter[str], float]:
    """Task runs by state as they stay, and when the last change was seen."""
    recorded, changed = states(client, flow_run_id), time.monotonic()
    while recorded != ran and time.monotonic() - changed < PATIENCE:
        time.sleep(2)
        now = states(client, flow_run_id)
        if now != recorded:
            recorded, changed = now, time.monotonic()
    return recorded, changed


def states(client: SyncPrefectClient, flow_run_id: UUID) -> Counter[str]:
    """Task runs of a flow run that the server knows, by state."""
    found: Counter[str] = Counter()
    while True:
        page = client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id])),
            limit=200,
            offset=found.total(),
        )
        found.update(str(task_run.state_name) for task_run in page)
        if len(page) < 200:
            return found


def page(num_shards: int, outcome: Outcome) -> str:
    """The result as Markdown."""
    num_runs = outcome.recorded.total()
    states = ", ".join(f"{count:,} {state}" for state, count in outcome.recorded.most_common())
    rows = {
        "shards, each of one image of 12 x 16 pixels": f"{num_shards:,}",
        "parts that were put": f"{outcome.num_parts:,}",
        "the flow run ended as": outcome.flow_state,
        "task runs that ran, of one flow run": f"{outcome.ran.total():,}",
        "task runs recorded": f"{num_runs:,} ({states})",
        "lag of the record, seconds": f"{outcome.lag:.0f}",
        "values of the progress artifact that were seen": f"{outcome.num_looks:,}",
        "the worst of them was off by, percentage points": f"{outcome.off:.2f}",
        "the last one, percent": f"{outcome.last:g}",
        "seconds of the run": f"{outcome.seconds:.0f}",
        "seconds of a run of the same images in one shard": f"{outcome.seconds_of_one:.0f}",
        "cost of a shard, milliseconds": (
            f"{1000 * (outcome.seconds - outcome.seconds_of_one) / (num_shards - 1):.0f}"
        ),
        "database, MB more than empty": f"{outcome.megabytes:.1f}",
        "the same for 1,000 task runs": f"{1000 * outcome.megabytes / num_runs:.1f}",
        "processor seconds of the server": f"{outcome.server_seconds:.0f}",
        "share of one core": f"{outcome.server_seconds / (outcome.seconds + outcome.lag):.0%}",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"""# The record of {num_shards:,} shards

A prediction of {num_shards:,} shards, two at once, through `python -m flows predict` against a real
Prefect server on the same machine (SQLite). The network is a real one, SqueezeNet with random
weights: shards end faster than those of any real collection. What ran is counted on the console
of the prediction, what was recorded by the server's API. The lag is the time from the end of the
prediction's process until the last record changed. Of more than 900 shards
[several share a task run](../decisions/fan-out.md), so that a flow run has fewer than 1,000.

The progress artifact was read every {LOOK:g} s; each value is held against the parts that were
there when it was written. The cost of a shard is the difference to a run of the same images in
a single shard: planning, the part, its row in the progress, its share of a task run.

| | |
|---|---|
{table}

The server ran with the settings under `[tool.prefect]` in `pyproject.toml`; one that is started
elsewhere than in the root of the checkout is given them by its environment. Other programs may
have been busy on both cores meanwhile: the seconds are an upper bound.

Command: `{shlex.join(["python", "-m", "benchmarks.record", *sys.argv[1:]])}`

{describe()[:-1]}, sqlalchemy {version("sqlalchemy")}.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shards", type=int, default=5000)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="record-") as folder:
        work = Path(folder)
        put(f"{work}/in", {f"{n:06d}.png": encoded(pixels(rng)) for n in range(args.shards)})
        save_model(work / "model.safetensors")
        text = page(args.shards, measure(work, args.shards))
    PAGE.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
