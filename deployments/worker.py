"""A Prefect worker that leaves nothing behind: ``python deployments/worker.py --pool NAME``.

``prefect worker start`` ends on SIGTERM together with its flow runs, and the server goes on
showing these as running. This script starts it, with the options it is given, and on SIGTERM
or Ctrl-C stops the flow runs first, while there is a worker to report them: each is marked
crashed. It takes less than the ten seconds that ``docker stop`` gives.

A worker that is started before its server, as after a power cut, waits for it and says so.
"""

import ctypes
import http.client
import math
import os
import re
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress

GRACE = 4.0
"""Seconds that a flow run has to end by itself; what it had not written is done anew."""

REPORT = 3.0
"""Seconds that a worker has to report its last flow run, before it must end as well."""

LEAVE = 2.0
"""Seconds that a worker without a flow run has to end."""

TELL = 60.0
"""Seconds between two lines about a server that does not answer."""


def main(options: list[str]) -> int:
    """Runs a worker until it ends or this process is told to; returns the exit status."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    wait_for_server(os.environ.get("PREFECT_API_URL"))
    command = [sys.executable, "-m", "prefect", "worker", "start", *options]
    # A session of its own: a Ctrl-C reaches it from here, once, in the right order.
    worker = subprocess.Popen(
        command,
        start_new_session=True,
        preexec_fn=end_with_parent,
    )
    try:
        return worker.wait()
    finally:
        stop(worker)


def stop(worker: "subprocess.Popen[bytes]") -> None:
    """Stops a worker, its flow runs first: the server hears of each that it was stopped."""
    if children(worker.pid):
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in children(worker.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            wait_until(lambda: not children(worker.pid), GRACE)
        # A worker that knows of the end of its last flow run tells the server, and hooks.
        wait_until(lambda: worker.poll() is not None, REPORT)
    worker.terminate()
    try:
        worker.wait(LEAVE)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()


def wait_for_server(url: str | None) -> None:
    """Returns when the server answers, or at once where only a profile names it."""
    start = time.monotonic()
    told = -math.inf
    url = url and re.sub("//[^/]*@", "//", url)  # Prefect's to send, and nobody's to read
    while url and (reason := no_answer(f"{url}/health")):
        if time.monotonic() - told >= TELL:
            told = time.monotonic()
            print(
                f"waiting for the Prefect server at {url} for {told - start:.0f} s: {reason}; "
                "start it there (prefect server start), or correct PREFECT_API_URL",
                file=sys.stderr,
                flush=True,
            )
        time.sleep(1)


def no_answer(url: str) -> str | None:
    """Why nobody answers there; None if somebody does, whatever they say.

    Whoever shows a certificate is there: which to trust is in Prefect's settings.
    """
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except (urllib.error.HTTPError, ValueError):  # a URL that is none is the worker's to tell
        return None
    except OSError as error:
        is_untrusted = isinstance(getattr(error, "reason", error), ssl.SSLCertVerificationError)
        return None if is_untrusted else str(error)
    except http.client.HTTPException:
        return None
    return None


def wait_until(there: Callable[[], bool], seconds: float) -> None:
    """Waits until something is the case, at most so long."""
    end = time.monotonic() + seconds
    while not there() and time.monotonic() < end:
        time.sleep(0.1)


def children(parent: int) -> list[int]:
    """The processes that `parent` has started."""
    table = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid="],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = (map(int, line.split()) for line in table.stdout.splitlines())
    return [pid for pid, ppid in rows if ppid == parent]


def end_with_parent() -> None:
    """Asks Linux for SIGTERM when the parent dies, even by SIGKILL."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # <sys/prctl.h>
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
