"""Child runs: partitions of a prediction as flow runs of their own, on a work pool.

A child run is known by its idempotency key: output, run, partition and a number. Whoever
wants a partition done looks for a child run of it that has not ended, and waits for that one;
only where there is none is another started. So a retried parent, or the next one after a
parent that was killed, finds the children of the one before.

Prefect's `run_deployment` does not say that a child failed, and waits for one child in one
thread. Here all children are asked for together, every `POLL_PAUSE` seconds, for as long as it
takes.
"""

import hashlib
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from logging import Logger, LoggerAdapter
from typing import Any, TypeVar, cast
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterIdempotencyKey,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import (
    TERMINAL_STATES,
    FlowRun,
    State,
    StateType,
    WorkPoolStatus,
)
from prefect.client.schemas.responses import DeploymentResponse
from prefect.deployments import run_deployment
from prefect.exceptions import ExternalSignal, ObjectNotFound
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelling
from prefect.utilities.urls import url_for

from tasks import stores
from tasks.artifacts import publish_table
from tasks.fan_out import KEPT, FanOutError, Partition, shards_name
from tasks.manifest import Manifest
from tasks.predict_config import PredictConfig
from tasks.seconds import Stage
from tasks.shards import PartitionReport, ShardReport
from tasks.slow_images import SlowImage, slowest

POLL_PAUSE = 3.0
"""Seconds between two looks at all children in work: one call to the server."""

TELL_PAUSE = 60.0
"""Seconds between two log lines about what is waited for."""

FIRST_TOLD = 15.0
"""Seconds that a worker may take to pick a child up before a log line says so."""

MAX_FAILED_CHILDREN = 3
"""Child runs that may fail before no further one is started."""

SHARDS_TABLE = "predict-partition-shards"
SLOW_TABLE = "predict-partition-slow-images"

_LIVE = [state for state in StateType if state not in TERMINAL_STATES]
_NUMBERS = 100  # of child runs of a partition that are asked for together
_PREFIX = "Flow run encountered an exception: "
_STAGES: tuple[Stage, ...] = ("read", "decode", "network", "encode", "write")

_Log = Logger | LoggerAdapter[Any]

Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class ChildRuns:
    """What became of the child runs.

    Attributes:
        reports: of those that completed.
        failures: one text for each of those that did not: its name, its page, its state and why.
    """

    reports: Sequence[PartitionReport]
    failures: Sequence[str]


def find_deployment(name: str) -> DeploymentResponse:
    """The deployment ``FLOW/DEPLOYMENT`` on the server of this run.

    Raises:
        FanOutError: there is none, or it has no work pool.
    """
    with get_client(sync_client=True) as client:
        try:
            found = client.read_deployment_by_name(name)
        except ObjectNotFound as error:
            server = PREFECT_API_URL.value()
            where = stores.redact(server) if server else "the server of this process alone"
            raise FanOutError(
                f"no deployment {name!r} on {where}; `python deployments/set_up.py` registers "
                "those of deployments/prefect.yaml, see deployments/README.md"
                + ("" if server else ", with PREFECT_API_URL set to a server that workers reach")
            ) from error
    if not found.work_pool_name:
        raise FanOutError(
            f"deployment {name!r} has no work pool; give one that was deployed to a pool, as in "
            "deployments/prefect.yaml"
        )
    return found


def segment(
    manifest: Manifest, partitions: Sequence[Partition], model_url: str, config: PredictConfig
) -> ChildRuns:
    """Have every partition done by a child run, ``config.partitions_at_once`` at a time.

    A child that fails does not stop the others, until `MAX_FAILED_CHILDREN` have. An interrupted
    or cancelled parent cancels its own children; those of a parent that is killed go on.

    Args:
        manifest: The run's, at a URL that the children can read.
        partitions: What there is to do.
        model_url: The model, the same.
        config: Settings, fit for other machines; see `tasks.fan_out.for_others`.

    Raises:
        FanOutError: there is no such deployment, or it has no work pool.
    """
    with get_client(sync_client=True) as client:
        server = _Server(client, find_deployment(config.deployment), get_run_logger())
        with _cancelling(server):
            done, failures = _run_children(server, manifest, partitions, model_url, config)
            reports = {child.name: server.ask(partial(_report, client, child)) for child in done}
    if lost := [name for name, report in reports.items() if report is None]:
        server.log.warning(
            "the tables of %s child runs cannot be had: seconds by stage, slow images and the "
            "number of images segmented now are without theirs: %s",
            f"{len(lost):,}",
            ", ".join(lost),
        )
    return ChildRuns(reports=[report for report in reports.values() if report], failures=failures)


