"""An S3 endpoint that costs little, as far away as one in the same region.

Objects lie in memory, and every answer waits. A process of its own, so that its processor time
can be told apart; it takes a tenth of a millisecond a call, where a test double of S3 in Flask
takes several, on the cores that the measured ones need. It knows the calls that s3fs, obstore,
Arrow and boto3 make to list, read, write and delete objects; signatures are not looked at.
"""

import asyncio
import hashlib
import re
import sys
import time
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.sax.saxutils import escape

from benchmarks.endpoint import endpoint
from benchmarks.machine import children, seconds_of_process

LATENCY = 0.025
"""Seconds that an answer waits."""

HEAD_END = b"\r\n\r\n"
LAST_CHUNK = b"\r\n0\r\n\r\n"
Answer = tuple[int, dict[str, str], bytes]


@contextmanager
def bucket(latency: float = LATENCY) -> Iterator[str]:
    """A bucket at such an endpoint, to which the environment points from now on."""
    with endpoint("benchmarks.s3", str(latency)):
        yield "s3://bench"


def server_seconds() -> float:
    """Processor time of the endpoint until now."""
    return sum(map(seconds_of_process, children("benchmarks.s3")))


class Objects:
    """What the endpoint holds: bodies, ETags and times by path, ``/bucket/key``."""

    def __init__(self) -> None:
        self.by_path: dict[str, tuple[bytes, str, float]] = {}
        self.paths: list[str] = []
        self.uploads: dict[str, dict[int, bytes]] = {}

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
        """Status, headers and body of the answer to a call."""
        url = urlsplit(target)
        path, query = unquote(url.path), dict(parse_qsl(url.query, keep_blank_values=True))
        if "uploads" in query or "uploadId" in query:
            return self._upload(method, path, query, body)
        if not path.strip("/").partition("/")[2]:
            return self._of_bucket(method, path, query, body)
        if method == "PUT" and headers.get("if-none-match") == "*" and path in self.by_path:
            return _error(412, "PreconditionFailed")
        if method == "PUT":
            return 200, {"ETag": self._put(path, body)}, b""
        if method == "DELETE":
            return self._delete(path)
        return self._get(path, headers.get("range", ""))

    def _put(self, path: str, body: bytes) -> str:
        etag = f'"{hashlib.md5(body).hexdigest()}"'  # what S3 gives, not a secret
        if path not in self.by_path:
            self.paths.insert(bisect_left(self.paths, path), path)
        self.by_path[path] = body, etag, time.time()
        return etag

    def _delete(self, path: str) -> Answer:
        if self.by_path.pop(path, None):
            del self.paths[bisect_left(self.paths, path)]
        return 204, {}, b""

    def _get(self, path: str, span: str) -> Answer:
        if path not in self.by_path:
            return _error(404, "NoSuchKey")
        body, etag, changed = self.by_path[path]
        headers = {
            "ETag": etag,
            "Last-Modified": formatdate(changed, usegmt=True),
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        found = re.fullmatch(r"bytes=(\d*)-(\d*)", span)
        if not found:
            return 200, headers, body
        first, last = found.groups()
        start = int(first) if first else max(0, len(body) - int(last))
        end = min(int(last) + 1 if first and last else len(body), len(body))
        if start >= end:
            return _error(416, "InvalidRange")
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(body)}"
        return 206, headers, body[start:end]

    def _of_bucket(self, method: str, path: str, query: dict[str, str], body: bytes) -> Answer:
        if "delete" in query:
            return self._delete_many(path, body)
        if method != "GET":
            return 200, {}, b""
        if "location" in query:
            return _xml("LocationConstraint", "")
        root, prefix = f"/{path.strip('/')}/", query.get("prefix", "")
        after = query.get("continuation-token") or query.get("start-after") or ""
        delimiter, most = query.get("delimiter", ""), int(query.get("max-keys", "1000"))
        say = quote if query.get("encoding-type") == "url" else escape
        files, folders, last, more = [], dict[str, None](), "", False
        for place in range(bisect_left(self.paths, root + max(prefix, after)), len(self.paths)):
            key = self.paths[place].removeprefix(root)
            if not self.paths[place].startswith(root + prefix):
                break
            cut = key.find(delimiter, len(prefix)) if delimiter else -1
            name = key[: cut + len(delimiter)] if cut >= 0 else key
            if key <= after or (name != key and (name in folders or after.startswith(name))):
                continue
            if len(files) + len(folders) == most:
                more = True
                break
            last = key
            if name != key:
                folders[name] = None
            else:
                body, etag, changed = self.by_path[self.paths[place]]
                date = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(changed))
                files.append(
                    f"<Contents><Key>{say(key)}</Key><LastModified>{date}</LastModified>"
                    f"<ETag>{escape(etag)}</ETag><Size>{len(body)}</Size>"
                    "<StorageClass>STANDARD</StorageClass></Contents>"
                )
        prefixes = [f"<CommonPrefixes><Prefix>{say(n)}</Prefix></CommonPrefixes>" for n in folders]
        return _xml(
            "ListBucketResult",
            f"<Name>{escape(root.strip('/'))}</Name><Prefix>{say(prefix)}</Prefix>"
            f"<KeyCount>{len(files) + len(folders)}</KeyCount><MaxKeys>{most}</MaxKeys>"
            + ("<EncodingType>url</EncodingType>" if say is quote else "")
            + f"<IsTruncated>{str(more).lower()}</IsTruncated>"
            + (f"<NextContinuationToken>{say(last)}</NextContinuationToken>" if more else "")
            + "".join([*files, *prefixes]),
        )

    def _upload(self, method: str, path: str, query: dict[str, str], body: bytes) -> Answer:
        if "uploads" in query:
            number = str(len(self.uploads))
            self.uploads[number] = {}
            return _xml("InitiateMultipartUploadResult", f"<UploadId>{number}</UploadId>")
        parts = self.uploads[query["uploadId"]]
        if method == "PUT":
            parts[int(query["partNumber"])] = body
            return 200, {"ETag": f'"{query["partNumber"]}"'}, b""
        if method == "POST":
            etag = self._put(path, b"".join(parts[number] for number in sorted(parts)))
            return _xml("CompleteMultipartUploadResult", f"<ETag>{escape(etag)}</ETag>")
        return 204, {}, b""

    def _delete_many(self, path: str, body: bytes) -> Answer:
        for key in re.findall(r"<Key>(.*?)</Key>", body.decode()):
            self._delete(f"/{path.strip('/')}/{key}")
        return _xml("DeleteResult", "")


