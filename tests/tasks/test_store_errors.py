"""Of what stores say, only what may pass is worth another attempt."""

import errno

import pytest
from botocore.exceptions import NoCredentialsError

from tasks.store_errors import StoreError, StoreUnavailable, is_transient


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
