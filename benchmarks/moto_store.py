"""moto's S3 server as a process of its own: what it holds outlives whoever is killed."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import boto3
from moto.server import ThreadedMotoServer

from benchmarks.endpoint import endpoint


@contextmanager
def moto_bucket(name: str) -> Iterator[str]:
    """URL of a new bucket at such a server, to which the environment points from now on.

    It ends when this process does.
    """
    with endpoint("benchmarks.moto_store"):
        boto3.client("s3").create_bucket(Bucket=name)
        yield f"s3://{name}"


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
