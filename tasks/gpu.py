"""One training or prediction per GPU: a place of a concurrency limit on the Prefect server.

Whoever starts a worker for a GPU names the GPU's limit in `LIMIT_VARIABLE`; flow runs inherit
it. ``deployments/set_up.py --gpu NAME`` makes the limit. A flow run takes its place before it
loads a network and gives it back at the end; the next one waits meanwhile, and says so.
"""

import os
import threading
import time
from collections.abc import Iterator, Set
from contextlib import ExitStack, contextmanager
from uuid import UUID

import torch
from prefect import get_client, get_run_logger
from prefect.client.schemas.objects import ConcurrencyLeaseHolder
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.runtime import flow_run

LIMIT_VARIABLE = "FCN_GPU_LIMIT"
"""Environment variable with the name of the limit, such as ``gpu:rack-3:0``; unset: no limit."""

PATIENCE = 2.0
"""Seconds after which a flow run says that it waits."""


class GpuLimitError(Exception):
    """The limit of a GPU that the environment names is not on the server."""


@contextmanager
def gpu_place(device: str) -> Iterator[None]:
    """A context that holds the GPU's only place; waits for it while another flow run has it.

    Nothing is asked for where `LIMIT_VARIABLE` is not set, or the network runs on a CPU.
    While it waits, the flow run has the tag "waiting for NAME". The place of a run that was
    killed is free again after five minutes. To be used inside a flow run.

    Args:
        device: As in a flow's configuration: auto, cpu, cuda, cuda:1.

    Raises:
        GpuLimitError: the server has no such limit.
    """
    name = os.environ.get(LIMIT_VARIABLE)
    if not name or not _is_gpu(device):
        yield
        return
    with ExitStack() as place:
        with _told_if_waiting(name):
            place.enter_context(_take(name))
        yield


def _is_gpu(device: str) -> bool:
    # Not by `fcn.device.find_device`: it would occupy the GPU that is being asked for.
    return torch.cuda.is_available() if device == "auto" else device.startswith("cuda")


@contextmanager
def _take(name: str) -> Iterator[None]:
    with ExitStack() as place:
        try:
            place.enter_context(
                concurrency(
                    name,
                    strict=True,
                    holder=ConcurrencyLeaseHolder(type="flow_run", id=_run_id()),
                    raise_on_lease_renewal_failure=False,  # a server that is away stops no training
                )
            )
        except ConcurrencySlotAcquisitionError as error:
            if error.__cause__ is not None:  # what the server answered
                raise
            raise GpuLimitError(
                f"{LIMIT_VARIABLE}={name}: the Prefect server has no active limit of this name, so "
                f"two runs might share the GPU; make it: python deployments/set_up.py --gpu {name}"
            ) from error
        yield


@contextmanager
def _told_if_waiting(name: str) -> Iterator[None]:
    """A context that marks its flow run as one that waits, if it lasts."""
    start = time.monotonic()
    run_id, log, told = _run_id(), get_run_logger(), threading.Event()

    def tell() -> None:
        log.info("%s is taken by another run; waiting for it", name)
        told.set()
        _tag(run_id, add={f"waiting for {name}"})

    timer = threading.Timer(PATIENCE, tell)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        if told.is_set():
            _tag(run_id, remove={f"waiting for {name}"})
    if told.is_set():
        log.info("%s is free; waited %.0f s", name, time.monotonic() - start)


def _tag(run_id: UUID, add: Set[str] = frozenset(), remove: Set[str] = frozenset()) -> None:
    with get_client(sync_client=True) as client:
        tags = set(client.read_flow_run(run_id).tags)
        client.update_flow_run(run_id, tags=(tags | add) - remove)


def _run_id() -> UUID:
    return UUID(flow_run.id)
