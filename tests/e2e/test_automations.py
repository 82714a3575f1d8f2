"""The automations on a real server: made once, kept as the operator has them, and at work."""

from datetime import timedelta

import pytest
from prefect.automations import Automation
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
from prefect.events import emit_event
from prefect.states import Completed, Running, Scheduled

from tests.e2e.machine import machine, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

EVALUATE = "fcn: evaluate after train"
PROMOTE = "fcn: promote after train"
PREDICT = "fcn: predict when a model is promoted"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A server with the deployments, promote among them, and the automations."""
    with machine(tmp_path_factory.mktemp("automations") / "home") as made:
        made.start_server()
        with get_client(sync_client=True) as client:
            client.create_deployment(client.create_flow_from_name("promote"), "promote")
        made.set_up()
        yield made


def installed():
    with get_client(sync_client=True) as client:
        return {automation.name: automation for automation in client.read_automations()}


def switch_on(name, parameters):
    """What an operator does to a link of the chain: fill in, and enable."""
    automation = Automation.read(name=name)
    [action] = automation.actions
    action.parameters |= parameters
    automation.enabled = True
    automation.update()


def newest_run(deployment):
    with get_client(sync_client=True) as client:
        named = DeploymentFilter(name=DeploymentFilterName(any_=[deployment]))
        return next(iter(client.read_flow_runs(deployment_filter=named)), None)


def test_the_chain_is_shipped_switched_off(made):
    enabled = {name for name, automation in installed().items() if automation.enabled}
    assert installed().keys() - enabled == {EVALUATE, PROMOTE, PREDICT}
    assert len(enabled) == 2


def test_installing_again_keeps_what_the_operator_has_set(made):
    name = "fcn: without a heartbeat a run has crashed"
    crashed = Automation.read(name=name)
    crashed.enabled, crashed.trigger.within = False, timedelta(seconds=500)
    crashed.update()
    switch_on(PROMOTE, {"models_url": "s3://bucket/models"})
    before = installed()
    made.run("deployments/automations.py")
    after = installed()
    assert {n: automation.id for n, automation in after.items()} == {
        n: automation.id for n, automation in before.items()
    }
    assert not after[name].enabled  # a switch is the operator's, the definition is ours
    assert after[name].trigger.within == timedelta(seconds=105)
    assert after[PROMOTE] == before[PROMOTE]


def test_a_trained_model_is_scored_and_compared_and_a_better_one_segments_the_collection(made):
    switch_on(EVALUATE, {"split": "test"})
    switch_on(PROMOTE, {"models_url": "s3://bucket/models"})
    switch_on(PREDICT, {"collection_url": "s3://bucket/in", "output_url": "s3://bucket/out"})
    with get_client(sync_client=True) as client:
        train = client.read_deployment_by_name("train/train")
        run = client.create_flow_run_from_deployment(
            train.id,
            parameters={"dataset_url": "s3://bucket/dataset", "run_url": "s3://bucket/run"},
        )
        for state in (Scheduled(), Running(), Completed()):
            client.set_flow_run_state(run.id, state, force=True)
    evaluating = wait_for("run of evaluate", lambda: newest_run("evaluate"), 60)
    assert evaluating.parameters == {
        "dataset_url": "s3://bucket/dataset",
        "model_url": "s3://bucket/run/model.safetensors",
        "report_url": "s3://bucket/run/evaluation",
        "split": "test",
    }
    promoting = wait_for("run of promote", lambda: newest_run("promote"), 60)
    assert promoting.parameters == {
        "dataset_url": "s3://bucket/dataset",
        "challenger_url": "s3://bucket/run/model.safetensors",
        "models_url": "s3://bucket/models",
    }

    emit_event(
        "fcn.model.promoted",
        resource={"prefect.resource.id": "fcn.model.0123"},
        payload={"serving_url": "s3://bucket/models/serving.json"},
    )
    predicting = wait_for("run of predict", lambda: newest_run("predict"), 60)
    assert predicting.parameters == {
        "collection_url": "s3://bucket/in",
        "model_url": "s3://bucket/models/serving.json",
        "output_url": "s3://bucket/out",
    }
