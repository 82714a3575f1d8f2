"""Keys of assets: the URL where Prefect takes it, and always one that it takes."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect.assets import Asset

from tasks.assets import MAX_KEY_LENGTH, asset_key, materialise


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("/data/set", "file:///data/set"),
        ("file:///data/set", "file:///data/set"),
        ("s3://bucket/run/model.safetensors", "s3://bucket/run/model.safetensors"),
        ("https://me:secret@host/x?sig=secret", "https://host/x"),
        ("s3://bucket/ünï/日本", "s3://bucket/ünï/日本"),
        ("S3://bucket/a", "s3://bucket/a"),
    ],
)
def test_a_key_is_the_url_where_it_can_be(url: str, key: str) -> None:
    assert asset_key(url) == key


def test_a_relative_path_is_made_absolute() -> None:
    assert asset_key("work/set") == f"file://{Path.cwd()}/work/set"


@pytest.mark.parametrize(
    ("url", "begin"),
    [
        ("/data/my set", "file:///data/my_set~"),
        ("s3://bucket/a?b", "s3://bucket/a_b~"),
        ("git+ssh://host/a", "gitssh://host/a~"),
        ("simplecache::s3://bucket/a", "store://simplecache::s3://bucket/a~"),
        ("s3://bucket/" + "x" * 600, "s3://bucket/xxx"),
    ],
)
def test_other_urls_get_a_key_of_their_own(url: str, begin: str) -> None:
    key = asset_key(url)
    assert key.startswith(begin)
    assert len(key) <= MAX_KEY_LENGTH
    assert key != asset_key(url + " ")


@given(st.text(st.characters(exclude_characters="\x00")))
def test_prefect_takes_every_key(url: str) -> None:
    for one in (url, f"s3://{url}", f"/{url}", f"https://{url}"):
        try:
            key = asset_key(one)
        except ValueError:  # no URL at all, such as https://[
            continue
        assert Asset(key=key).key == key
        key.encode()


def test_outside_of_a_task_there_is_nothing_to_tell() -> None:
    materialise("/data/set", name="dataset", digest=hashlib.sha256(b"").hexdigest())
