"""The Markdown pages of an ingest: what the audit found, and the dataset it made."""

from collections.abc import Sequence

from tasks import stores
from tasks.dataset import DatasetInfo, Finding
from tasks.layouts import Source
from tasks.markdown import escape, table


def audit_page(source: Source, findings: Sequence[Finding], num_good: int) -> str:
    """What the audit found, by kind, with the first finding of each.

    Args:
        source: The audited source.
        findings: All of them.
        num_good: Samples that can be published.
    """
    by_kind: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        by_kind.setdefault((finding.severity, finding.kind), []).append(finding)
    rows = [
        (severity, kind, f"{len(found):,}", found[0].text)
        for (severity, kind), found in sorted(by_kind.items())
    ]
    return "\n\n".join(
        [
            f"# Audit of {escape(stores.redact(source.url))}",
            f"Layout {source.layout}: {len(source.pairs):,} pairs, {num_good:,} without error.",
            table(["severity", "kind", "findings", "first"], rows) if rows else "No findings.",
        ]
    )


def dataset_page(info: DatasetInfo) -> str:
    """Splits of a dataset, and the share of each class in their pixels."""
    splits = list(info.splits.values())
    totals = [sum(split.class_pixels) + split.ignored_pixels for split in splits]
    rows = [
        (class_id, name, *map(_percent, (s.class_pixels[class_id] for s in splits), totals))
        for class_id, name in enumerate(info.classes.names)
    ]
    ignored = map(_percent, (split.ignored_pixels for split in splits), totals)
    rows.append((info.classes.ignore_index, "ignored", *ignored))
    for head, classes in info.further_classes.items():
        counts = zip(*(split.further_class_pixels[head] for split in splits), strict=True)
        names = [*enumerate(classes.names), (classes.ignore_index, "ignored")]
        rows += [
            (class_id, f"{head}: {name}", *map(_percent, found, totals))
            for (class_id, name), found in zip(names, counts, strict=True)
        ]
    return "\n\n".join(
        [
            f"# Dataset {escape(stores.redact(info.url))}",
            f"From {escape(info.source)}; digest {info.digest}.",
            table(
                ["split", "rows", "files", "left out"],
                [(s.name, f"{s.rows:,}", len(s.files), f"{s.left_out:,}") for s in splits],
            ),
            table(["id", "class", *(f"{split.name} pixels" for split in splits)], rows),
            *_bands(info),
        ]
    )


def _bands(info: DatasetInfo) -> list[str]:
    rows = [(b.name, b.dtype, f"{b.mean:.6g}", f"{b.std:.6g}") for b in info.bands]
    return [table(["band", "values", "mean of train", "deviation"], rows)] if rows else []


def _percent(count: int, total: int) -> str:
    return f"{100 * count / total:.2f} %"
