"""The automations of a Prefect server that runs these flows.

::

    PREFECT_API_URL=http://127.0.0.1:4200/api python deployments/automations.py

Two keep the record true: a run whose process is gone is marked crashed within two minutes,
and started again where a tag asks for it. One tells the webhook of such a crash, if there is
a webhook: its URL is that of the Secret block which runs read, too. Three are a chain, from a
trained model to its scores and to the masks of a better one; as schedules, they are shipped
switched off, with the parameters to be filled in.

Running it again brings the first three up to date, the webhook's URL with them. The chain is
left as it is found: its parameters are the operator's.
"""

import os
import sys
from datetime import timedelta
from uuid import UUID

from prefect.automations import Automation, EventTrigger
from prefect.blocks.system import Secret
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events.actions import CallWebhook, ChangeFlowRunState, RunDeployment
from prefect.events.schemas.automations import Posture
from prefect.exceptions import ObjectNotFound
from prefect.states import StateType
from prefect.types import SecretDict
from pydantic import SecretStr

from flows.command_line import VERBS

RESTART_TAG = "restart"
"""A run with this tag, or of a deployment with it, is started again when it crashes."""

MAX_RESTARTS = 3
"""How often that is done to one run: what crashes a fourth time is not the machine."""

WITHIN = timedelta(seconds=105)
"""From a heartbeat to the next. They come every 30 s (``[tool.prefect.flows]``); a server that
was away for a minute still hears of the next one in time. With the five seconds between two
looks at the clock, a killed run is found within two minutes."""

NO_HEARTBEAT = "no heartbeat: its process is gone, or cut off"
"""What such a crash says; the webhook's automation knows it by that."""

URL_BLOCK = "fcn-webhook-url"
"""Name of the Secret block that holds the webhook's URL, of ``tasks/notify.py``."""

WEBHOOK = "fcn-webhook"
"""Name of the block through which the server posts: made here of the other, never by hand."""

RUNS = {"prefect.resource.id": "prefect.flow-run.*"}

OURS = {"prefect.resource.role": "flow", "prefect.resource.name": [*VERBS, "predict-partition"]}
"""Flows of others on the same server may send their heartbeats more seldom."""


def crashed() -> Automation:
    """A run that sent heartbeats and sends no more has crashed."""
    return Automation(
        name="fcn: without a heartbeat a run has crashed",
        description="A process that was killed cannot say so.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={
                "prefect.flow-run.heartbeat",
                *(f"prefect.flow-run.{state}" for state in ENDS),
            },
            match=RUNS,
            match_related=OURS,
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=WITHIN,
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=NO_HEARTBEAT)],
    )


ENDS = (
    *("Completed", "Failed", "TimedOut", "Cancelled", "Crashed"),
    *("AwaitingRetry", "Paused", "Suspended"),
)
"""Names of the states in which a run sends no heartbeats."""


def started_again() -> Automation:
    """A crashed run with the tag is scheduled again: the same run, the same parameters."""
    return Automation(
        name=f"fcn: start crashed runs again that are tagged {RESTART_TAG}",
        description=f"At most {MAX_RESTARTS} times a run. It does only what is missing.",
        trigger=EventTrigger(
            expect={"prefect.flow-run.Crashed"},
            match=RUNS | {"prefect.run-count": [str(n + 1) for n in range(MAX_RESTARTS)]},
            match_related=_tagged(RESTART_TAG),
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.SCHEDULED,
                name="AwaitingRetry",
                message="started again after a crash",
            )
        ],
    )


