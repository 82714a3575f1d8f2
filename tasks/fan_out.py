"""Where the shards of a run are segmented: in this process, in child runs, on Ray or Dask.

A *partition* is a range of neighbouring shards that the manifest and `PredictConfig` fix,
whoever does it and however often. On a cluster it is a task, on a work pool a child run; in
this process it is one shard, as long as there are few enough of them. However a shard is
done, its part is the same bytes, and what is done is told by the parts alone: so any way goes
on where another was cut off.
"""

import itertools
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from prefect.client.orchestration import get_client
from prefect.task_runners import TaskRunner

from fcn.backends import find_backend
from fcn.cores import num_cores
from fcn.device import resolve_precision
from tasks import parts, stores
from tasks.artifacts import Progress
from tasks.manifest import Manifest
from tasks.plan import Plan
from tasks.predict_config import PredictConfig

MAX_PARTITIONS = 900
"""Partitions of a flow run, each with a task run of its own.

A Prefect server keeps up with about 1,000 task runs of a flow run, and so does its page.
"""

LISTING_PAUSE = 5.0
"""Least seconds between two listings of the parts, for the progress bar; and no more than a
tenth of the time goes into listing."""

KEPT = ". Finished parts are kept; rerun to do the rest"
"""How the error of a run ends of which shards failed."""


class FanOutError(Exception):
    """A prediction that cannot be spread out as asked; no shard was begun."""


@dataclass(frozen=True, kw_only=True)
class Partition:
    """Neighbouring shards, ``first`` to ``last``, and those of them that have no part yet."""

    first: int
    last: int
    missing: tuple[int, ...]

    @property
    def is_several(self) -> bool:
        """Whether it may have more shards than one."""
        return self.first != self.last

    @property
    def name(self) -> str:
        """What logs, errors and child runs call it."""
        return shards_name(self.first, self.last)


def shards_name(first: int, last: int) -> str:
    """``shard-00042`` for one shard, ``shards-00040-00059`` for several."""
    return f"shard-{first:05d}" if first == last else f"shards-{first:05d}-{last:05d}"