def _run_children(
    server: "_Server",
    manifest: Manifest,
    partitions: Sequence[Partition],
    model_url: str,
    config: PredictConfig,
) -> tuple[list[FlowRun], list[str]]:
    """The children that completed, and what became of the others."""
    children: dict[UUID, Partition] = {}
    done: list[FlowRun] = []
    failures: list[str] = []
    todo = iter(partitions)
    while True:
        is_going_on = len(failures) < MAX_FAILED_CHILDREN
        free = config.partitions_at_once - len(children) if is_going_on else 0
        for partition in islice(todo, free):
            start = partial(_child, server, partition, manifest, model_url, config)
            children[server.ask(start).id] = partition
        if not children:
            return done, failures
        time.sleep(POLL_PAUSE)
        found = server.ask(partial(_read, server.client, list(children)))
        for child in _ended(found, children):
            partition = children.pop(child.id)
            if child.state and child.state.is_completed():
                done.append(child)
                server.log.info("%s: child run %s is done", partition.name, child.name)
            else:
                failures.append(f"{partition.name}: {_failure(child)}")
                server.log.error("%s", failures[-1])
        server.tell([child for child in found.values() if child.id in children])


def run_name() -> str:
    """The name of the child run that asks."""
    given = flow_run.parameters
    return _run_name(given["first_shard"], given["last_shard"], given["output_url"])


def _run_name(first: int, last: int, output_url: str) -> str:
    return f"{shards_name(first, last)} -> {stores.redact(output_url)}"


def child_key(manifest: Manifest, partition: Partition) -> str:
    """What the idempotency keys of a partition's child runs begin with."""
    card = manifest.card
    what = [manifest.output_url, card.run, card.run_digest, partition.first, partition.last]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]


def _child(
    server: "_Server",
    partition: Partition,
    manifest: Manifest,
    model_url: str,
    config: PredictConfig,
) -> FlowRun:
    """A child run that does the partition: one that has not ended, or a new one."""
    key = child_key(manifest, partition)
    earlier = _children_of(server.client, key)
    for child in earlier:
        if child.state is None or not child.state.is_final():
            server.log.info("%s: child run %s is at it already", partition.name, child.name)
            return child
    numbers = [int(str(child.idempotency_key).rpartition("-")[2]) for child in earlier]
    output_url, run = manifest.output_url, manifest.card.run
    child = cast(
        "FlowRun",
        run_deployment(
            config.deployment,
            parameters={
                "output_url": output_url,
                "model_url": model_url,
                "run": run,
                "first_shard": partition.first,
                "last_shard": partition.last,
                "config": config.model_dump(mode="json"),
            },
            flow_run_name=_run_name(partition.first, partition.last, output_url),
            timeout=0,
            idempotency_key=f"{key}-{max(numbers, default=-1) + 1}",
        ),
    )
    server.log.info("%s: started child run %s", partition.name, child.name)
    return child


def _children_of(client: SyncPrefectClient, key: str) -> list[FlowRun]:
    """All child runs of a partition that the server knows; their numbers begin with 0."""
    found: list[FlowRun] = []
    for first in itertools.count(0, _NUMBERS):
        keys = [f"{key}-{number}" for number in range(first, first + _NUMBERS)]
        wanted = FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=keys))
        some = client.read_flow_runs(flow_run_filter=wanted)
        found += some
        if not some:
            break
    return found


def _read(client: SyncPrefectClient, ids: Sequence[UUID]) -> dict[UUID, FlowRun]:
    wanted = FlowRunFilter(id=FlowRunFilterId(any_=list(ids)))
    return {child.id: child for child in client.read_flow_runs(flow_run_filter=wanted)}


def _ended(found: dict[UUID, FlowRun], children: dict[UUID, Partition]) -> Iterator[FlowRun]:
    """Those of the children that have ended, one that somebody has deleted among them."""
    for identity, partition in list(children.items()):
        child = found.get(identity)
        if child is None:
            gone = State(type=StateType.CANCELLED, name="Deleted", message="its record is gone")
            yield FlowRun(id=identity, name=f"of {partition.name}", flow_id=identity, state=gone)
        elif child.state is not None and child.state.is_final():
            yield child


