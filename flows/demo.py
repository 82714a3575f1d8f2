"""``python -m flows.demo``: the whole way, on images it paints itself."""

import os
import sys
from argparse import ArgumentParser
from collections.abc import Iterator

from prefect import flow

from fcn.recipes import TrainConfig
from flows.console import hide_tracebacks, is_expected
from flows.pipeline import pipeline
from tasks.demo import DemoSummary, paint_scenes, publish_demo
from tasks.hooks import HOOKS
from tasks.predict import PredictConfig
from tasks.run_names import run_name


@flow(name="demo", flow_run_name=run_name("{}", "url"), **HOOKS)
def demo(
    url: str = "demo",
    num_train: int = 120,
    num_val: int = 20,
    num_unlabelled: int = 20,
    epochs: int = 22,
    seed: int = 0,
) -> DemoSummary:
    """Paint landscapes, learn to segment them, and segment some that were never seen.

    One image of the collection is damaged: it becomes a row with the reason in place of a
    mask. The same call again does nothing that is done already.

    Args:
        url: Where everything goes: scenes/, dataset/, run/, report/, prediction/ and the
            contact sheet.
        num_train: Labelled images to learn from.
        num_val: Labelled images to score on.
        num_unlabelled: Images to segment.
        epochs: Passes over the images to learn from.
        seed: Of the landscapes and of the training: the same seed gives the same figures.

    Returns:
        The mean IU, and where masks, contact sheet and report are.
    """
    scenes = paint_scenes(url, num_train, num_val, num_unlabelled, seed)
    summary = pipeline(
        scenes.source_url,
        scenes.collection_url,
        url,
        train_config=TrainConfig(
            backbone="squeezenet1_1",
            init="none",
            epochs=epochs,
            batch_size=4,
            num_workers=0,
            seed=seed,
        ),
        predict_config=PredictConfig(sinks=("parquet", "png"), max_failed=0.1),
    )
    return publish_demo(summary, url)


def closing_lines(summary: DemoSummary) -> Iterator[str]:
    """What the demo came to and where to look, for the terminal."""
    home = os.environ.get("PREFECT_HOME", "~/.prefect")
    yield f"mean IU        {100 * summary.mean_iu:.1f} % on images that were not learned from"
    yield (
        f"masks          {summary.output_url}/masks/ (and in parts/): {summary.num_masks} of "
        f"{summary.num_images} images"
    )
    yield from (f"  no mask for  {key}: {reason}" for key, reason in summary.failures)
    yield f"look at        {summary.sheet_url}"
    yield f"report         {summary.report_url}"
    yield f"runs           in {home}: make ui, then open the address it prints"


def main() -> int:
    """Runs the demo and says where to look; returns the exit status."""
    hide_tracebacks()
    try:
        summary = demo()
    except Exception as error:
        if not is_expected(error):
            raise
        sys.stderr.write(f"error: {error}\n`rm -r demo` makes room for a new one.\n")
        return 1
    sys.stdout.writelines(f"{line}\n" for line in closing_lines(summary))
    return 0


if __name__ == "__main__":
    ArgumentParser(
        prog="python -m flows.demo",
        description="Paint landscapes into demo/, train on them, and segment some. No options.",
    ).parse_args()
    sys.exit(main())
