"""Names that stand in the names of columns and folders: of bands and of further heads."""

import re

_NAME = re.compile(r"[A-Za-z0-9]+(?:_[A-Za-z0-9]+)*")
_NO_HEAD = re.compile(r"[0-9]|rle(_|$)")


def check_band_name(name: str) -> None:
    """Find out whether a band may have this name, which columns and folders will bear.

    Raises:
        ValueError: other signs than letters, digits and single underscores between them.
    """
    _check(name, "band")


def check_head_name(name: str) -> None:
    """Find out whether a further head may have this name, which columns and folders will bear.

    Raises:
        ValueError: as for a band; or a digit at the beginning; or ``rle`` there, which stands
            for run lengths in the names of columns.
    """
    _check(name, "head")
    if _NO_HEAD.match(name):
        raise ValueError(
            f"{name!r} is no name of a head: it begins with a digit, or with rle, which stands "
            "for run lengths"
        )


def _check(name: str, what: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is no name of a {what}: expected letters and digits, with single "
            "underscores between them if wanted"
        )
