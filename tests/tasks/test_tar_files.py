"""Members of tar files: found by their headers, read by ranges, hostile tars refused."""

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from tasks import stores, tar_files
from tasks.reading import ObjectChanged, ObjectVanished, read_objects
from tasks.stores import Entry, StoreError
from tests.tasks.containers import tar
from tests.tasks.pictures import put


@pytest.fixture(params=["local", "s3"])
def prefix(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path)
    return str(request.getfixturevalue("s3").new_bucket())


def members(url: str) -> list[Entry]:
    [entry] = stores.list_entries(url)
    return list(tar_files.members(entry))


HARD_NAMES = {
    "a b.jpg": "a b.jpg",
    "./dot/../x.jpg": "dot/%2E%2E/x.jpg",
    "/absolute//x.jpg": "absolute/x.jpg",
    "../../../../etc/x.jpg": "%2E%2E/%2E%2E/%2E%2E/%2E%2E/etc/x.jpg",
    "ünï/日本.jpg": "ünï/日本.jpg",
    "b[1]*?#%41::.jpg": "b[1]*?#%41::.jpg",
    "long/" * 190 + "x.jpg": "long/" * 190 + "x.jpg",
}


def test_members_have_keys_that_stay_in_place_and_are_read_by_ranges(prefix: str) -> None:
    data = {name: name.encode() * 40 for name in HARD_NAMES}
    put(prefix, {"sub/s.tar": tar(*data.items(), ("empty.jpg", b""), ("end.jpg", b"end"))})
    found = members(f"{prefix}/sub/s.tar")

    assert [entry.key for entry in found] == [
        *(f"s.tar/{key}" for key in HARD_NAMES.values()),
        "s.tar/empty.jpg",
        "s.tar/end.jpg",
    ]
    assert read_objects(found) == [*data.values(), b"", b"end"]
    assert read_objects(found[::-2]) == [b"end", *list(data.values())[::-2]]
    assert {entry.container for entry in found} == {f"{prefix}/sub/s.tar"}
    assert stores.read_bytes(found[0].url) == data["a b.jpg"]  # what fsspec opens


def test_neighbours_are_read_together_and_far_ones_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar_files, "GAP_BYTES", 2_000)
    monkeypatch.setattr(tar_files, "BLOCK_BYTES", 10_000)
    sizes = [700, 6_000, 800, 50_000, 1, 900]
    data = {f"{number}.jpg": bytes([number]) * size for number, size in enumerate(sizes)}
    put(str(tmp_path), {"s.tar": tar(*data.items())})
    found = members(f"{tmp_path}/s.tar")
    asked: list[int] = []
    read_ranges = tar_files.read_ranges

    def watch(fs, paths, starts, ends, concurrency):
        asked.extend(end - start for start, end in zip(starts, ends, strict=True))
        return read_ranges(fs, paths, starts, ends, concurrency)

    monkeypatch.setattr(tar_files, "read_ranges", watch)
    assert read_objects(found) == list(data.values())
    assert read_objects([found[0], found[-1]]) == [data["0.jpg"], data["5.jpg"]]
    assert len(asked) == 3 + 2
    assert sum(asked) < 65_000


def test_links_and_folders_are_no_images(tmp_path: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, kind in [("d", tarfile.DIRTYPE), ("l", tarfile.SYMTYPE), ("h", tarfile.LNKTYPE)]:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        archive.addfile(tarfile.TarInfo("f"))
    put(str(tmp_path), {"s.tar": file.getvalue()})
    assert [entry.key for entry in members(f"{tmp_path}/s.tar")] == ["s.tar/f"]


_GOOD = tar(("a.jpg", b"a" * 600), ("b.jpg", b"b" * 600))


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("s.tar.gz", b"", r"s\.tar\.gz is a compressed tar \(gz\)"),
        ("s.tgz", b"", r"s\.tgz is a compressed tar \(tgz\)"),
        ("s.tar", gzip.compress(_GOOD), r"s\.tar is a compressed tar \(gzip\), .* decompress it"),
        ("s.tar", b"no tar at all" * 100, r"s\.tar is no tar file, or a damaged one: .*mend it"),
        ("s.tar", b"", r"s\.tar is no tar file, or a damaged one: empty file"),
        ("s.tar", _GOOD[:2_300], "damaged one: unexpected end of data"),
        ("s.tar", _GOOD[:1_536] + b"x" * 512 + _GOOD[2_048:], "no header at byte 1,536"),
        ("s.tar", _GOOD[:1_536] + b"\1" * 100, "no header at byte 1,536, where one is due"),
        ("s.tar", tar((".", b"x")), "a file without a name"),
    ],
)
def test_what_is_no_plain_tar_is_refused(tmp_path: Path, name: str, data: bytes, text: str) -> None:
    put(str(tmp_path), {name: data})
    with pytest.raises(StoreError, match=text):
        members(f"{tmp_path}/{name}")


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_header_that_claims_gigabytes_is_not_read(tmp_path: Path, kind: bytes) -> None:
    bomb = tarfile.TarInfo("bomb")
    bomb.type, bomb.size = kind, 4 << 30
    path = tmp_path / "s.tar"
    path.write_bytes(bomb.tobuf(tarfile.GNU_FORMAT))
    with path.open("r+b") as file:
        file.truncate(5 << 30)  # takes no room on the disk
    with pytest.raises(StoreError, match=r"a header of 4,294,967,296 bytes at byte 512"):
        members(str(path))


def test_tar_that_changed_or_vanished_since_is_told(prefix: str) -> None:
    put(prefix, {"s.tar": tar(("a.jpg", b"old"))})
    [found] = members(f"{prefix}/s.tar")
    put(prefix, {"s.tar": tar(("b.jpg", b"new"))})
    [changed] = read_objects([found])
    assert isinstance(changed, ObjectChanged)
    assert "s.tar changed since it was listed" in str(changed)
    stores.remove(f"{prefix}/s.tar")
    [gone] = read_objects([found])
    assert isinstance(gone, ObjectVanished)
