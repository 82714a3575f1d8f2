"""Local images and models, without Prefect.

``python -m fcn predict IMAGE... --model model.safetensors --out DIR`` segments images:
``DIR/STEM.png`` is the mask (a palette PNG whose indices are class ids),
``DIR/STEM-overlay.jpg`` the image under its classes' colours. A model's further heads write
``DIR/STEM-HEAD.png`` and ``DIR/STEM-HEAD-overlay.jpg``. An image that cannot be read is reported
and the others go on. Of a model that sees bands (`fcn.bands`), the band depth of
``images/STEM.jpg`` is ``bands-depth/STEM.png`` (``.tif``, ``.tiff``) beside the folder of the
image; ``--band depth=DIR`` gives another folder.

``python -m fcn export --model model.safetensors --out net.onnx [--labels]`` writes the model
for other runtimes (`fcn.export`): ONNX, or with the suffix ``.pt2`` a program of torch.export.
Each head is an output, and bands go in behind the colours.

Exit status: 0 done, 1 at least one image or the export failed, 2 bad arguments.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import fcn
from fcn.bands import EXTENSIONS, Band, decode_stacked
from fcn.draw import jpeg_bytes, overlay
from fcn.errors import FcnError, MissingBand
from fcn.images import decode_image
from fcn.masks import encode_mask
from fcn.options import Backend

if TYPE_CHECKING:
    from fcn.checkpoint import Model
    from fcn.predict import Predictor


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    status: int = options.run(options, parser)
    return status


def _predict(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    model = _load(options.model, parser)
    clash = _clash(options.images, options.out, list(model.further_classes))
    if clash:
        parser.error(clash)
    try:
        predictor = fcn.Predictor(model, device=options.device, backend=options.backend)
        folders = _band_folders(options.band, predictor)
    except (FcnError, ValueError) as error:
        parser.error(str(error))
    for band in predictor.bands:
        places = [_band_folder(path, band.name, folders) for path in options.images]
        if options.out.resolve() in {place.resolve() for place in places}:
            parser.error(f"masks would overwrite band {band.name}; choose another --out")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out cannot be made: {error}")
    failed = [
        path for path in options.images if not _segment(path, predictor, options.out, folders)
    ]
    if failed:
        print(f"error: {len(failed)} of {len(options.images)} images failed", file=sys.stderr)
    return 1 if failed else 0


def _export(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from fcn.export import to_onnx, to_torch_export  # noqa: PLC0415 - imports PyTorch's compiler

    writers = {".onnx": to_onnx, ".pt2": to_torch_export}
    if options.out.suffix not in writers:
        parser.error(f"--out {options.out} must end in {' or '.join(writers)}")
    model = _load(options.model, parser)
    try:
        writers[options.out.suffix](model, options.out, labels=options.labels)
    except (ModuleNotFoundError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.model} -> {options.out}")
    return 0


def _load(path: Path, parser: argparse.ArgumentParser) -> "Model":
    try:
        return fcn.load(path)
    except FcnError as error:
        parser.error(f"{path}: {error}")
    except OSError as error:
        parser.error(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fcn")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    predict = verbs.add_parser(
        "predict",
        help="segment local images",
        description="Write DIR/STEM.png (mask) and DIR/STEM-overlay.jpg of every image.",
    )
    predict.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    predict.add_argument("--model", required=True, type=Path, help="a model.safetensors")
    predict.add_argument("--out", required=True, type=Path, metavar="DIR", help="made if absent")
    predict.add_argument(
        "--band",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="where a band's files are (bands-NAME beside the folder of each image)",
    )
    predict.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (%(default)s)")
    predict.add_argument(
        "--backend",
        default="auto",
        choices=get_args(Backend),
        help="what runs the network; auto: on a CPU the fastest that is installed (%(default)s)",
    )
    predict.set_defaults(run=_predict)
    export = verbs.add_parser(
        "export",
        help="write a model for other runtimes",
        description="Write a model as ONNX (.onnx) or as a program of torch.export (.pt2): RGB "
        "bytes N x 3 x H x W of any size in (with bands, floats), scores or labels out.",
    )
    export.add_argument("--model", required=True, type=Path, help="a model.safetensors")
    export.add_argument("--out", required=True, type=Path, help="a file .onnx or .pt2")
    export.add_argument("--labels", action="store_true", help="classes in place of scores")
    export.set_defaults(run=_export)
    return parser


def _clash(images: Sequence[Path], out: Path, heads: Sequence[str]) -> str | None:
    """Why the outputs of `images` would not all stand in `out`, or overwrite an image."""
    for stem, count in Counter(path.stem for path in images).items():
        if count > 1:
            return f"{count} images would be written as {out / stem}.png; run them apart"
    names = [target for path in images for h in ("", *heads) for target in _targets(path, out, h)]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        return f"two masks would be written as {twice}; run their images apart"
    targets = {target.resolve() for target in names}
    for path in images:
        if path.resolve() in targets:
            return f"the result would overwrite {path}; choose another --out"
    return None


def _targets(path: Path, out: Path, head: str = "") -> tuple[Path, Path]:
    name = f"{path.stem}-{head}" if head else path.stem
    return out / f"{name}.png", out / f"{name}-overlay.jpg"


def _band_folders(given: Sequence[str], predictor: "Predictor") -> dict[str, Path]:
    """The folders that ``--band`` gives, by band.

    Raises:
        ValueError: one that is not NAME=DIR, or of a band that the model does not see.
    """
    folders = {}
    for text in given:
        name, is_given, folder = text.partition("=")
        names = [band.name for band in predictor.bands]
        if not is_given or name not in names:
            raise ValueError(
                f"--band {text} must be NAME=DIR, of a band that the model sees: "
                f"{', '.join(names) or 'it sees none'}"
            )
        folders[name] = Path(folder)
    return folders


def _band_folder(path: Path, band: str, folders: Mapping[str, Path]) -> Path:
    return folders.get(band) or path.absolute().parent.parent / f"bands-{band}"


def _bands(path: Path, bands: Sequence[Band], folders: Mapping[str, Path]) -> dict[str, bytes]:
    """The files of an image's bands.

    Raises:
        MissingBand: one that is not there.
        OSError: one that cannot be read.
    """
    found = {}
    for band in bands:
        folder = _band_folder(path, band.name, folders)
        files = [folder / f"{path.stem}.{e}" for ext in EXTENSIONS for e in (ext, ext.upper())]
        file = next((file for file in files if file.exists()), None)
        if file is None:
            raise MissingBand(f"no band {band.name}: there is no {files[0]}, .tif or .tiff")
        found[band.name] = file.read_bytes()
    return found


def _segment(path: Path, predictor: "Predictor", out: Path, folders: Mapping[str, Path]) -> bool:
    """Writes masks and overlays of one image; reports why not."""
    written = []
    try:
        image = decode_image(path.read_bytes()).pixels
        files = _bands(path, predictor.bands, folders)
        (found,) = predictor.predict([decode_stacked(image, files, predictor.bands)])
        heads = {"": predictor.classes, **predictor.further_classes}
        for head, prediction in {"": found, **found.further}.items():
            mask_path, overlay_path = _targets(path, out, head)
            mask_path.write_bytes(encode_mask(prediction.label, heads[head].palette))
            overlay_path.write_bytes(jpeg_bytes(overlay(image, prediction.label, heads[head])))
            written += [mask_path, overlay_path]
    except (FcnError, OSError) as error:
        reason = str(error) if isinstance(error, OSError) else f"{path}: {error}"
        print(f"error: {reason}", file=sys.stderr)
        return False
    print(f"{path} -> {', '.join(map(str, written))}")
    return True


if __name__ == "__main__":
    sys.exit(main())
