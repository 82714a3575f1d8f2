"""Hooks of every run say something only when they did something."""

import logging

from prefect import flow

from tasks.hooks import HOOKS


def test_hooks_with_nothing_to_do_say_nothing(prefect_server, caplog):
    def own(flow, flow_run, state):
        pass

    hooks = {**HOOKS, "on_completion": [*HOOKS["on_completion"], own]}

    @flow(name="quiet", **hooks)
    def quiet() -> None:
        pass

    with caplog.at_level(logging.INFO):
        quiet()
    said = [line for line in caplog.messages if line.startswith(("Running hook", "Hook"))]
    assert said == [
        "Running hook 'own' in response to entering state 'Completed'",
        "Hook 'own' finished running successfully",
    ]
