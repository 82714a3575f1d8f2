"""Runs are named after the URLs they were given, and show no credentials."""

import pytest
from prefect import flow
from prefect.runtime import flow_run

from tasks.run_names import run_name


@pytest.mark.usefixtures("prefect_server")
def test_a_run_is_named_after_its_urls_without_credentials() -> None:
    @flow(flow_run_name=run_name("copy {} -> {}", "from_url", "to_url"))
    def copy(to_url: str, from_url: str, count: int = 1) -> str | None:
        return flow_run.name

    name = copy("s3://bucket/out", "zip://a::https://me:secret@host/x.zip?sig=secret")

    assert name == "copy zip://a::https://host/x.zip -> s3://bucket/out"
