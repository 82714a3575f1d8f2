"""Of what stores say, only what may pass is tried again, and no credential is shown."""

import errno
import traceback
import uuid

import pytest
from botocore.exceptions import NoCredentialsError

from tasks.store_errors import StoreError, StoreUnavailable, explained, is_transient


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (TimeoutError("slow"), True),
        (OSError(errno.EREMOTEIO, "500"), True),
        (ConnectionResetError(), True),
        (FileNotFoundError(), False),
        (PermissionError(), False),
        (OSError(errno.ENOSPC, "full"), False),
        (NotADirectoryError(), False),
        (NoCredentialsError(), False),
        (StoreUnavailable("503"), True),
        (StoreError("refused"), False),
        (ValueError("no"), False),
    ],
)
def test_only_errors_that_may_pass_are_transient(error: Exception, transient: bool) -> None:
    assert is_transient(error) is transient


def _fail(secret: str) -> None:
    cause = ConnectionResetError(f"https://me:{secret}@proxy")
    raise OSError(errno.EIO, f"no answer of https://me:{secret}@host/x?sig={secret}") from cause


def test_a_traceback_shows_what_the_client_said_without_credentials() -> None:
    secret = uuid.uuid4().hex
    with pytest.raises(StoreError) as caught, explained("https://host/x", "read"):
        _fail(secret)
    shown = "".join(traceback.format_exception(caught.value))
    assert "ClientError: builtins.OSError: no answer of https://host/x" in shown
    assert "in _fail" in shown
    assert secret not in shown
    assert caught.value.__cause__.errno == errno.EIO  # type: ignore[union-attr]
