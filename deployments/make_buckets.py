"""Makes buckets on an S3 store as soon as it answers: ``python deployments/make_buckets.py NAME``.

The environment says where the store is, and with which key (``AWS_ENDPOINT_URL``, …). Buckets
that are there stay as they are.
"""

import sys
import time

import s3fs
from botocore.exceptions import BotoCoreError

SECONDS = 120
"""How long a store may take to answer."""


def main(names: list[str]) -> None:
    """Makes the named buckets."""
    end = time.monotonic() + SECONDS
    store = s3fs.S3FileSystem(use_listings_cache=False)
    for name in names:
        while True:
            try:
                store.makedirs(name, exist_ok=True)
            except (OSError, BotoCoreError) as error:
                if time.monotonic() > end:
                    sys.exit(f"error: bucket {name} cannot be made: {error}")
                time.sleep(1)
            else:
                print(f"bucket {name}: there")
                break


if __name__ == "__main__":
    main(sys.argv[1:])
