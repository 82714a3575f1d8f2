"""Names of flow runs, without what a URL may hold of credentials.

Prefect shows the name of the flow before that of the run, "predict / s3://photos -> s3://masks":
a run's name is what differs from run to run.
"""

from collections.abc import Callable

from prefect.runtime import flow_run

from tasks import stores


def run_name(form: str, *parameters: str) -> Callable[[], str]:
    """A ``flow_run_name`` that is made of URLs among a flow's parameters.

    ::

        @flow(flow_run_name=run_name("{} -> {}", "dataset_url", "run_url"))

    Args:
        form: The name, with ``{}`` in the place of each URL.
        parameters: Names of the parameters, in their order.
    """

    def name() -> str:
        given = flow_run.parameters
        return form.format(*(stores.redact(given[parameter]) for parameter in parameters))

    return name
