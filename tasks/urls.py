"""URLs as text: their parts, and what of them may be shown."""

import contextlib
import re
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]*)://")
"""What begins every URL but a plain path."""

_ARCHIVES = {"zip", "tar", "libarchive"}  # zip://MEMBER::URL-OF-THE-ARCHIVE
_QUERY_IS_NAME = {"s3", "s3a", "gs", "gcs", "memory", "az", "abfs", "abfss", *_ARCHIVES}
_USER_IS_NAME = {"abfs", "abfss", *_ARCHIVES}  # abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/…
_LINK = re.compile(r"::(?=[A-Za-z][A-Za-z0-9+.\-]*://)")
_CACHE = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*::")  # simplecache::URL
_URL_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://(?:[^\s/?#]*@)?[^\s'\"<>]+")


def join(url: str, *parts: str) -> str:
    """``url`` and ``parts`` with exactly one slash between them."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)])


def local_path(url: str) -> Path | None:
    """The local path that ``url`` means, or ``None`` for any other store."""
    match = SCHEME.match(url)
    if match and match["scheme"] not in {"file", "local"}:
        return None
    if "::" in url and not url.startswith(("/", ".", "file:", "local:")):
        return None
    path = Path(url[match.end() :] if match else url)
    with contextlib.suppress(RuntimeError):  # "~nobody" is a name like any other
        path = path.expanduser()
    return path.absolute()


def absolute(url: str) -> str:
    """``url``, where it is a local path as a process in any folder may open it."""
    path = local_path(url)
    return url if path is None else str(path)


def redact(url: str) -> str:
    """``url`` without user name, password and query string: fit for a log or a table."""
    if local_path(url) is not None:
        return url
    links = _LINK.split(url) if is_chain(url) else [url]
    return "::".join(map(_redact_link, links))


def redact_text(text: str) -> str:
    """A text, such as the error of a client, with every URL in it as `redact` gives it."""
    return _URL_IN_TEXT.sub(lambda found: redact(found[0]), text)


def _redact_link(url: str) -> str:
    match = SCHEME.match(url)
    if not match:
        return url
    scheme = match["scheme"]
    if scheme in _QUERY_IS_NAME:  # there, "?" and "#" are characters of a key like any other
        place, slash, rest = url[match.end() :].partition("/")
        place = place if scheme in _USER_IS_NAME else place.rpartition("@")[2]
        return f"{match[0]}{place}{slash}{rest}"
    found = urlsplit(url)
    return urlunsplit((found.scheme, found.netloc.rpartition("@")[2], found.path, "", ""))


def split_glob(url: str) -> tuple[str, str]:
    """The folders before the first wildcard, and the pattern from there on ("" for none)."""
    web = url.startswith(("http://", "https://"))  # where "?" begins a query
    parts = url.split("/")
    for index, part in enumerate(parts):
        if re.search(r"[*\[]" if web else r"[*?\[]", part):
            return "/".join(parts[:index]), "/".join(parts[index:])
    return url, ""


def is_chain(url: str) -> bool:
    """Whether fsspec is to go through several stores; ``::`` may be in a name, too."""
    match = SCHEME.match(url)
    in_archive = match is not None and match["scheme"] in _ARCHIVES and "::" in url
    return in_archive or bool(_LINK.search(url) or _CACHE.match(url))