def _failure(child: FlowRun) -> str:
    """Which child run, how it ended and why, as an error tells it."""
    page = url_for("flow-run", obj_id=child.id)
    state = child.state
    ended = (state.name or state.type.value).lower() if state else "gone"
    reason = (state.message or "") if state else ""
    return (
        f"child run {child.name}"
        + (f" ({page})" if page else f" ({child.id})")
        + f" {ended}"
        + (f": {reason.removeprefix(_PREFIX).removesuffix(KEPT)}" if reason else "")
    )


class _Server:
    """The server while children are waited for: asked patiently, and what it says told.

    Attributes:
        client: of the server.
        log: of the parent.
    """

    def __init__(
        self, client: SyncPrefectClient, deployment: DeploymentResponse, log: _Log
    ) -> None:
        self.client = client
        self.log = log
        self._pool = str(deployment.work_pool_name)
        self._next = time.monotonic() + FIRST_TOLD

    def ask(self, question: Callable[[], Answer]) -> Answer:
        """The answer, as soon as there is one: children go on while the server is away."""
        while True:
            try:
                return question()
            except httpx.HTTPStatusError as error:
                if error.response.status_code < 500:
                    raise
                self.log.warning("server: %s; asking again", error.response.status_code)
            except httpx.TransportError as error:
                self.log.warning("no answer from the server (%s); asking again", error)
            time.sleep(POLL_PAUSE)

    def tell(self, children: Sequence[FlowRun]) -> None:
        """Log, every now and then, what children wait for that no worker has taken."""
        states = Counter(child.state.name for child in children if child.state)
        waiting = states.total() - states["Running"]
        if not waiting or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + TELL_PAUSE
        status = self.ask(lambda: self.client.read_work_pool(self._pool)).status
        if status == WorkPoolStatus.READY:
            listed = ", ".join(f"{count} {name}" for name, count in sorted(states.items()))
            self.log.info("waiting for a place on pool %r; child runs: %s", self._pool, listed)
            return
        reason, remedy = "no worker polls it", "worker start --pool"
        if status == WorkPoolStatus.PAUSED:
            reason, remedy = "it is paused", "work-pool resume"
        self.log.warning(
            "waiting for a worker on pool %r: %s child runs are scheduled, and %s; prefect %s %s",
            self._pool,
            f"{waiting:,}",
            reason,
            remedy,
            self._pool,
        )


@contextmanager
def _cancelling(server: _Server) -> Iterator[None]:
    """Cancel the children of this run when it is interrupted, terminated or cancelled."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, ExternalSignal):
        live = FlowRunFilterState(type=FlowRunFilterStateType(any_=_LIVE))
        own = FlowRunFilterParentFlowRunId(any_=[UUID(str(flow_run.id))])
        mine = FlowRunFilter(parent_flow_run_id=own, state=live)
        children = server.client.read_flow_runs(flow_run_filter=mine)
        for child in children:
            server.client.set_flow_run_state(child.id, Cancelling())
        server.log.warning("stopped; %s child runs are being cancelled", f"{len(children):,}")
        raise


def publish(reports: Sequence[ShardReport]) -> None:
    """What a child run did, as tables on its page; its parent reads them there."""
    publish_table(SHARDS_TABLE, [_shard_row(report) for report in reports], "Shards")
    images = slowest(image for report in reports for image in report.slow_images)
    publish_table(SLOW_TABLE, [vars(image) for image in images], "Images that took longest")


def _shard_row(report: ShardReport) -> dict[str, Any]:
    part = report.part
    counts = {"images": part.rows, "ok": part.ok, "partial": part.partial, "failed": part.failed}
    stages = {str(stage): seconds for stage, seconds in report.stages.items()}
    return {"shard": part.number, **counts, "seconds": report.seconds, **stages}


def _report(client: SyncPrefectClient, child: FlowRun) -> PartitionReport | None:
    """What a child run's tables say; ``None`` where it has none."""
    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[child.id]))
    tables = {
        artifact.key: json.loads(str(artifact.data))
        for artifact in client.read_artifacts(artifact_filter=wanted)
        if artifact.key in {SHARDS_TABLE, SLOW_TABLE}
    }
    if len(tables) < 2:
        return None
    shards = tables[SHARDS_TABLE]
    return PartitionReport(
        images=sum(row["images"] for row in shards),
        stages={stage: sum(row[stage] for row in shards) for stage in _STAGES},
        slow_images=tuple(SlowImage(**row) for row in tables[SLOW_TABLE]),
    )
