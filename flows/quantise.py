"""The flow that makes a model of integers, for faster prediction on CPUs."""

from prefect import flow

from tasks.dataset import read_info
from tasks.hooks import HOOKS
from tasks.quantise import QuantiseConfig, QuantiseSummary, quantise_model, write_if_accurate
from tasks.run_names import run_name
from tasks.run_start import start_run


@flow(
    name="quantise",
    flow_run_name=run_name("{} -> {}", "model_url", "quantised_url"),
    **HOOKS,
)
def quantise(
    dataset_url: str,
    model_url: str,
    quantised_url: str,
    split: str = "val",
    config: QuantiseConfig = QuantiseConfig(),  # noqa: B008 - frozen
) -> QuantiseSummary:
    """Make a model that computes with 8-bit integers, several times faster on a CPU.

    Nothing is trained: the ranges of the network's layers are seen on images of the train
    split. Both models are then scored on another split, and the new one is only written if it
    loses little, of several heads each. It is a model file like any other, for evaluate and
    predict with OpenVINO (the extra openvino) or ONNX Runtime (export).

    Args:
        dataset_url: The dataset that the model was trained on.
        model_url: A model.safetensors of a training run.
        quantised_url: Where the new model goes, such as RUN/model-int8.safetensors.
        split: On what both models are compared: val, test.
        config: Images to see ranges on, and how much may be lost.

    Returns:
        The scores of both models.

    Raises:
        QuantiseError: too much is lost, or the model is quantised already; nothing was written.
        BackendError: neither OpenVINO nor ONNX Runtime is installed.
        DatasetError: no dataset at dataset_url, no split train, or no such split.
        CheckpointError: no usable model at model_url, or one of other classes.
        StoreError: something cannot be read or written.
    """
    start_run(dataset_url, model_url, quantised_url)
    info = read_info(dataset_url)
    candidate = quantise_model(info, model_url, quantised_url, split, config)
    return write_if_accurate(candidate, info, quantised_url, split, config)
