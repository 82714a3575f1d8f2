"""An S3 endpoint in a process of its own."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import PIPE, Popen


@contextmanager
def endpoint(module: str, *arguments: str) -> Iterator[None]:
    """Run a module that says its URL first; the environment points to it from now on.

    It is no member of this process's group: signals for that do not reach it. Its input ends
    when this process does.
    """
    command = [sys.executable, "-m", module, *arguments]
    with Popen(command, stdin=PIPE, stdout=PIPE, text=True, start_new_session=True) as server:
        assert server.stdout
        try:
            os.environ |= {
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_EC2_METADATA_DISABLED": "true",
                "AWS_ENDPOINT_URL": server.stdout.readline().strip(),
            }
            yield
        finally:
            server.terminate()