def told(webhook_id: UUID) -> Automation:
    """The webhook hears of such a crash, as it hears of other ends from the runs themselves."""
    return Automation(
        name="fcn: tell the webhook of runs without a heartbeat",
        description="A hook tells of all other ends; here the process that would run it is gone.",
        trigger=EventTrigger(
            expect={"prefect.flow-run.Crashed"},
            match=RUNS | {"prefect.state-message": NO_HEARTBEAT},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[CallWebhook(block_document_id=webhook_id, payload=KILLED)],
    )


KILLED = """{
    "text": {{ (flow.name ~ " Crashed: " ~ flow_run.name)|tojson }},
    "flow": {{ flow.name|tojson }},
    "run": {{ flow_run.name|tojson }},
    "run_id": {{ flow_run.id|string|tojson }},
    "state": "Crashed",
    "seconds": null,
    "message": {{ flow_run.state.message|tojson }},
    "counts": null,
    "url": {{ flow_run|ui_url|tojson }}
}"""
"""What the webhook is posted then: the fields of `tasks.notify.summary`."""


def _after_train() -> EventTrigger:
    return EventTrigger(
        expect={"prefect.flow-run.Completed"},
        match=RUNS,
        match_related=_deployed("train"),
        posture=Posture.Reactive,
        threshold=1,
    )


def evaluated(evaluate_id: UUID) -> Automation:
    """When train completes, evaluate scores its model; train itself has done so on val."""
    return Automation(
        name="fcn: evaluate after train",
        description="Fill in split, such as test, then switch it on.",
        enabled=False,
        trigger=_after_train(),
        actions=[
            RunDeployment(
                deployment_id=evaluate_id,
                parameters={
                    "dataset_url": "{{ flow_run.parameters.dataset_url }}",
                    "model_url": "{{ flow_run.parameters.run_url }}/model.safetensors",
                    "report_url": "{{ flow_run.parameters.run_url }}/evaluation",
                    "split": FILL_IN,
                },
            )
        ],
    )


def compared(promote_id: UUID) -> Automation:
    """When train completes, promote compares its model with the one that serves."""
    return Automation(
        name="fcn: promote after train",
        description="Fill in models_url, where serving.json is or shall be, then switch it on.",
        enabled=False,
        trigger=_after_train(),
        actions=[
            RunDeployment(
                deployment_id=promote_id,
                parameters={
                    "dataset_url": "{{ flow_run.parameters.dataset_url }}",
                    "challenger_url": "{{ flow_run.parameters.run_url }}/model.safetensors",
                    "models_url": FILL_IN,
                },
            )
        ],
    )


def applied(predict_id: UUID) -> Automation:
    """When promote lets a better model serve, predict segments the collection with it."""
    return Automation(
        name="fcn: predict when a model is promoted",
        description="Fill in collection_url and output_url, then switch it on.",
        enabled=False,
        trigger=EventTrigger(expect={"fcn.model.promoted"}, posture=Posture.Reactive, threshold=1),
        actions=[
            RunDeployment(
                deployment_id=predict_id,
                parameters={
                    "collection_url": FILL_IN,
                    "model_url": "{{ event.payload.serving_url }}",
                    "output_url": FILL_IN,
                },
            )
        ],
    )


FILL_IN = "fill in"
"""In the place of a parameter that only the operator knows."""


LINKS = (
    (evaluated, "evaluate/evaluate"),
    (compared, "promote/promote"),
    (applied, "predict/predict"),
)
"""The chain, and the deployment that each link of it starts."""


def _tagged(tag: str) -> dict[str, str | list[str]]:
    return {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{tag}"}


def _deployed(name: str) -> dict[str, str | list[str]]:
    return {"prefect.resource.role": "deployment", "prefect.resource.name": name}


def install_automations(webhook_url: str | None = None) -> list[str]:
    """Make the automations on the server that the settings name; can be called again.

    Those of the record are made as they stand here; whether they are switched on is kept. A
    link of the chain is made once, if its deployment is there, and never changed.

    Args:
        webhook_url: Where runs post of their ends and the server of killed runs; kept,
            encrypted, in the Secret block `URL_BLOCK`. None: what that block holds.

    Returns:
        The names of the automations that were made or brought up to date.
    """
    wanted = [crashed(), started_again()]
    if url := _webhook_url(webhook_url):
        wanted.append(told(_save_webhook(url)))
    with get_client(sync_client=True) as client:
        there = {automation.name: automation for automation in client.read_automations()}
        links = {
            make: deployment_id
            for make, name in LINKS
            if (deployment_id := _find_deployment(client, name))
        }
    for automation in wanted:
        if found := there.get(automation.name):
            automation.id, automation.enabled = found.id, found.enabled
            automation.update()
        else:
            automation.create()
    chain = [make(deployment_id) for make, deployment_id in links.items()]
    new = [automation.create() for automation in chain if automation.name not in there]
    return [automation.name for automation in (*wanted, *new)]


def _webhook_url(given: str | None) -> str | None:
    """The webhook's URL, which the Secret block holds from now on."""
    if given:
        Secret(value=SecretStr(given)).save(URL_BLOCK, overwrite=True)
        return given
    try:
        return str(Secret.load(URL_BLOCK).get())
    except ValueError:  # no such block
        return None


def _save_webhook(url: str) -> UUID:
    block = Webhook(
        method="POST",
        url=SecretStr(url),
        headers=SecretDict({"Content-Type": "application/json"}),
    )
    return block.save(WEBHOOK, overwrite=True)


def _find_deployment(client: SyncPrefectClient, name: str) -> UUID | None:
    try:
        return client.read_deployment_by_name(name).id
    except ObjectNotFound:
        return None


if __name__ == "__main__":
    names = install_automations(os.environ.get("FCN_WEBHOOK_URL"))
    sys.stdout.writelines(f"{name}\n" for name in names)
