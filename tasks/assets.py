"""What a run made, as Prefect assets: dataset, model, report, prediction, each with its sources.

Call `materialise` within the task that made the thing; Prefect tells of it when the task ends.
An asset is decoration: a URL that Prefect would not take as a key gets one that it takes.
"""

import hashlib
import re
from typing import Any

from prefect import get_run_logger
from prefect.assets import Asset, AssetProperties
from prefect.context import AssetContext

from tasks import stores

MAX_KEY_LENGTH = 512
"""Of an asset's key; a longer one is refused by Prefect."""

_TOOL = "fcn-flows"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://")
_REFUSED = re.compile(r"[\x00-\x20\x7f#?&%\"'<>\[\]{}|\\^`\ud800-\udfff]")


def materialise(url: str, *sources: str, name: str, **metadata: Any) -> None:
    """Tell Prefect that the task which is running makes what is at a URL.

    Args:
        url: What it makes.
        sources: URLs of what it is made from.
        name: What it is, for people.
        metadata: Digests and figures, such as JSON takes.
    """
    context = AssetContext.get()
    if context is None:  # no task is running: as a plain function
        return
    try:
        asset = Asset(key=asset_key(url), properties=AssetProperties(name=name))
        context.downstream_assets.add(asset)
        context.direct_asset_dependencies.update(Asset(key=asset_key(one)) for one in sources)
        context.materialized_by = _TOOL
        context.add_asset_metadata(asset.key, metadata)
        context.update_tracked_assets()
    except Exception as error:  # noqa: BLE001 - decoration; what Prefect says of it may change
        get_run_logger().warning("no asset for %s: %s", stores.redact(url), error)


def asset_key(url: str) -> str:
    """A key that Prefect accepts for a URL: the URL itself where it can, without credentials.

    A local path becomes ``file:///…``. Characters that Prefect refuses become ``_``, and what
    is too long is cut; such keys end with a digest of the whole, so that two stay two.
    """
    path = stores.local_path(url)
    shown = f"file://{path}" if path else stores.redact(url)
    match = _SCHEME.match(shown)
    scheme = re.sub(r"[^a-z0-9]", "", match[1].lower()) if match else ""
    rest = shown[match.end() :] if match else shown
    key = f"{scheme or 'store'}://{_REFUSED.sub('_', rest)}"
    if rest and match and key == shown and len(key) <= MAX_KEY_LENGTH:
        return key
    digest = hashlib.sha256(shown.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{key[: MAX_KEY_LENGTH - 13]}~{digest}"
