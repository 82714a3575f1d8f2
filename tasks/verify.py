"""The task of a verification: every finding of an output, and what to do about it."""

import time
from collections import Counter
from dataclasses import asdict, dataclass

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from tasks import manifest as manifests
from tasks import stores
from tasks.artifacts import publish_table
from tasks.findings import NEXT_STEPS, Finding, Kind, Seen
from tasks.output_check import check_output

MAX_FINDINGS = 1000
"""Findings after which a verification ends: by then the output is not to be mended by hand."""

MAX_TABLE_ROWS = 200


class VerifyError(Exception):
    """An output that is not as it was written."""


@dataclass(frozen=True, kw_only=True)
class VerifySummary:
    """What a verification went through, and found in order.

    Attributes:
        output_url: where the output is.
        runs: manifests.
        parts: parts whose bytes are those they were written with.
        rows: rows, of all runs.
        masks: of these, those whose mask was decoded and compared with its row.
        seconds: how long it took, by the clock.
    """

    output_url: str
    runs: int
    parts: int
    rows: int
    masks: int
    seconds: float


@task(task_run_name="verify the output", cache_policy=NO_CACHE)
def verify_output(output_url: str) -> VerifySummary:
    """Check manifests, parts, rows, masks and index of an output; see `tasks.output_check`.

    Raises:
        VerifyError: something is not as it was written.
        StoreError: no output of predict is there, or its store cannot be read.
    """
    start, seen = time.monotonic(), Seen()
    findings: list[Finding] = []
    for finding in check_output(output_url, seen):
        findings.append(finding)
        if len(findings) == MAX_FINDINGS:
            break
    seconds = time.monotonic() - start
    get_run_logger().info(
        "%s rows of %s parts, %s masks decoded, %s findings, %.1f s",
        f"{seen.rows:,}",
        f"{len(seen.cards):,}",
        f"{seen.masks:,}",
        f"{len(findings):,}",
        seconds,
    )
    rows = [asdict(finding) | {"do": NEXT_STEPS[finding.kind]} for finding in findings]
    publish_table("verify-findings", rows[:MAX_TABLE_ROWS], f"{len(findings):,} findings")
    if findings:
        raise VerifyError(findings_text(findings, seen))
    return VerifySummary(
        output_url=stores.redact(output_url),
        runs=len(manifests.runs(output_url)),
        parts=len(seen.cards),
        rows=seen.rows,
        masks=seen.masks,
        seconds=seconds,
    )


def findings_text(findings: list[Finding], seen: Seen) -> str:
    """How many findings of each kind, the first of each, and what to do about it."""
    count = Counter(finding.kind for finding in findings)
    first: dict[Kind, Finding] = {}
    for finding in findings:
        first.setdefault(finding.kind, finding)
    more = "; stopped there" if len(findings) == MAX_FINDINGS else ""
    lines = [f"{len(findings):,} findings, {seen.rows:,} rows checked{more}"]
    for kind, finding in first.items():
        lines += [
            f"  {kind}, {count[kind]:,}: {finding.place}: {finding.text}",
            f"    {NEXT_STEPS[kind]}",
        ]
    return "\n".join(lines)
