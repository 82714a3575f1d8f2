"""Where a pipeline keeps its things, and what it returns."""

from dataclasses import dataclass

from tasks import stores
from tasks.evaluate import EvaluateSummary
from tasks.predict import PredictSummary


@dataclass(frozen=True)
class Places:
    """The folders below a pipeline's work_url."""

    work_url: str

    @property
    def dataset_url(self) -> str:
        """Of ingest."""
        return stores.join(self.work_url, "dataset")

    @property
    def run_url(self) -> str:
        """Of train."""
        return stores.join(self.work_url, "run")

    @property
    def report_url(self) -> str:
        """Of evaluate."""
        return stores.join(self.work_url, "report")

    @property
    def output_url(self) -> str:
        """Of predict."""
        return stores.join(self.work_url, "prediction")


@dataclass(frozen=True, kw_only=True)
class PipelineSummary:
    """What a pipeline made.

    Attributes:
        model_url: The trained model.
        output_url: The masks.
        evaluation: Its scores.
        prediction: How the prediction went.
    """

    model_url: str
    output_url: str
    evaluation: EvaluateSummary
    prediction: PredictSummary
