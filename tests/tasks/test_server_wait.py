"""Waiting for a server that was there and is gone, or was never there."""

import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from tasks import server_wait
from tasks.server_wait import ServerError, tell_waiting, wait_for_server

LOGGERS = ("prefect.client", "prefect.client.subscriptions")


class Answering(BaseHTTPRequestHandler):
    """Says that it is well."""

    def do_GET(self) -> None:
        self.send_response(404 if self.path.startswith("/wrong") else 200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    """Something that answers at the URL of the API, asked again once; it may be closed."""
    log, below = map(logging.getLogger, LOGGERS)
    levels, filters = (log.level, below.level), list(log.filters)
    log.filters.clear()  # another test of this process may have waited just now
    log.setLevel(logging.INFO)  # and asked for its debug lines
    below.setLevel(logging.NOTSET)
    monkeypatch.setattr(server_wait, "_waiting", server_wait._Waiting())
    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/api"
        with temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: 1}):
            yield server
        server.shutdown()
    log.setLevel(levels[0])
    below.setLevel(levels[1])
    log.filters[:] = filters


def leave(server: ThreadingHTTPServer) -> None:
    server.shutdown()
    server.server_close()


def test_a_server_that_goes_away_is_waited_for_with_one_line(server, caplog):
    tell_waiting()
    tell_waiting()
    with get_client(sync_client=True) as client:
        assert client.api_healthcheck() is None
        assert caplog.messages == []
        leave(server)
        for _ in range(2):
            assert isinstance(client.api_healthcheck(), httpx.ConnectError)
    [line] = [one for one in caplog.records if one.name == "prefect.client"]
    assert line.levelno == logging.WARNING
    assert line.getMessage() == (
        f"waiting for the Prefect server at {PREFECT_API_URL.value()} for 0 s (ConnectError); "
        "asked again for 0.0 min. Start it there (prefect server start); a run that gives up goes "
        "on where it was when it is run again"
    )


def test_only_lines_on_waits_are_shown(server, caplog):
    tell_waiting()
    for logger in map(logging.getLogger, LOGGERS):
        logger.debug("not asked for")
        logger.debug("%d", "no number")  # a mistake that must not end a run
    assert caplog.messages == []


def test_a_server_that_answers_is_not_spoken_of(server, caplog):
    wait_for_server()
    assert caplog.messages == []


def test_a_server_that_was_never_there_is_given_up(server, caplog, monkeypatch):
    monkeypatch.setattr(server_wait, "PATIENCE", 1.5)
    leave(server)
    with pytest.raises(
        ServerError, match=r"^no Prefect server answers at http://127.*refused.*do "
    ):
        wait_for_server()
    assert [line.partition(" (")[0] for line in caplog.messages] == [
        f"waiting for the Prefect server at {PREFECT_API_URL.value()} for 0 s"
    ]


def test_credentials_in_the_url_of_a_server_are_not_shown(server, caplog, monkeypatch):
    monkeypatch.setattr(server_wait, "PATIENCE", 0.0)
    url = f"http://admin:secret@127.0.0.1:{server.server_port}/wrong"
    with temporary_settings({PREFECT_API_URL: url}), pytest.raises(ServerError) as found:
        wait_for_server()
    assert "404" in str(found.value)
    assert "secret" not in f"{found.value} {caplog.text}"
