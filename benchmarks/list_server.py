"""An S3 endpoint that can only be listed: made-up keys, as cheap as a server in Python gets."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import PIPE, Popen
from urllib.parse import parse_qs, urlsplit

from benchmarks.machine import seconds_of_process

PREFIX = "photos/"


class ListServer:
    """A server in a process of its own, and what it has cost."""

    def __init__(self, endpoint: str, pid: int) -> None:
        self.endpoint = endpoint
        self._process = Path("/proc") / str(pid)

    def seconds(self) -> float:
        """Processor time of the server until now."""
        return seconds_of_process(self._process)


@contextmanager
def listed(num_keys: int) -> Iterator[ListServer]:
    """A server of so many keys below ``s3://any-bucket/photos``."""
    command = [sys.executable, "-m", "benchmarks.list_server", str(num_keys)]
    with Popen(command, stdout=PIPE, text=True) as process:
        assert process.stdout
        try:
            yield ListServer(f"http://127.0.0.1:{process.stdout.readline().strip()}", process.pid)
        finally:
            process.terminate()


def key(number: int) -> str:
    """Keys rise with their numbers; 60 characters."""
    return (
        f"{PREFIX}collection/year={2000 + number // 50_000}/camera-{number // 500 % 100:02d}/"
        f"image-{number:09d}.jpg"
    )


def page(first: int, num: int, total: int) -> bytes:
    """Objects ``first`` and on, as S3 writes them: keys in the encoding of URLs."""
    last = min(first + num, total)
    rows = "".join(
        f"<Contents><Key>{key(number).replace('=', '%3D')}</Key>"
        "<LastModified>2026-01-02T03:04:05.000Z</LastModified>"
        f"<ETag>&quot;{number:032x}&quot;</ETag><Size>{100_000 + number}</Size>"
        "<StorageClass>STANDARD</StorageClass></Contents>"
        for number in range(first, last)
    )
    following = f"<NextContinuationToken>{last}</NextContinuationToken>" if last < total else ""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>bucket</Name><Prefix>{PREFIX}</Prefix>{following}"
        f"<KeyCount>{last - first}</KeyCount><MaxKeys>{num}</MaxKeys>"
        f"<EncodingType>url</EncodingType><IsTruncated>{str(last < total).lower()}</IsTruncated>"
        f"{rows}</ListBucketResult>"
    ).encode()


class _Server(ThreadingHTTPServer):
    def __init__(self, num_keys: int) -> None:
        self.num_keys = num_keys
        super().__init__(("127.0.0.1", 0), _Call)


class _Call(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Server

    def do_GET(self) -> None:
        asked = parse_qs(urlsplit(self.path).query)
        first = int(asked.get("continuation-token", ["0"])[0])
        body = page(first, int(asked.get("max-keys", ["1000"])[0]), self.server.num_keys)
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


if __name__ == "__main__":
    with _Server(int(sys.argv[1])) as server:
        print(server.server_port, flush=True)
        server.serve_forever()
