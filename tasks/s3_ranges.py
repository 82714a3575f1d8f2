"""Byte ranges of S3 objects through obstore, where it is installed: a fraction of s3fs's work.

obstore only ever gives bytes. What it does not give is asked of s3fs, whose word it is why; and
what s3fs knows (endpoint, region, where credentials come from) is what obstore is told. So rows
are the same with and without it.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

from fsspec.asyn import sync

IS_INSTALLED = find_spec("obstore") is not None

CREDENTIALS_SECONDS = 60
"""How long credentials are used before s3fs's session, which renews them, is asked for them."""

_KNOWN = {"use_listings_cache", "endpoint_url", "key", "secret", "token", "anon", "config_kwargs"}
_KNOWN_CLIENT = {"read_timeout", "connect_timeout", "retries"}
_PATIENCE = 60  # seconds to connect, and between reads: botocore's own, where no other is set
_ENDLESS = timedelta(days=1)  # botocore has no limit for a whole answer; obstore's own is 30 s


def read_ranges(
    fs: Any,
    paths: Sequence[str],
    starts: Sequence[int | None],
    ends: Sequence[int | None],
    concurrency: int,
) -> list[bytes | None]:
    """One attempt at each range of `tasks.ranges.read_ranges`; ``None`` for what is not read.

    Nothing is read where obstore is not installed or ``fs`` is another store, has settings that
    obstore is not known to take in the same way, or has no credentials.
    """
    if not (IS_INSTALLED and _is_plain(fs)):
        return [None] * len(paths)

    async def read_all() -> list[bytes | None]:
        try:
            await fs.set_session()
        except Exception:  # noqa: BLE001 - s3fs tells it in its words
            return [None] * len(paths)
        free = asyncio.Semaphore(concurrency)

        async def read(path: str, start: int | None, end: int | None) -> bytes | None:
            async with free:
                return await _read_one(fs, path, start, end)

        return await asyncio.gather(*map(read, paths, starts, ends))

    found: list[bytes | None] = sync(fs.loop, read_all)
    return found


async def _read_one(fs: Any, path: str, start: int | None, end: int | None) -> bytes | None:
    import obstore  # noqa: PLC0415 - it comes with the extra `fast`

    bucket, _, key = path.partition("/")
    # obstore takes "/a", "a/" and "a" for one key; other keys it cannot name it refuses
    if start is None or end is None or "//" in f"/{key}/":
        return None
    try:
        return bytes(await obstore.get_range_async(_store(fs, bucket), key, start=start, end=end))
    except Exception:  # noqa: BLE001 - whatever it is, s3fs is asked, and tells it in its words
        return None


def _is_plain(fs: Any) -> bool:
    """Whether these are S3's file system and settings of which obstore has the like."""
    options = getattr(fs, "storage_options", {})
    return (
        type(fs).__module__ == "s3fs.core"
        and not getattr(fs, "version_aware", False)
        and options.keys() <= _KNOWN
        and options.get("config_kwargs", {}).keys() <= _KNOWN_CLIENT
    )


@lru_cache(maxsize=16)
def _store(fs: Any, bucket: str) -> Any:
    """A bucket as s3fs, connected, would ask for it."""
    from obstore.store import S3Store  # noqa: PLC0415 - it comes with the extra `fast`

    place = fs.s3.meta
    client = fs.storage_options.get("config_kwargs", {})
    connect, read = (
        timedelta(seconds=client.get(name, _PATIENCE))
        for name in ("connect_timeout", "read_timeout")
    )
    unsigned = {"skip_signature": True} if fs.anon else {"credential_provider": _credentials(fs)}
    return S3Store(
        bucket,
        endpoint=place.endpoint_url,
        region=place.region_name,
        client_options={
            "allow_http": True,
            "connect_timeout": connect,
            "read_timeout": read,
            "timeout": _ENDLESS,
        },
        retry_config={"max_retries": 0},  # s3fs tries again
        **unsigned,
    )


def _credentials(fs: Any) -> Callable[[], Coroutine[Any, Any, dict[str, Any]]]:
    async def provide() -> dict[str, Any]:
        if fs.key:
            key, secret, token = fs.key, fs.secret, fs.token
        else:
            found = await fs.session.get_credentials()
            frozen = await found.get_frozen_credentials()
            key, secret, token = frozen.access_key, frozen.secret_key, frozen.token
        return {
            "access_key_id": key,
            "secret_access_key": secret,
            "token": token,
            "expires_at": datetime.now(UTC) + timedelta(seconds=CREDENTIALS_SECONDS),
        }

    return provide
