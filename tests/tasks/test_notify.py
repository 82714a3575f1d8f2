import asyncio
import logging
from collections.abc import Iterator

import pytest
from prefect import flow
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.runner._hook_runner import HookRunner
from prefect.runtime import flow_run
from prefect.states import Cancelled, Cancelling, Running

from tasks import notify
from tasks.hooks import HOOKS
from tasks.notify import ENDED_ITSELF
from tasks.settle import PROCESS_ENDED
from tasks.shards import PredictSummary
from tests.receiver import SECRET, Receiver, receiving


@pytest.fixture
def receiver(prefect_server, monkeypatch) -> Iterator[Receiver]:
    """A webhook on this machine; the environment names it."""
    with receiving() as server:
        monkeypatch.setenv("FCN_WEBHOOK_URL", server.url)
        yield server


@flow(name="failing", flow_run_name="a failing run", **HOOKS)
def failing(crash: bool = False) -> None:
    if crash:
        raise KeyboardInterrupt
    raise OSError("no answer of https://user:password@store.example/images?signature=abc")


def prediction() -> PredictSummary:
    """Of 1,200 images."""
    return PredictSummary(
        output_url="out",
        run=0,
        rows=1200,
        ok=1190,
        partial=0,
        failed=10,
        deleted=0,
        segmented=1200,
        seconds=60.0,
        stages={},
        class_shares=(),
        weak_spots=(),
        slow_images=(),
    )


def test_a_completed_prediction_is_told_with_its_counts(receiver):
    @flow(name="predict", flow_run_name="predict in -> out", **HOOKS)
    def predicting() -> PredictSummary:
        return prediction()

    predicting()
    [told] = receiver.bodies
    assert told["counts"] == {"ok": 1190, "partial": 0, "failed": 10}
    assert (told["flow"], told["run"], told["state"]) == (
        "predict",
        "predict in -> out",
        "Completed",
    )
    assert 0 <= told["seconds"] < 60
    assert told["url"].endswith(f"/runs/flow-run/{told['run_id']}")
    first, second, third = told["text"].splitlines()
    assert first.startswith("predict Completed after ")
    assert first.endswith(" s: predict in -> out")
    assert (second, third) == ("1,190 ok, 0 partial, 10 failed", told["url"])


def test_a_failed_run_is_told_with_its_message_without_credentials(receiver):
    with pytest.raises(OSError, match="no answer"):
        failing()
    [told] = receiver.bodies
    assert (told["state"], told["counts"]) == ("Failed", None)
    assert told["message"].endswith("no answer of https://store.example/images")
    assert told["message"] in told["text"]


def test_a_crashed_run_is_told(receiver):
    with pytest.raises(KeyboardInterrupt):
        failing(crash=True)
    assert [told["state"] for told in receiver.bodies] == ["Crashed"]


def test_a_run_that_crashed_while_it_was_being_cancelled_is_told_as_it_ended(receiver):
    @flow(name="cancelled", **HOOKS)
    def cancelled() -> None:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(flow_run.id, Cancelling(), force=True)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cancelled()
    [told] = receiver.bodies
    with get_client(sync_client=True) as client:
        ended = client.read_flow_run(told["run_id"]).state
    assert (told["state"], told["message"]) == ("Cancelled", ended.message)
    assert ended.name == "Cancelled"


def being_cancelled(client):
    """A run that somebody has cancelled, and whose process its worker has ended."""
    run = client.create_flow_run(failing, name="a long run", state=Running())
    client.set_flow_run_state(run.id, Cancelling())
    return client.read_flow_run(run.id)


def worker_says(run):
    """What a worker does then, before it tells the server: the hooks, by Prefect's own runner."""

    async def resolve(_):
        return failing

    said = Cancelling(message="Flow run was cancelled.")
    asyncio.run(HookRunner(resolve_flow=resolve).run_cancellation_hooks(run, said))


def test_a_cancelled_run_is_told_by_its_worker(receiver):
    with get_client(sync_client=True) as client:
        worker_says(being_cancelled(client))
    [told] = receiver.bodies
    assert (told["state"], told["message"]) == ("Cancelled", "Flow run was cancelled.")
    assert told["run"] == "a long run"
    assert told["text"].startswith("failing Cancelled after ")


@pytest.mark.parametrize(
    ("message", "told"), [(ENDED_ITSELF, []), (PROCESS_ENDED, []), (None, ["Cancelled"])]
)
def test_a_cancelled_run_is_told_by_its_worker_unless_by_itself(receiver, message, told):
    """Without a message of ours it is the server, or a person, that said so: nobody has told."""
    with get_client(sync_client=True) as client:
        run = being_cancelled(client)
        client.set_flow_run_state(run.id, Cancelled(message=message), force=True)
        worker_says(run)
    assert [body["state"] for body in receiver.bodies] == told


def test_a_run_within_another_is_not_told(receiver, caplog):
    caplog.set_level(logging.INFO)

    @flow(name="inner", **HOOKS)
    def inner() -> None:
        pass

    @flow(name="outer", **HOOKS)
    def outer() -> None:
        inner()

    outer()
    assert [told["flow"] for told in receiver.bodies] == ["outer"]
    assert caplog.messages.count("the webhook was told") == 1


def test_the_url_may_stand_in_a_secret_block(receiver, monkeypatch):
    monkeypatch.delenv("FCN_WEBHOOK_URL")
    with pytest.raises(OSError, match="no answer"):
        failing()
    assert receiver.bodies == []
    Secret(value=receiver.url).save("fcn-webhook-url")
    with pytest.raises(OSError, match="no answer"):
        failing()
    Secret.delete("fcn-webhook-url")
    assert [told["state"] for told in receiver.bodies] == ["Failed"]


@pytest.mark.parametrize(
    ("fault", "warning"),
    [
        ("refuses", "the webhook was not told: HTTPError 500"),
        ("is no URL", "the webhook was not told: ValueError"),
        ("is not there", "the webhook was not told: URLError"),
        ("does not answer", "the webhook was not told: TimeoutError"),
    ],
)
def test_a_webhook_that_fails_costs_a_warning_without_its_url(
    receiver, monkeypatch, caplog, fault, warning
):
    receiver.status = 500
    if fault == "is no URL":
        monkeypatch.setenv("FCN_WEBHOOK_URL", f"file:///etc/{SECRET}")
    elif fault == "is not there":
        receiver.shutdown()
        receiver.socket.close()
    elif fault == "does not answer":
        receiver.shutdown()  # the kernel still takes connections
        monkeypatch.setattr(notify, "TIMEOUT", 0.2)

    @flow(name="fine", **HOOKS)
    def fine() -> int:
        return 7

    with caplog.at_level(logging.DEBUG):
        assert fine() == 7
    assert warning in caplog.text
    assert SECRET not in caplog.text
