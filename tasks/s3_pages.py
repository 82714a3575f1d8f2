"""Pages of an S3 listing, read with expat: botocore's own parser takes 30 times as long.

The request is s3fs's, with its retries, time-outs and credentials; only what botocore makes of
the answer is replaced, by a hook that botocore offers (``before-parse``), and only for the
listings that ask for it here: the client belongs to others too. An answer that is no page, an
error above all, is left to botocore.
"""

from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any
from urllib.parse import unquote_plus
from xml.parsers import expat

from botocore.parsers import ResponseParserError
from botocore.utils import parse_timestamp
from fsspec.asyn import sync

Found = dict[str, Any]
"""One object as S3 tells it: texts by name, such as ``Key``, ``Size`` and ``ETag``."""

_HOOK = "before-parse.*.ListObjectsV2"
"""With a wildcard it comes before ``before-parse.s3.*``, where botocore parses every body to find
errors that have the status 200; the other way round is as right, and takes longer."""

_is_wanted = ContextVar("_is_wanted", default=False)


def pages(fs: Any, bucket: str, prefix: str) -> Iterator[list[Found]]:
    """The objects below ``prefix`` of a bucket, 1,000 a request, sorted by key.

    Args:
        fs: s3fs's file system.
        bucket: its name.
        prefix: what their keys begin with.

    Raises:
        Exception: of s3fs and botocore, as from any call; also while iterating.
    """
    position: dict[str, str] = {}
    while True:
        sync(fs.loop, _hook, fs, bucket)  # s3fs may have connected anew since
        token = _is_wanted.set(True)  # goes with the call to s3fs's thread
        try:
            answer = fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **position)
        finally:
            _is_wanted.reset(token)
        if "Page" not in answer:
            raise ResponseParserError("s3fs connected anew during a listing")
        found, following = answer["Page"]
        yield found
        if following is None:
            return
        position = {"ContinuationToken": following}


async def _hook(fs: Any, bucket: str) -> None:
    await fs.set_session()
    client = await fs.get_s3(bucket)
    client.meta.events.register(_HOOK, _parse_instead, unique_id="fcn-flows-pages")


def _parse_instead(
    response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any
) -> None:
    """Parse the body and leave nothing of it to botocore, if it is a page."""
    if _is_wanted.get() and response_dict["status_code"] == 200:
        page = parse(response_dict["body"])
        if page is not None:
            customized_response_dict["Page"] = page
            response_dict["body"] = b""


def parse(body: bytes) -> tuple[list[Found], str | None] | None:
    """The objects of a page, and the token of the next page; ``None`` for what is no page.

    No page is what was cut off, or an error: botocore asks again, and s3fs too.

    Raises:
        ResponseParserError: nothing at all, a document type (with it come entities), XML of
            something else, or not what a page must have; s3fs asks again.
    """
    try:
        root, fields, found = _read(body)
        if root == "Error":
            return None
        if root != "ListBucketResult":
            raise ValueError(f"it begins with <{root[:40]}>")  # noqa: TRY301 - as what lacks a key
        return _decoded(found, fields.get("EncodingType") == "url"), _following(fields)
    except expat.ExpatError:
        if body:
            return None
        raise ResponseParserError("a page of a listing is empty") from None
    except (ValueError, KeyError) as error:
        raise ResponseParserError(
            f"unable to parse a page of a listing: {type(error).__name__}: {error}"
        ) from error


def _read(body: bytes) -> tuple[str, dict[str, str], list[Found]]:
    """Name of the root, texts of what is directly below it, and the same of each ``Contents``."""
    names: list[str] = []
    root, text = "", ""
    fields: dict[str, str] = {}
    item: Found = {}
    found: list[Found] = []

    def start(name: str, _: object) -> None:
        nonlocal text, root
        root = root or name
        names.append(name)
        text = ""

    def add(data: str) -> None:
        nonlocal text
        text += data

    def end(name: str) -> None:
        nonlocal item
        names.pop()
        depth = len(names)
        if depth == 2 and names[1] == "Contents":
            item[name] = text
        elif depth == 1 and name == "Contents":
            found.append(item)
            item = {}
        elif depth == 1:
            fields[name] = text

    def refuse(*_: object) -> None:
        raise ValueError("it has a document type")

    parser = expat.ParserCreate("utf-8")
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = start
    parser.CharacterDataHandler = add
    parser.EndElementHandler = end
    parser.Parse(body, True)
    return root, fields, found


def _decoded(found: list[Found], is_encoded: bool) -> list[Found]:
    """Keys as they are, sizes as numbers; a time only where it is the version."""
    for one in found:
        key = one["Key"]
        if is_encoded and ("%" in key or "+" in key):
            one["Key"] = unquote_plus(key)
        if "Size" in one:
            one["Size"] = int(one["Size"])
        if not one.get("ETag") and "LastModified" in one:
            one["LastModified"] = parse_timestamp(one["LastModified"])
    return found


def _following(fields: dict[str, str]) -> str | None:
    return fields["NextContinuationToken"] if fields.get("IsTruncated") == "true" else None
