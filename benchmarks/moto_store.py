"""moto's S3 server as a process of its own: what it holds outlives whoever is killed."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import PIPE, Popen

import boto3
from moto.server import ThreadedMotoServer


@contextmanager
def moto_bucket(name: str) -> Iterator[str]:
    """URL of a new bucket at such a server, to which the environment points from now on.

    The server is no member of this process's group: signals for that do not reach it. It ends
    when this process does.
    """
    command = [sys.executable, "-m", "benchmarks.moto_store"]
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
            boto3.client("s3").create_bucket(Bucket=name)
            yield f"s3://{name}"
        finally:
            server.terminate()


def serve() -> None:
    """Answer until nobody holds the other end of the input; the endpoint is said first."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a line for every call
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    print(f"http://{host}:{port}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    serve()
