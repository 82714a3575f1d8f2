"""Tar and Parquet files with images in them, made on the spot."""

import io
import tarfile
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq


def tar(*members: tuple[str, bytes]) -> bytes:
    """A tar file with these members, in order."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def parquet(images: Sequence[bytes | None], *, column: str = "image", rows: int = 1000) -> bytes:
    """A Parquet file of images as Hugging Face writes them, in row groups of ``rows``."""
    cells = [None if data is None else {"bytes": data, "path": None} for data in images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return table_bytes(pa.table({column: pa.array(cells, kind)}), rows=rows)


def table_bytes(table: pa.Table, rows: int = 1000) -> bytes:
    """A Parquet file with the rows of a table."""
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=rows, compression="none", use_dictionary=False)
    return file.getvalue()
