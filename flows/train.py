"""The flow that trains a network."""

from prefect import flow

from fcn.recipes import TrainConfig
from tasks.dataset import read_info
from tasks.evaluate import EvaluateConfig, evaluation_split, report_evaluation, score_split
from tasks.gpu import gpu_place
from tasks.hooks import HOOKS
from tasks.run_names import run_name
from tasks.run_start import start_run
from tasks.train import TrainSummary, claim_run, train_network


@flow(name="train", flow_run_name=run_name("{} -> {}", "dataset_url", "run_url"), **HOOKS)
def train(
    dataset_url: str,
    run_url: str,
    config: TrainConfig = TrainConfig(),  # noqa: B008 - frozen
) -> TrainSummary:
    """Train a fully convolutional network on a dataset, and report how good it is.

    The same call again goes on where a stopped or killed run left off, to the same weights
    bit for bit on a CPU; when the model is there it is only scored anew. A run_url belongs to
    one configuration and one dataset; any other is refused. A dataset of several heads trains
    them together: the sum of their losses, each a mean over its own labelled pixels. Of a dataset
    with bands, the network sees all of them beside the colours.

    Args:
        dataset_url: A dataset that ingest made.
        run_url: Where the run is kept: model.safetensors (after the last step),
            best.safetensors (the best on val, by the first head), metrics.jsonl, report.html,
            state/.
        config: Network, first weights, recipe, crops.

    Returns:
        Figures on the val split (on train, if there is no val) and where model and report are.

    Raises:
        DatasetError: no dataset at dataset_url.
        RunError: another configuration is at run_url.
        CheckpointError: init names weights that do not fit.
        ImageError, LabelError: a training sample that cannot be used, by its key.
        TrainingError: the loss or its gradient is not finite.
        RankError: one of several training processes ended by itself, or was killed.
        GpuLimitError: the worker names a limit of its GPU that the server does not have.
        StoreError: something cannot be read or written.
    """
    start_run(dataset_url, run_url, config)
    info = read_info(dataset_url)
    run = claim_run(info, run_url, config)
    settings = EvaluateConfig(device=config.device, precision=config.precision, backend="torch")
    with gpu_place(config.device):
        model_url = train_network(info, run, config)
        evaluation = score_split(info, model_url, evaluation_split(info), settings)
    summary = report_evaluation(evaluation, info, run_url, run.read_metrics())
    return TrainSummary(
        model_url=model_url,
        best_url=run.find_best(),
        report_url=summary.report_url,
        split=summary.split,
        mean_iu=summary.mean_iu,
        pixel_accuracy=summary.pixel_accuracy,
    )