def _xml(name: str, text: str) -> Answer:
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<{name}>{text}</{name}>'
    return 200, {"Content-Type": "application/xml"}, body.encode()


def _error(status: int, code: str) -> Answer:
    return status, *_xml("Error", f"<Code>{code}</Code><Message>{code}</Message>")[1:]


class Connection(asyncio.Protocol):
    """A client's: one call after another, each answered later.

    Args:
        objects: What all connections see.
        latency: Seconds that an answer waits.
    """

    def __init__(self, objects: Objects, latency: float) -> None:
        self.objects, self.latency = objects, latency
        self.loop = asyncio.get_running_loop()
        self.received = bytearray()
        self.begun: tuple[str, str, dict[str, str]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        while True:
            if self.begun is None:
                head, found, rest = self.received.partition(HEAD_END)
                if not found:
                    return
                self.received = rest
                first, *lines = head.decode("latin-1").split("\r\n")
                method, target, _ = first.split(" ")
                pairs = (line.partition(":") for line in lines)
                headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
                self.begun = method, target, headers
                if headers.get("expect") == "100-continue":
                    self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            method, target, headers = self.begun
            body, length = bytes(self.received), int(headers.get("content-length", "0"))
            if headers.get("transfer-encoding") == "chunked":
                if not body.endswith(LAST_CHUNK):
                    return
                length, body = len(body), _without_chunks(body)
            elif len(body) < length:
                return
            body = body[:length]
            del self.received[:length]
            self.begun = None
            if "aws-chunked" in headers.get("content-encoding", ""):
                body = _without_chunks(body)
            answer = self.objects.answer(method, target, headers, body)
            self.loop.call_later(self.latency, self._answer, method, answer)

    def _answer(self, method: str, answer: Answer) -> None:
        status, headers, body = answer
        lines = [f"HTTP/1.1 {status} S3", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        head = "\r\n".join([*lines, "\r\n"]).encode("latin-1")
        if not self.transport.is_closing():
            self.transport.write(head if method == "HEAD" else head + body)


def _without_chunks(body: bytes) -> bytes:
    """What a client sent in chunks, each with its length before it."""
    found, place = [], 0
    while True:
        head_end = body.index(b"\r\n", place)
        length = int(body[place:head_end].partition(b";")[0], 16)
        if not length:
            return b"".join(found)
        place = head_end + 2 + length + 2
        found.append(body[head_end + 2 : place - 2])


async def serve(latency: float) -> None:
    """Answer until the process ends; its URL is said first."""
    objects = Objects()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(objects, latency), "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(float(sys.argv[1])))
