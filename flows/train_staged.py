"""The flow that trains from coarse to fine."""

from prefect import flow

from fcn.recipes import TrainConfig
from flows.train import train
from tasks.hooks import HOOKS
from tasks.run_names import run_name
from tasks.run_start import start_run
from tasks.stages import plan_stages
from tasks.train import TrainSummary


@flow(
    name="train_staged",
    flow_run_name=run_name("{} -> {}", "dataset_url", "run_url"),
    **HOOKS,
)
def train_staged(
    dataset_url: str,
    run_url: str,
    config: TrainConfig = TrainConfig(),  # noqa: B008 - frozen
) -> dict[str, TrainSummary]:
    """Train FCN-32s, then 16s from it, then 8s from that, as the paper did.

    Each stage is a run of train in a folder of its own: 32s/, 16s/, 8s/. New score layers
    start at zero, so that a finer network begins with the coarser one's prediction; its
    learning rate is divided as the recipe says (by 100 in the authors'). The same call again
    goes on in the stage where a stopped or killed one left off.

    Args:
        dataset_url: A dataset that ingest made.
        run_url: Where the stages are kept, each in a folder below it.
        config: As for train. stride is that of the last stage, init and learning_rate are of
            the first one, epochs of each.

    Returns:
        The figures of each stage, and where its model and report are.

    Raises:
        DatasetError: no dataset at dataset_url.
        RunError: another configuration is at run_url, or config.at_once was given.
        CheckpointError: init names weights that do not fit.
        ImageError, LabelError: a training sample that cannot be used, by its key.
        TrainingError: the loss or its gradient is not finite.
        RankError: one of several training processes ended by itself, or was killed.
        GpuLimitError: the worker names a limit of its GPU that the server does not have.
        StoreError: something cannot be read or written.
    """
    start_run(dataset_url, run_url, config)
    stages = plan_stages(run_url, config)
    return {stage.name: train(dataset_url, stage.run_url, stage.config) for stage in stages}
