"""What the automations count on: settings of runs, of the server, and the hooks of flows."""

import importlib
import json
import sys
import tomllib
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.automations import Automation
from prefect.blocks.system import Secret
from prefect.blocks.webhook import Webhook
from prefect.client.schemas.objects import Flow, FlowRun
from prefect.server.events.jinja_filters import all_filters
from prefect.server.utilities.user_templates import (
    register_user_template_filters,
    render_user_template_sync,
)
from prefect.settings import get_current_settings
from prefect.states import Crashed

import flows.predict
from flows.command_line import PREFECT_SETTINGS, VERBS
from tasks.notify import URL_BLOCK, notify, summary
from tasks.settle import settle

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["prefect"]


@pytest.fixture(scope="module")
def automations():
    sys.path.insert(0, str(ROOT / "deployments"))
    yield importlib.import_module("automations")
    sys.path.remove(str(ROOT / "deployments"))


def test_a_killed_run_is_found_within_two_minutes_and_two_heartbeats_may_be_lost(automations):
    heartbeat = SHIPPED["flows"]["heartbeat_frequency"]
    looks = get_current_settings().server.events.proactive_granularity.total_seconds()
    within = automations.crashed().trigger.within.total_seconds()
    assert 3 * heartbeat < within <= 120 - looks


def test_a_run_sends_heartbeats_and_waits_for_its_server_wherever_it_is_started():
    assert PREFECT_SETTINGS["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == str(
        SHIPPED["flows"]["heartbeat_frequency"]
    )
    assert PREFECT_SETTINGS["PREFECT_CLIENT_MAX_RETRIES"] == str(SHIPPED["client"]["max_retries"])


@pytest.mark.parametrize("verb", VERBS)
def test_every_flow_tells_of_its_end_and_settles_what_a_killed_process_left(verb):
    flow = getattr(importlib.import_module(f"flows.{verb}"), verb)
    assert flow.on_completion_hooks == [notify]
    assert flow.on_failure_hooks == [notify]
    assert flow.on_crashed_hooks == [settle, notify]
    assert flow.on_cancellation_hooks == [settle, notify]
    assert flow.on_running_hooks == [settle]


def test_the_automation_of_killed_runs_knows_every_flow_by_its_name(automations):
    names = {getattr(importlib.import_module(f"flows.{verb}"), verb).name for verb in VERBS}
    assert names <= set(automations.OURS["prefect.resource.name"])


def test_what_the_server_posts_of_a_killed_run_is_json_whatever_the_run_is_called(automations):
    run = FlowRun(
        id=uuid4(),
        flow_id=uuid4(),
        name='predict "new"\n-> out',
        state=Crashed(message=automations.NO_HEARTBEAT),
    )
    register_user_template_filters(all_filters)
    text = render_user_template_sync(
        automations.KILLED, {"flow": Flow(name="predict", id=run.flow_id), "flow_run": run}
    )
    told = json.loads(text)
    assert told.keys() == summary(flows.predict.predict, run, run.state).keys()
    assert told["run"] == run.name
    assert told["message"] == automations.NO_HEARTBEAT


@pytest.fixture
def no_webhook(prefect_server):
    yield
    Secret.delete(URL_BLOCK)


def test_the_secret_block_is_the_one_place_of_the_webhook(automations, no_webhook):
    """What runs read is where the server posts; once from the environment, then as changed."""
    automations.install_automations("https://first.example/hook")
    assert Secret.load(URL_BLOCK).get() == "https://first.example/hook"
    Secret(value="https://second.example/hook").save(URL_BLOCK, overwrite=True)
    made = automations.install_automations()
    assert automations.URL_BLOCK == URL_BLOCK
    block = Webhook.load(automations.WEBHOOK)
    assert block.url.get_secret_value() == "https://second.example/hook"
    [action] = Automation.read(name=made[2]).actions
    assert action.block_document_id == block._block_document_id
