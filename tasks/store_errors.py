"""What stores say when they refuse, and whether they may say something else later."""

import contextlib
import errno
from collections.abc import Iterator
from urllib.parse import urlsplit

from tasks.urls import redact, redact_text

_LASTING = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG),
    *(errno.ENAMETOOLONG, errno.EINVAL),
}
_NEXT_STEPS = {
    errno.EROFS: "; choose another place",
    errno.ENOSPC: "; make room there, then run again",
    errno.EDQUOT: "; make room there, then run again",
}
_LASTING_ERRORS = (
    *(FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError),
    *(NotImplementedError, ImportError, ValueError),
)
_REFUSED = {400, 401, 403, 405, 501}  # HTTP statuses that asking again does not change
_ABSENT = {404, 410}  # those that tell of nothing there


class StoreError(Exception):
    """A URL that cannot be listed, read or written, and why."""


class StoreUnavailable(StoreError):
    """A store that does not answer as it should: it may do so later, see `is_transient`."""


class ClientError(Exception):
    """What a store's client said, without credentials: the cause that a traceback shows.

    Attributes:
        errno: of the client's error, if it had one.
    """

    errno: int | None = None


def is_transient(error: BaseException) -> bool:
    """Whether reading or writing again may succeed where it just failed with ``error``.

    A missing object, a refused permission and a full disk are not transient. Clients of
    stores also raise errors of their own (aiohttp, botocore, …), which fsspec passes on.
    """
    if isinstance(error, StoreUnavailable):
        return True
    if isinstance(error, _LASTING_ERRORS) or "Credentials" in type(error).__name__:
        return False
    if isinstance(error, OSError):
        return error.errno not in _LASTING
    if getattr(error, "status", None) in _REFUSED:
        return False
    package = type(error).__module__.partition(".")[0]
    return package in {"aiohttp", "botocore", "aiobotocore", "gcsfs", "azure", "fsspec"}


@contextlib.contextmanager
def explained(url: str, verb: str) -> Iterator[None]:
    """Turn what a store says into a `StoreError`; faults of the program stay what they are.

    Args:
        url: What is being read or written within the ``with`` block.
        verb: What is being done to it, as in ``cannot write URL: …``.

    Raises:
        StoreError: in the place of the error of a store.
    """
    place = redact(url)
    try:
        yield
    except StoreError:
        raise
    except PermissionError as error:
        raise StoreError(
            f"cannot {verb} {place}: permission denied; check who owns it and the credentials "
            "in the environment or in fsspec's configuration"
        ) from _shown(error)
    except Exception as error:
        found = what_happened(error)
        if isinstance(found, FileNotFoundError):
            raise StoreError(f"cannot {verb} {place}: nothing there") from _shown(found)
        if is_transient(found):
            host = _unreached(found)
            raise StoreUnavailable(
                f"cannot {verb} {place}: {f'{host} cannot be reached: ' if host else ''}"
                f"{type(found).__name__}: {_reason(found)}; check the "
                "store's endpoint and the network, then run again"
            ) from _shown(found)
        if _is_lasting(found):
            raise StoreError(f"cannot {verb} {place}: {_reason(found)}") from _shown(found)
        raise


def what_happened(error: Exception) -> Exception:
    """What fsspec's HTTP client met: it says "not found" whatever that was."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or not isinstance(cause, Exception):
        return error
    is_answer = getattr(cause, "status", None) in _ABSENT
    is_http = type(cause).__module__.partition(".")[0] == "aiohttp"
    met = isinstance(cause, TimeoutError) or (is_http and not is_answer)
    return cause if met else error


def _unreached(error: Exception) -> str:
    """The host, with its port, to which there was no connection; empty for other errors."""
    package = type(error).__module__.partition(".")[0]
    if package == "aiohttp" and hasattr(error, "port"):
        return f"{getattr(error, 'host', '')}:{error.port}"
    if package == "botocore" and type(error).__name__.endswith(
        ("ConnectionError", "ConnectTimeoutError")
    ):
        parts = urlsplit(str(getattr(error, "kwargs", {}).get("endpoint_url", "")))
        return parts.netloc.rpartition("@")[2]
    return ""


def _shown(error: Exception) -> ClientError:
    """What stands for a client's error, and those it came of, in a traceback that Prefect keeps.

    Clients put whole URLs into their errors, with what a redirect or an endpoint has in them.
    """
    said = ClientError(f"{type(error).__module__}.{type(error).__name__}: {_reason(error)}")
    said.errno = getattr(error, "errno", None)
    return said.with_traceback(error.__traceback__)


def _is_lasting(error: Exception) -> bool:
    """Whether the store, or fsspec for it, refuses for good."""
    refused = getattr(error, "status", None) in _REFUSED or "Credentials" in type(error).__name__
    return refused or isinstance(error, OSError | NotImplementedError | ImportError | ValueError)


def _reason(error: Exception) -> str:
    """What an error says, without the credentials of URLs in it."""
    if isinstance(error, NotImplementedError):
        return "this store can only be read"
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror.lower() + _NEXT_STEPS.get(error.errno or 0, "")
    else:
        answer = (getattr(error, "status", None), getattr(error, "message", None))  # of HTTP
        text = " ".join(str(part) for part in answer if part) if answer[1] else str(error)
    return redact_text(text)
