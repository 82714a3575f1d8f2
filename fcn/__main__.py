"""``python -m fcn predict IMAGE... --model model.safetensors --out DIR``.

Segments local images: ``DIR/STEM.png`` is the mask (a palette PNG whose indices are class
ids), ``DIR/STEM-overlay.jpg`` the image under its classes' colours. An image that cannot be
read is reported and the others go on.

Exit status: 0 done, 1 at least one image failed, 2 bad arguments.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fcn.checkpoint import load
from fcn.draw import jpeg_bytes, overlay
from fcn.errors import FcnError
from fcn.images import decode_image
from fcn.masks import encode_mask
from fcn.predict import Predictor


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    clash = _clash(options.images, options.out)
    if clash:
        parser.error(clash)
    try:
        predictor = Predictor(load(options.model), device=options.device)
        options.out.mkdir(parents=True, exist_ok=True)
    except (FcnError, OSError, ValueError) as error:
        parser.error(f"{options.model}: {error}" if isinstance(error, FcnError) else str(error))
    failed = [path for path in options.images if not _segment(path, predictor, options.out)]
    if failed:
        print(f"error: {len(failed)} of {len(options.images)} images failed", file=sys.stderr)
    return 1 if failed else 0


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
    predict.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (%(default)s)")
    return parser


def _clash(images: Sequence[Path], out: Path) -> str | None:
    """Why the outputs of `images` would not all stand in `out`, or overwrite an image."""
    for stem, count in Counter(path.stem for path in images).items():
        if count > 1:
            return f"{count} images would be written as {out / stem}.png; run them apart"
    targets = {target.resolve() for path in images for target in _targets(path, out)}
    for path in images:
        if path.resolve() in targets:
            return f"the result would overwrite {path}; choose another --out"
    return None


def _targets(path: Path, out: Path) -> tuple[Path, Path]:
    return out / f"{path.stem}.png", out / f"{path.stem}-overlay.jpg"


def _segment(path: Path, predictor: Predictor, out: Path) -> bool:
    """Writes mask and overlay of one image; reports why not."""
    mask_path, overlay_path = _targets(path, out)
    try:
        image = decode_image(path.read_bytes()).pixels
        (label,) = predictor([image])
        mask_path.write_bytes(encode_mask(label, predictor.classes.palette))
        overlay_path.write_bytes(jpeg_bytes(overlay(image, label, predictor.classes)))
    except (FcnError, OSError) as error:
        reason = str(error) if isinstance(error, OSError) else f"{path}: {error}"
        print(f"error: {reason}", file=sys.stderr)
        return False
    print(f"{path} -> {mask_path}, {overlay_path}")
    return True


if __name__ == "__main__":
    sys.exit(main())
