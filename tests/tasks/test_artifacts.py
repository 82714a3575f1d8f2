import gc
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import urlsplit

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import Artifact
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    temporary_settings,
)

from tasks.artifacts import (
    Progress,
    Stopped,
    artifact_key,
    duration,
    image_markdown,
    progress_text,
    publish_markdown,
    publish_table,
)


@pytest.fixture
def free_port() -> int:
    """A port of this machine where nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Wire:
    """A port that passes everything on to a server, and nothing while it is not `open`."""

    def __init__(self, host: str, port: int) -> None:
        self.open = threading.Event()
        self.open.set()
        self._target = host, port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                near, far = self._listener.accept()[0], socket.create_connection(self._target)
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError), source, target:
            while data := source.recv(65536):
                self.open.wait()
                target.sendall(data)

    def close(self) -> None:
        """Takes no further connection."""
        self._listener.close()


@pytest.fixture
def wire(prefect_server) -> Iterator[Wire]:
    """Stands between this process and its server."""
    server = urlsplit(PREFECT_API_URL.value())
    wire = Wire(str(server.hostname), int(server.port or 0))
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{wire.port}/api"}):
        yield wire
    wire.close()


def only_artifact(key: str) -> Artifact:
    """The one artifact of this key, read back from the server."""
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
        )
    assert len(found) == 1
    return found[0]


def test_key_is_made_of_lower_case_letters_digits_and_dashes():
    assert artifact_key("Scores", "s3://Bucket/run_01/") == "scores-s3-bucket-run-01"


def test_key_without_a_letter_is_refused():
    with pytest.raises(ValueError, match="needs a letter"):
        artifact_key("//", "…")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.7, "1 min 00 s"), (168, "2 min 48 s"), (12_012, "3 h 20 min")],
)
def test_duration_reads_well(seconds, text):
    assert duration(seconds) == text


def test_progress_text_counts_the_rate_from_where_this_run_began():
    text = progress_text(30, 90, seconds=2, unit="images", initial=10)
    assert text == "33 %, 30 of 90 images, 10.0 images/s, about 6 s left"


@pytest.mark.parametrize(
    ("seconds", "left"),
    [(1, "about 59 s"), (3, "about 3 min"), (59, "about 58 min"), (120, "about 1 h 58 min")],
)
def test_progress_text_leaves_out_the_seconds_that_nobody_can_know(seconds, left):
    assert progress_text(1, 60, seconds=seconds, unit="images").endswith(f"/s, {left} left")


def test_progress_text_says_100_percent_when_all_is_done_and_not_before():
    assert progress_text(29_999, 30_000, seconds=1, unit="images").startswith("99 %, 29,999 of ")
    assert progress_text(30_000, 30_000, seconds=1, unit="images").startswith("100 %, 30,000 of ")
    assert progress_text(0, 0, seconds=1, unit="images") == "100 %, 0 of 0 images"


def test_progress_text_ends_with_the_time_it_took():
    assert progress_text(90, 90, seconds=200, unit="shards").endswith("0.45 shards/s, 3 min 20 s")


def test_progress_text_without_anything_done_holds_no_rate():
    assert progress_text(0, 90, seconds=2, unit="images") == "0 %, 0 of 90 images"


def test_tables_and_pages_are_read_back_as_published(prefect_server):
    @flow
    def publishing() -> None:
        publish_table("Scores of Val", [{"class": "sky", "IU": 0.93}], "per class")
        publish_markdown("a-page", image_markdown(b"P5 1 1 255 \x00", "dot"), "a dot")

    publishing()
    table = only_artifact("scores-of-val")
    assert (table.type, table.data) == ("table", '[{"class": "sky", "IU": 0.93}]')
    assert table.description == "per class"
    assert table.flow_run_id is not None
    assert str(only_artifact("a-page").data).startswith("![dot](data:image/jpeg;base64,")


def test_progress_ends_with_all_threads_counted(prefect_server):
    @flow
    def working() -> None:
        with Progress("count-threads", total=40, description="Counting", interval=0.01) as progress:
            threads = [
                threading.Thread(target=lambda: [progress.advance() for _ in range(10)])
                for _ in range(4)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    working()
    gc.collect()  # a client left open would complain here
    artifact = only_artifact("count-threads")
    assert (artifact.type, artifact.data) == ("progress", 100.0)
    assert str(artifact.description).startswith("Counting: 100 %, 40 of 40 images, ")


def test_progress_is_told_while_the_run_goes_on(prefect_server):
    @flow
    def working() -> Artifact:
        with Progress("meanwhile", total=4, description="Working", interval=0.05) as progress:
            progress.advance(2, note="loss 0.4")
            for _ in range(100):
                time.sleep(0.05)
                if only_artifact("meanwhile").data == 50.0:
                    break
            return only_artifact("meanwhile")

    description = str(working().description)
    assert description.startswith("Working: 50 %, 2 of 4 images, ")
    assert description.endswith(" s left; loss 0.4")


def test_progress_waits_for_its_interval_before_it_tells_the_server(prefect_server):
    @flow
    def working() -> Artifact:
        with Progress("seldom", total=4, description="Working", interval=60) as progress:
            progress.advance(2)
            time.sleep(0.3)
            return only_artifact("seldom")

    assert working().data == 0.0


def test_progress_of_a_resumed_run_whose_shard_is_retried_ends_at_100_percent(prefect_server):
    @flow
    def working() -> None:
        with Progress("again", total=90, done=30, description="Working") as progress:
            progress.advance(20)
            progress.advance(-20)  # the shard failed; its next attempt counts them again
            progress.advance(60)

    working()
    artifact = only_artifact("again")
    assert artifact.data == 100.0
    assert str(artifact.description).startswith("Working: 100 %, 90 of 90 images, ")


def test_a_server_that_does_not_answer_holds_nobody_up_who_counts(wire):
    seconds = []

    @flow
    def working() -> None:
        with Progress("unanswered", total=50, description="Working", interval=0.01) as progress:
            wire.open.clear()
            for _ in range(50):
                start = time.monotonic()
                progress.advance()
                seconds.append(time.monotonic() - start)
                time.sleep(0.005)
            wire.open.set()

    working()
    assert max(seconds) < 1  # an answer was never given
    assert only_artifact("unanswered").data == 100.0


def test_progress_says_what_stopped_it(prefect_server):
    @flow
    def failing() -> None:
        with Progress("stopped", total=4, description="Working") as progress:
            progress.advance()
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        failing()
    artifact = only_artifact("stopped")
    assert artifact.data == 25.0
    assert str(artifact.description).endswith("; stopped by RuntimeError")


def test_threads_of_a_stopped_run_learn_that_it_was(prefect_server):
    counting, errors = threading.Event(), []

    def work(progress: Progress) -> None:
        try:
            while True:
                progress.advance(0)
                counting.set()
        except Stopped as error:
            errors.append(str(error))

    @flow
    def stopped() -> None:
        with Progress("left-alone", total=4, description="Working") as progress:
            progress.advance(3)
            threads.append(threading.Thread(target=work, args=(progress,)))
            threads[0].start()
            counting.wait()
            raise KeyboardInterrupt

    threads: list[threading.Thread] = []
    with pytest.raises(KeyboardInterrupt):
        stopped()
    threads[0].join(5)
    assert errors == ["the run was stopped; 3 of 4 images done"]


def test_an_artifact_nobody_takes_is_a_warning_and_no_failure(caplog, free_port):
    nobody = f"http://127.0.0.1:{free_port}/api"
    with (
        temporary_settings({PREFECT_API_URL: nobody, PREFECT_CLIENT_MAX_RETRIES: 0}),
        pytest.warns(FutureWarning, match="outside of a flow or task run"),
    ):
        publish_markdown("unheard", "text")
    assert "artifact unheard was not published: " in caplog.text
