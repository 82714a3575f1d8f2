"""The place of a GPU, on a real server: one run has it, the next waits, none goes without."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.filters import FlowRunFilter
from prefect.runtime import flow_run

from tasks.gpu import LIMIT_VARIABLE, GpuLimitError, gpu_place


@pytest.fixture
def limit(prefect_server, monkeypatch):
    """The name of a limit with one place, which the environment names."""
    name = f"gpu:test:{time.monotonic_ns()}"
    with get_client(sync_client=True) as client:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
    monkeypatch.setenv(LIMIT_VARIABLE, name)
    return name


@flow(name="use the GPU")
def use(device, taken=None, enough=None):
    with gpu_place(device):
        start = time.monotonic()
        if taken:
            taken.set()
            assert enough.wait(60)
        return start, time.monotonic(), flow_run.id


def tagged(tag):
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(
            flow_run_filter=FlowRunFilter.model_validate({"tags": {"all_": [tag]}})
        )


def test_a_second_run_waits_for_the_first_and_says_so(limit):
    taken, enough = threading.Event(), threading.Event()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(use, "cuda", taken, enough)
        assert taken.wait(30)
        second = pool.submit(use, "cuda:0")
        deadline = time.monotonic() + 30
        while not (waiting := tagged(f"waiting for {limit}")) and time.monotonic() < deadline:
            time.sleep(0.2)
        enough.set()
        (_, first_end, _), (second_start, _, second_id) = first.result(), second.result()
    assert [str(run.id) for run in waiting] == [second_id]
    assert waiting[0].state.is_running()
    assert second_start >= first_end
    assert tagged(f"waiting for {limit}") == []


def test_without_the_limit_a_run_is_refused_and_told_how_to_make_it(prefect_server, monkeypatch):
    monkeypatch.setenv(LIMIT_VARIABLE, "gpu:nowhere:0")
    with pytest.raises(GpuLimitError, match=r"set_up\.py --gpu gpu:nowhere:0"):
        use("cuda")


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_who_has_no_gpu_is_not_asked(prefect_server, monkeypatch, device):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv(LIMIT_VARIABLE, "gpu:nowhere:0")
    assert use(device)


def test_without_the_variable_nothing_is_asked_for(prefect_server, monkeypatch):
    monkeypatch.delenv(LIMIT_VARIABLE, raising=False)
    assert use("cuda")
