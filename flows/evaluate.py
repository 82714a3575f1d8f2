"""The flow that measures a model."""

from prefect import flow

from tasks.dataset import read_info
from tasks.evaluate import (
    EvaluateConfig,
    EvaluateSummary,
    claim_report,
    report_evaluation,
    score_split,
)
from tasks.gpu import gpu_place
from tasks.hooks import HOOKS
from tasks.run_names import run_name
from tasks.run_start import start_run
from tasks.serving import resolve


@flow(
    name="evaluate",
    flow_run_name=run_name("{} on {}", "model_url", "dataset_url"),
    **HOOKS,
)
def evaluate(
    dataset_url: str,
    model_url: str,
    report_url: str,
    split: str = "val",
    config: EvaluateConfig = EvaluateConfig(),  # noqa: B008 - frozen
) -> EvaluateSummary:
    """Score a model on a split of a dataset, at the labels' own resolution.

    One confusion matrix over the whole split gives the paper's four figures: pixel accuracy,
    mean accuracy, mean IU and frequency-weighted IU. Mean IU and pixel accuracy come with a
    95 % bootstrap interval over the images, and boundary F1 tells how well outlines are met.
    Pixels with the ignored label do not count. Every head of a model is scored by itself, with a
    section of the report and columns of images.parquet of its own.

    Args:
        dataset_url: A dataset that ingest made.
        model_url: A model.safetensors of a training run, or the serving.json of promote.
        report_url: Where report.html, its plots and images.parquet (the scores of every image) go.
        split: Which split to score: train, val, test.
        config: Device, mirrored and scaled views, and how many examples the report shows.

    Returns:
        The figures with their intervals, and where the report is.

    Raises:
        DatasetError: no dataset at dataset_url, or no such split.
        BackendError: config.backend is not installed, or not for this device, precision or model.
        CheckpointError: no usable model at model_url, or one of other classes.
        PromoteError: a .json there that is no serving.json.
        GpuLimitError: the worker names a limit of its GPU that the server does not have.
        StoreError: something cannot be read or written.
    """
    start_run(dataset_url, model_url, report_url)
    info = read_info(dataset_url)
    model_url = resolve(model_url)
    claim_report(report_url, info, model_url, split)
    with gpu_place(config.device):
        evaluation = score_split(info, model_url, split, config)
    return report_evaluation(evaluation, info, report_url)
