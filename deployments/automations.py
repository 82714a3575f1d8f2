"""The automations of a Prefect server that runs these flows.

::

    PREFECT_API_URL=http://127.0.0.1:4200/api python deployments/automations.py

Two keep the record true: a run whose process is gone is marked crashed within two minutes,
and started again where a tag asks for it. One tells the webhook of such a crash, if there is
a webhook. Two are a chain, from a trained model to the masks of a better one; as schedules,
they are shipped switched off, with the parameters to be filled in.

Running it again brings the first three up to date. The chain is left as it is found: its
parameters are the operator's.
"""

import json
from datetime import timedelta
from uuid import UUID

from prefect.automations import Automation, EventTrigger
from prefect.events.actions import CallWebhook, ChangeFlowRunState, RunDeployment
from prefect.events.schemas.automations import Posture
from prefect.states import StateType

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

WEBHOOK = "fcn-webhook"
"""Name of the block that holds the webhook's URL for the server."""

RUNS = {"prefect.resource.id": "prefect.flow-run.*"}


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


def _tagged(tag: str) -> dict[str, str | list[str]]:
    return {"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"}


def told(webhook_id: UUID) -> Automation:
    """The webhook hears of such a crash, as it hears of other ends from the runs themselves."""
    payload = {
        "text": "{{ flow.name }} Crashed: {{ flow_run.name }}: {{ flow_run.state.message }}\n"
        "{{ flow_run|ui_url }}",
        "flow": "{{ flow.name }}",
        "run": "{{ flow_run.name }}",
        "run_id": "{{ flow_run.id }}",
        "state": "Crashed",
        "message": "{{ flow_run.state.message }}",
        "url": "{{ flow_run|ui_url }}",
    }
    return Automation(
        name="fcn: tell the webhook of runs without a heartbeat",
        description="A hook tells of all other ends; here the process that would run it is gone.",
        trigger=EventTrigger(
            expect={"prefect.flow-run.Crashed"},
            match=RUNS | {"prefect.state-message": NO_HEARTBEAT},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[CallWebhook(block_document_id=webhook_id, payload=json.dumps(payload))],
    )


def promoted(deployment_id: UUID) -> Automation:
    """When train completes, promote compares its model with the serving one."""
    return Automation(
        name="fcn: promote after train",
        description="Switch it on when its parameters are filled in.",
        enabled=False,
        trigger=EventTrigger(
            expect={"prefect.flow-run.Completed"},
            match=RUNS,
            match_related={
                "prefect.resource.role": "deployment",
                "prefect.resource.name": "train",
            },
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[
            RunDeployment(
                deployment_id=deployment_id,
                parameters={
                    "dataset_url": "{{ flow_run.parameters.dataset_url }}",
                    "model_url": "{{ flow_run.parameters.run_url }}/model.safetensors",
                },
            )
        ],
    )
