import gc
import socket
import threading

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
    assert text == "30 of 90 images, 10.0 images/s, 6 s left"


def test_progress_text_ends_with_the_time_it_took():
    assert progress_text(90, 90, seconds=200, unit="shards").endswith("0.45 shards/s, 3 min 20 s")


def test_progress_text_without_anything_done_holds_no_rate():
    assert progress_text(0, 90, seconds=2, unit="images") == "0 of 90 images"


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
        with Progress("count-threads", total=40, description="Counting", interval=0) as progress:
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
    assert str(artifact.description).startswith("Counting: 40 of 40 images, ")


@pytest.mark.parametrize(("interval", "percent"), [(0, 50.0), (60, 0.0)])
def test_progress_tells_the_server_once_per_interval(prefect_server, interval, percent):
    key = f"at-interval-{interval}"
    seen = []

    @flow
    def working() -> None:
        with Progress(key, total=4, description="Working", interval=interval) as progress:
            progress.advance(2, note="loss 0.4")
            seen.append(only_artifact(key))

    working()
    assert seen[0].data == percent
    assert str(seen[0].description).endswith("; loss 0.4") == (interval == 0)


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


def test_an_artifact_nobody_takes_is_a_warning_and_no_failure(caplog, free_port):
    nobody = f"http://127.0.0.1:{free_port}/api"
    with (
        temporary_settings({PREFECT_API_URL: nobody, PREFECT_CLIENT_MAX_RETRIES: 0}),
        pytest.warns(FutureWarning, match="outside of a flow or task run"),
    ):
        publish_markdown("unheard", "text")
    assert "artifact unheard was not published: " in caplog.text
