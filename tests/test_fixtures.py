"""The fixtures themselves: what other tests take for granted."""

import subprocess
import sys

import fsspec
from prefect import flow


def test_s3_urls_work_in_this_process(s3):
    bucket = s3.new_bucket()
    fsspec.open(f"{bucket}/a/b.bin", "wb").open().close()
    filesystem, path = fsspec.url_to_fs(f"{bucket}/a/b.bin")
    filesystem.pipe_file(path, b"bytes")
    assert filesystem.cat_file(path) == b"bytes"


def test_s3_urls_work_in_a_child(s3):
    bucket = s3.new_bucket()
    code = f"import fsspec; fs, p = fsspec.url_to_fs('{bucket}/k'); fs.pipe_file(p, b'child')"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    filesystem, path = fsspec.url_to_fs(f"{bucket}/k")
    assert filesystem.cat_file(path) == b"child"


def test_every_bucket_is_new(s3):
    assert s3.new_bucket() != s3.new_bucket()


def test_flows_run_on_the_test_server(prefect_server):
    @flow
    def double(number: int) -> int:
        return 2 * number

    assert double(21) == 42
