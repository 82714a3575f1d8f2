"""The flow that makes a dataset of a folder of images and masks."""

from prefect import flow

from tasks.dataset import DatasetInfo
from tasks.hooks import HOOKS
from tasks.ingest import IngestConfig, audit_source, list_source, publish_dataset
from tasks.layouts import Layout
from tasks.run_names import run_name
from tasks.run_start import start_run
from tasks.staging import Staging


@flow(name="ingest", flow_run_name=run_name("{} -> {}", "source_url", "dataset_url"), **HOOKS)
def ingest(
    source_url: str,
    dataset_url: str,
    layout: Layout = "auto",
    classes: list[str] | str | None = None,
    config: IngestConfig = IngestConfig(),  # noqa: B008 - frozen
) -> DatasetInfo:
    """Audit images and their masks, and write them as a dataset of Parquet files.

    Every sample is read, decoded and checked before anything is written: masks of another
    size than their image, values that are no class, unreadable files, images without masks,
    images in two splits. With errors nothing is published, unless `config.strict` is off.
    Images are stored as they are; masks become palette PNGs of class ids, 255 = ignored,
    aligned with the image after its EXIF orientation. Ingesting the same content again
    changes nothing; other content at the same place needs `config.overwrite`. Folders
    masks-NAME beside masks are labels of further heads, trained and predicted together: a
    column label_NAME each, with classes of their own (classes-NAME.txt, .csv, .json, or the
    values found). An image may have no mask there: it is not labelled for that head. Folders
    bands-NAME beside images are bands that every image has besides its colours, such as
    depth: gray PNG or TIFF files of the image's name and size, in a column band_NAME each.

    Args:
        source_url: Where the images and masks are: anything fsspec opens, such as
            /data/VOC2012 or s3://bucket/camvid. It is only read.
        dataset_url: Where the dataset goes; dataset.json, written last, says it is whole.
        layout: voc (JPEGImages, SegmentationClass), camvid (train, trainannot, val, valannot,
            ...) or folders (images, masks, masks-NAME, bands-NAME); auto recognises it by these
            names.
        classes: Class names in the order of their ids, or the URL of a class file: .txt with a
            name per line; .csv with columns name and, if wanted, value, r, g, b; .json alike.
            Coloured masks need colours. Empty: a class file in the source (classes.json, .csv
            or .txt), the known names of CamVid or VOC, or the values found in the masks. A
            name void, ignore or unlabelled is no class: its pixels are ignored.
        config: Strictness, ignored values, splitting, limits.

    Returns:
        What dataset.json holds.

    Raises:
        DatasetError: the source has errors or cannot be understood; or another dataset is at
            dataset_url.
        StoreError: the source cannot be read, or dataset_url not written.
    """
    start_run(source_url, dataset_url, classes, config)
    source, table = list_source(source_url, dataset_url, layout, classes, config)
    further = {head: of_head.classes for head, of_head in table.further.items()}
    with Staging(
        table.classes,
        max_file_bytes=config.max_file_bytes,
        further_classes=further,
        bands=source.bands,
    ) as staging:
        findings = audit_source(source, table, staging, config)
        return publish_dataset(staging, dataset_url, source, findings, config)
