"""The flow that does it all: ingest, train, evaluate, predict."""

from prefect import flow

from fcn.recipes import TrainConfig
from flows.evaluate import evaluate
from flows.ingest import ingest
from flows.predict import predict
from flows.train import train
from tasks.evaluate import EvaluateConfig, evaluation_split
from tasks.hooks import HOOKS
from tasks.ingest import IngestConfig
from tasks.layouts import Layout
from tasks.pipeline import PipelineSummary, Places
from tasks.predict import PredictConfig
from tasks.run_names import run_name
from tasks.run_start import start_run


@flow(
    name="pipeline",
    flow_run_name=run_name("{}, {} -> {}", "source_url", "collection_url", "work_url"),
    **HOOKS,
)
def pipeline(
    source_url: str,
    collection_url: str,
    work_url: str,
    layout: Layout = "auto",
    classes: list[str] | str | None = None,
    ingest_config: IngestConfig = IngestConfig(),  # noqa: B008 - frozen
    train_config: TrainConfig = TrainConfig(),  # noqa: B008 - frozen
    evaluate_config: EvaluateConfig = EvaluateConfig(),  # noqa: B008 - frozen
    predict_config: PredictConfig = PredictConfig(),  # noqa: B008 - frozen
) -> PipelineSummary:
    """From labelled images to masks of a whole collection: ingest, train, evaluate, predict.

    Each step is a flow of its own. The same call again goes on where a stopped one left off:
    it trains and segments only what is missing, after the source was audited again.

    Args:
        source_url: Labelled images and masks to learn from.
        collection_url: Images to segment: a folder, a prefix, or a glob.
        work_url: Where all of it goes: dataset/, run/, report/, prediction/ below it.
        layout: Layout of the source, see ingest.
        classes: Classes of the source, see ingest.
        ingest_config: Settings of ingest.
        train_config: Settings of train.
        evaluate_config: Settings of evaluate.
        predict_config: Settings of predict.

    Returns:
        The summaries of training's evaluation and of the prediction, and where all things are.

    Raises:
        DatasetError: the source has errors or cannot be understood; or another dataset is at
            work_url already.
        RunError: another training is there.
        CheckpointError: init names weights that do not fit.
        ImageError, LabelError: a training sample that cannot be used, by its key.
        TrainingError: the loss or its gradient is not finite.
        RankError: one of several training processes ended by itself, or was killed.
        BackendError: a backend that is not installed, or not for this device or precision.
        DeviceError: a device this machine does not have.
        FanOutError: shards cannot be segmented where they should be.
        GpuLimitError: the worker names a limit of its GPU that the server does not have.
        PredictError: shards failed, or too many images; what is done is kept.
        StoreError: something cannot be read or written; a collection without images.
    """
    settings = (ingest_config, train_config, evaluate_config, predict_config)
    start_run(source_url, collection_url, work_url, classes, *settings)
    places = Places(work_url)
    info = ingest(source_url, places.dataset_url, layout, classes, ingest_config)
    trained = train(places.dataset_url, places.run_url, train_config)
    scores = evaluate(
        places.dataset_url,
        trained.model_url,
        places.report_url,
        evaluation_split(info),
        evaluate_config,
    )
    prediction = predict(collection_url, trained.model_url, places.output_url, predict_config)
    return PipelineSummary(
        model_url=trained.model_url,
        output_url=places.output_url,
        evaluation=scores,
        prediction=prediction,
    )
