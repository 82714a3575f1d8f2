"""Does the server's record hold every task run of a prediction with thousands of shards?

::

    python -m benchmarks.record                   # 5,000 shards
    python -m benchmarks.record --shards 500

A prediction of as many shards as images runs against a real Prefect server on this machine,
with the settings that the project ships (``[tool.prefect]`` in pyproject.toml). The network is
a real one, a SqueezeNet with random weights, on images of 12 x 16 pixels: shards end as fast as
they can, faster than any real ones. What ran is read from the prediction's own output on the
console, what was recorded from the server's API.
Writes ``docs/benchmarks/record.md``.
"""

import argparse
import re
import shlex
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from uuid import UUID

import numpy as np
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

from benchmarks.machine import describe
from tests.e2e.machine import Machine, machine
from tests.tasks.pictures import encoded, pixels, put, save_model

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "record.md"

FINISHED = re.compile(r"Task run '.*' - Finished in state (\w+)")
"""What Prefect writes on the console when a task run ends."""

PATIENCE = 60.0
"""Seconds without a further record after which no more are awaited."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What ran, and what the record says of it.

    Attributes:
        ran: task runs by final state, as the prediction's console tells.
        recorded: task runs by state, as the server's API tells in the end.
        seconds: from the start of the prediction's process to its end.
        lag: from then until the last record changed.
        flow_state: what the flow run ended in.
        megabytes: size of the server's database in the end.
    """

    ran: Counter[str]
    recorded: Counter[str]
    seconds: float
    lag: float
    flow_state: str
    megabytes: float

    def row(self) -> str:
        """A line of the page's table."""
        states = ", ".join(f"{count:,} {state}" for state, count in self.recorded.most_common())
        cells = (
            *(f"{self.ran.total():,}", f"{self.recorded.total():,}", states),
            *(self.flow_state, f"{self.seconds:.0f}", f"{self.lag:.0f}", f"{self.megabytes:.0f}"),
        )
        return f"| {' | '.join(cells)} |"


def measure(work: Path) -> Outcome:
    """A prediction against a new server."""
    with machine(work / "home") as made:
        made.start_server()
        start = time.monotonic()
        console = predict(made, work)
        end = time.monotonic()
        ran = Counter(FINISHED.findall(console))
        with get_client(sync_client=True) as client:
            [flow_run] = client.read_flow_runs()
            recorded, changed = settled(client, flow_run.id, ran)
        return Outcome(
            ran=ran,
            recorded=recorded,
            seconds=end - start,
            lag=max(0.0, changed - end),
            flow_state=str(flow_run.state_name),
            megabytes=sum(path.stat().st_size for path in made.home.glob("prefect.db*")) / 1e6,
        )


def predict(made: Machine, work: Path) -> str:
    """Run the prediction in a process of its own; what it wrote on the console."""
    options = {
        "collection-url": f"{work}/in",
        "model-url": f"{work}/model.safetensors",
        "output-url": f"{work}/out",
        "config.images-per-shard": "1",
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
    columns = (
        *("task runs that ran", "recorded", "by state"),
        *("flow run", "seconds of the run", "lag, seconds", "database, MB"),
    )
    return f"""# The record of {num_shards:,} shards

A prediction of {num_shards:,} shards, two at once, each of one image of 12 x 16 pixels, through
`python -m flows predict` against a real Prefect server on the same machine (SQLite). The network
is a real one, SqueezeNet with random weights: shards end faster than those of any real
collection. What ran is counted on the console of the prediction, what was recorded by the
server's API. The lag is the time from the end of the prediction's process until the last record
changed.

| {" | ".join(columns)} |
{"|---" * len(columns)}|
{outcome.row()}

The server ran with the settings under `[tool.prefect]` in `pyproject.toml`; one that is started
elsewhere than in the root of the checkout is given them by its environment.

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
        text = page(args.shards, measure(work))
    PAGE.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
