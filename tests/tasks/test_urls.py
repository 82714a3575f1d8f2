"""URLs are shown without credentials, and local ones are known."""

from pathlib import Path

import pytest

from tasks import urls


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:secret@host/a/b.jpg?sig=secret#x", "https://host/a/b.jpg"),
        ("s3://key:secret@bucket/a?b@c.jpg", "s3://bucket/a?b@c.jpg"),
        (
            "abfss://box@account.dfs.core.windows.net/x",
            "abfss://box@account.dfs.core.windows.net/x",
        ),
        ("/data/what?/a@b.jpg", "/data/what?/a@b.jpg"),
        ("simplecache::https://me:secret@host/x?sig=secret", "simplecache::https://host/x"),
        ("zip://a?@b.png::https://me:secret@host/x.zip", "zip://a?@b.png::https://host/x.zip"),
        (
            "zip://a.png::simplecache::s3://key:secret@bucket/x.zip",
            "zip://a.png::simplecache::s3://bucket/x.zip",
        ),
        ("zip://a::b.png::/data/x@y.zip", "zip://a::b.png::/data/x@y.zip"),
        ("https://me:secret@host/a::b?sig=secret", "https://host/a::b"),
        ("s3://bucket/two::colons@x.jpg", "s3://bucket/two::colons@x.jpg"),
        ("file:///data/x?y", "file:///data/x?y"),
    ],
)
def test_redact_drops_credentials_and_nothing_else(url: str, shown: str) -> None:
    assert urls.redact(url) == shown


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("/a/b", "/a/b"),
        ("file:///a/b", "/a/b"),
        ("/a/b::c", "/a/b::c"),
        ("s3://bucket/a", None),
        ("memory://a", None),
        ("simplecache::s3://bucket/a", None),
    ],
)
def test_local_path_knows_what_is_local(url: str, path: str | None) -> None:
    assert urls.local_path(url) == (Path(path) if path else None)


def test_relative_and_home_paths_are_made_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    assert urls.local_path("a/b") == Path.cwd() / "a" / "b"
    assert urls.local_path("~/b") == Path.home() / "b"
    assert urls.local_path("~nobody-at-all/b") == Path.cwd() / "~nobody-at-all" / "b"


@pytest.mark.parametrize(
    "url", ["https://me:pa'ss@host/x", "https://host/x?sig=secret", "s3://key:se'cret@bucket/x"]
)
def test_texts_show_no_credentials(url: str) -> None:
    text = urls.redact_text(f"cannot get '{url}', nor <{url}>")
    shown = urls.redact(url)
    assert text == f"cannot get '{shown}', nor <{shown}>"
