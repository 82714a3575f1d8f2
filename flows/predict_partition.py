"""The flow that segments one partition of a run: a child of `predict` on a work pool."""

from typing import Annotated

from prefect import flow
from pydantic import Field

from tasks.child_runs import run_name
from tasks.hooks import HOOKS
from tasks.predict import PredictConfig, plan_partition, publish_partition, segment_shards
from tasks.run_start import start_run

Number = Annotated[int, Field(ge=0, lt=2**31)]


@flow(name="predict-partition", flow_run_name=run_name, **HOOKS)
def predict_partition(
    output_url: str,
    model_url: str,
    run: Number,
    first_shard: Number,
    last_shard: Number,
    config: PredictConfig = PredictConfig(),  # noqa: B008 - frozen
) -> None:
    """Segment the shards of one partition that have no part yet.

    Started by predict with fan_out=work-pool, which also plans the run and writes the index
    when all partitions are done. Its tables say what was done; predict reads them.

    Args:
        output_url: Where the run's manifest is, and where parts go.
        model_url: The model that the run was planned with.
        run: Number of the run.
        first_shard: First shard of the partition.
        last_shard: Its last shard.
        config: The settings that the run was planned with.

    Raises:
        StoreError: no such run at output_url, or parts cannot be written.
        BackendError: config.backend is not installed, or not for this device, precision or model.
        CheckpointError: no usable model at model_url, or another one by now.
        DeviceError: a device this machine does not have.
        GpuLimitError: the worker names a limit of its GPU that the server does not have.
        PredictError: shards failed; parts that were finished are kept.
    """
    start_run(output_url, model_url, config)
    shards = range(first_shard, last_shard + 1)
    plan = plan_partition(output_url, run, shards, config)
    segmented = segment_shards(plan, model_url, config, shards)
    publish_partition(segmented)
