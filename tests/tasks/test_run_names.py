"""Runs are named after the URLs they were given, and show no credentials."""

import importlib
import inspect
from uuid import uuid4

import pytest
from prefect import flow
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.runtime import flow_run

from flows.command_line import VERBS
from tasks.run_names import run_name


@pytest.mark.usefixtures("prefect_server")
def test_a_run_is_named_after_its_urls_without_credentials() -> None:
    @flow(flow_run_name=run_name("copy {} -> {}", "from_url", "to_url"))
    def copy(to_url: str, from_url: str, count: int = 1) -> str | None:
        return flow_run.name

    name = copy("s3://bucket/out", "zip://a::https://me:secret@host/x.zip?sig=secret")

    assert name == "copy zip://a::https://host/x.zip -> s3://bucket/out"


@pytest.mark.parametrize("verb", [*VERBS, "demo", "predict_partition"])
def test_a_run_name_begins_with_what_differs_as_prefect_shows_the_flow_before_it(verb: str) -> None:
    flow = getattr(importlib.import_module(f"flows.{verb}"), verb)
    parameters = inspect.signature(flow.fn).parameters
    given = {name: f"s3://bucket/{name}" for name in parameters} | {"first_shard": 3}
    given |= {"last_shard": 5}
    run = FlowRun(flow_id=uuid4())
    with FlowRunContext.model_construct(flow_run=run, parameters=given):
        name = flow.flow_run_name()

    assert name.startswith(("s3://bucket/", "shards-00003-00005 -> s3://bucket/output_url"))