def partitions(plan: Plan, shards: range, config: PredictConfig) -> list[Partition]:
    """The partitions that have something to do, in order; at most `MAX_PARTITIONS`.

    Args:
        plan: What there is to do.
        shards: Those of the run that are divided: all, or the ones of a child run.
        config: How many shards a partition has, outside of this process.
    """
    least = 1 if config.fan_out == "here" else config.shards_per_partition
    size = max(least, -(-len(shards) // MAX_PARTITIONS))
    groups = itertools.groupby(plan.missing, lambda shard: (shard - shards.start) // size)
    return [
        Partition(
            first=shards.start + number * size,
            last=min(shards.start + (number + 1) * size, shards.stop) - 1,
            missing=tuple(missing),
        )
        for number, missing in groups
    ]


def require(config: PredictConfig, *urls: str) -> None:
    """Find out, before anything is planned, whether shards can be segmented where it is asked.

    Raises:
        FanOutError: a URL of ``memory://``, which means nothing in another process, or a
            package that is not installed.
    """
    if config.fan_out == "here":
        return
    for url in urls:
        if url.startswith("memory:"):
            raise FanOutError(
                f"{stores.redact(url)} is seen by this process alone, and fan_out="
                f"{config.fan_out!r} segments shards in others; give a place that all can reach"
            )
    try:
        if config.fan_out == "ray":
            import prefect_ray  # type: ignore[import-untyped] # noqa: F401, PLC0415 - an extra
        elif config.fan_out == "dask":
            import prefect_dask  # noqa: F401, PLC0415 - an extra
    except ImportError as error:
        raise FanOutError(
            f"fan_out={config.fan_out!r} needs a package that is not installed ({error}); install "
            f"the extra {config.fan_out}, as in: uv pip install -c constraints.txt "
            f'-e ".[pipeline,{config.fan_out}]"'
        ) from error


def for_others(
    manifest: Manifest, model_url: str, config: PredictConfig
) -> tuple[Manifest, str, PredictConfig]:
    """The same for a process in another folder, on a machine with another device.

    Local paths become absolute, and that process does its shards itself. Backend and precision
    become what the run was planned with on this machine: they are part of its digest.
    """
    backend, device = find_backend(manifest.card.backend, config.device, config.precision)
    return (
        replace(manifest, output_url=stores.absolute(manifest.output_url)),
        stores.absolute(model_url),
        config.model_copy(
            update={
                "backend": backend,
                "precision": resolve_precision(device, config.precision),
                "fan_out": "here",
                "cluster": None,
                "gpus_per_task": 0,
            }
        ),
    )


def cluster(config: PredictConfig, network_cores: int) -> AbstractContextManager[TaskRunner[Any]]:
    """The task runner of a Ray or Dask cluster, started on this machine if none is named.

    A task gets as many processors as the network uses; on Ray with GPUs, one.

    Raises:
        FanOutError: the cluster cannot be reached; when the context is entered.
    """
    return (_ray if config.fan_out == "ray" else _dask)(config, network_cores)


@contextmanager
def _ray(config: PredictConfig, network_cores: int) -> Iterator[TaskRunner[Any]]:
    import ray  # noqa: PLC0415 - an extra
    from prefect_ray import RayTaskRunner  # noqa: PLC0415
    from prefect_ray.context import (  # type: ignore[import-untyped] # noqa: PLC0415
        remote_options,
    )

    # The runner takes "auto" for "none"; Ray itself knows both.
    start: dict[str, Any] = {
        "address": config.cluster or "local",
        "runtime_env": {"env_vars": _server()},
    }
    if config.cluster is None:
        start["include_dashboard"] = False
    options: dict[str, float] = {"num_cpus": network_cores}
    if config.gpus_per_task:
        options = {"num_cpus": 1, "num_gpus": config.gpus_per_task}
    runner: TaskRunner[Any] = RayTaskRunner(init_kwargs=start)
    try:
        runner.__enter__()
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise FanOutError(_unreachable(config, error)) from error
    with _leaving(runner), remote_options(**options):
        yield runner


@contextmanager
def _dask(config: PredictConfig, network_cores: int) -> Iterator[TaskRunner[Any]]:
    from prefect_dask.task_runners import DaskTaskRunner  # noqa: PLC0415 - an extra

    logging.getLogger("distributed").setLevel(logging.WARNING)  # twenty lines for each start
    if config.cluster:
        runner = DaskTaskRunner(address=config.cluster)
    else:
        fitting = max(1, num_cores() // network_cores)
        runner = DaskTaskRunner(
            cluster_kwargs={
                "n_workers": min(config.partitions_at_once, fitting),
                "threads_per_worker": 1,
                "memory_limit": 0,  # memory_budget bounds it; Dask would kill a worker
                "dashboard_address": "127.0.0.1:0",  # any port: 8787 may be another's
                "env": _server(),
            }
        )
    with runner:
        try:
            runner.client  # noqa: B018 - connects
        except (OSError, ValueError) as error:
            raise FanOutError(_unreachable(config, error)) from error
        yield runner


@contextmanager
def _leaving(runner: TaskRunner[Any]) -> Iterator[None]:
    """Leave a runner that has been entered already."""
    try:
        yield
    finally:
        runner.__exit__(None, None, None)


def _server() -> dict[str, str]:
    """The environment by which workers find this run's server, an embedded one too.

    A task run's context names it as well, but not to the threads that send logs and events:
    those would start a server of their own.
    """
    with get_client(sync_client=True) as client:
        return {"PREFECT_API_URL": str(client.api_url)}


def _unreachable(config: PredictConfig, error: Exception) -> str:
    where = f"the cluster {config.cluster!r}" if config.cluster else "a cluster on this machine"
    return (
        f"fan_out={config.fan_out!r}: no connection to {where}: {type(error).__name__}: {error}; "
        "see whether it runs, or leave cluster empty for one on this machine"
    )


@contextmanager
def counted(plan: Plan, progress: Progress) -> Iterator[None]:
    """Count the images of parts that other processes put, for as long as the context lasts."""
    stop, missing = threading.Event(), set(plan.missing)
    manifest = plan.manifest

    def count() -> None:
        try:
            there = missing.intersection(parts.numbers(manifest.output_url, manifest.card.run))
        except stores.StoreError:
            return  # a bar that stands still; whoever needs the store will say so
        missing.difference_update(there)
        progress.advance(sum(manifest.num_images(shard) for shard in there))

    def watch() -> None:
        pause = LISTING_PAUSE
        while not stop.wait(pause):
            start = time.monotonic()
            count()
            pause = max(LISTING_PAUSE, 10 * (time.monotonic() - start))

    thread = threading.Thread(target=watch, name="count parts", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    count()
