"""The flow that decides which model serves."""

from prefect import flow

from tasks.dataset import read_info
from tasks.gpu import gpu_place
from tasks.hooks import HOOKS
from tasks.promote import (
    PromoteConfig,
    PromoteSummary,
    find_champion,
    score_contender,
    settle,
)
from tasks.run_names import run_name
from tasks.run_start import start_run
from tasks.serving import model_url


@flow(
    name="promote",
    flow_run_name=run_name("{} -> {}", "challenger_url", "models_url"),
    **HOOKS,
)
def promote(
    dataset_url: str,
    challenger_url: str,
    models_url: str,
    split: str = "val",
    config: PromoteConfig = PromoteConfig(),  # noqa: B008 - frozen
) -> PromoteSummary:
    """Let a model serve if it is better than the one that does.

    Challenger and champion label the same images of one split. The images are drawn anew a
    thousand times, for both alike; the challenger is promoted when the lower end of the 95 %
    interval of its gain in mean IU is above config.min_gain. The first model is promoted as it
    is. A promoted model is copied under its SHA-256, and serving.json, which predict and
    evaluate take as a model_url, is set to it. Of two promotions at once the slower one fails.
    Of several heads the first one decides; the figures of the others are shown beside it.

    best.safetensors was chosen by its mean IU on val, which flatters it there: compare it on a
    split that neither model was trained or chosen on, such as test.

    Args:
        dataset_url: A dataset that ingest made, with the classes of both models.
        challenger_url: A model.safetensors of a training run; or, with config.rule always, an
            earlier model to go back to, such as the one that serving.json names as previous.
        models_url: Where serving.json, the promoted models and the record of promotions are.
        split: Which split to compare on: train, val, test.
        config: The rule, and the device.

    Returns:
        Whether it was promoted and why, and the figures of both.

    Raises:
        DatasetError: no dataset at dataset_url, or no such split.
        BackendError: config.backend is not installed, or not for this device or model.
        CheckpointError: a model that cannot be used, or that has other classes.
        GpuLimitError: the worker names a limit of its GPU that the server does not have.
        PromoteError: another promotion was faster, or something else is in the pointer's place.
        StoreError: something cannot be read or written.
    """
    start_run(dataset_url, challenger_url, models_url)
    info = read_info(dataset_url)
    before = find_champion(models_url, challenger_url, info, split)
    champion = None
    with gpu_place(config.device):
        challenger = score_contender("challenger", info, challenger_url, split, config)
        if before is not None:
            serving_url = model_url(models_url, before.sha256)
            champion = score_contender("champion", info, serving_url, split, config)
    return settle(info, models_url, split, before, challenger, champion, config)
