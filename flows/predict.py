"""The flow that segments a collection."""

from prefect import flow

from tasks.hooks import HOOKS
from tasks.predict import (
    PredictConfig,
    PredictSummary,
    plan_prediction,
    publish_prediction,
    require_few_failed,
    segment_shards,
)
from tasks.run_names import run_name
from tasks.run_start import start_run
from tasks.serving import resolve


@flow(
    name="predict",
    flow_run_name=run_name("{} -> {}", "collection_url", "output_url"),
    **HOOKS,
)
def predict(
    collection_url: str,
    model_url: str,
    output_url: str,
    config: PredictConfig = PredictConfig(),  # noqa: B008 - frozen
) -> PredictSummary:
    """Segment every image of a collection and write its masks as Parquet parts.

    Every image gets exactly one row: a mask, or the reason why there is none. A rerun over
    the same output goes on where the last run was cut off, and later does only the images
    that are new or have changed, or all of them with another model.

    Args:
        collection_url: A prefix (s3://bucket/photos), a prefix and a glob
            (s3://bucket/photos/**/left_*.jpg, s3://bucket/shards/*.tar), one image, tar file
            or Parquet file with images, or a CSV or Parquet list with a column url. A model
            that sees bands finds them in bands-NAME/ beside the folder of images, or in
            columns band_NAME of Parquet files.
        model_url: A model.safetensors of a training run, or the serving.json of promote.
        output_url: Where manifest, parts and index go.
        config: Shards, batches, mask format, limits; where shards are segmented.

    Returns:
        Images by status, and seconds by stage.

    Raises:
        StoreError: a URL that does not exist or cannot be written; a collection without images.
        BackendError: config.backend is not installed, or not for this device, precision or model.
        CheckpointError: no usable model at model_url.
        PromoteError: a .json there that is no serving.json.
        DeviceError: a device this machine does not have.
        FanOutError: shards cannot be segmented where they should be: no such deployment or
            cluster, or a package that is not installed.
        GpuLimitError: the worker names a limit of its GPU that the server does not have.
        PredictError: shards failed, or too many images; what is done is kept.
    """
    start_run(collection_url, model_url, output_url, config)
    model_url = resolve(model_url)
    plan = plan_prediction(collection_url, model_url, output_url, config)
    segmented = segment_shards(plan, model_url, config)
    summary = publish_prediction(plan, segmented)
    require_few_failed(summary, config.max_failed)
    return summary
