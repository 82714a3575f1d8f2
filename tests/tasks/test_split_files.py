"""Lists of splits are read, and bad ones are refused with the file and the line."""

from pathlib import Path

import pytest

from tasks.dataset import DatasetError
from tasks.split_files import read_csv, read_json
from tests.tasks.sources import write_files


def test_columns_may_stand_in_any_order(tmp_path: Path) -> None:
    write_files(str(tmp_path), {"s.csv": "Split, file\ntraining, a.png\n\nval,b.png\n"})
    assert read_csv(str(tmp_path / "s.csv")) == {"train": ["a.png"], "val": ["b.png"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"s\.csv has columns none; expected key"),
        ("a,b\n1,2\n", r"s\.csv has columns a, b; expected key"),
        ("split,key\ntrain,a\nval\n", r"s\.csv, line 3, names no image"),
        ("key,split\na,train\n  ,val\n", r"s\.csv, line 3, names no image"),
        ("key,split\na,train\nb\n", r"s\.csv, line 3, names the split ''"),
        ("key,split\na,trian\n", r"s\.csv, line 2, names the split 'trian'"),
        (f"key,split\na,{'x' * 200_000}\n", r"s\.csv, line 2, is no row of a table: field larger"),
    ],
)
def test_bad_tables_are_refused_with_the_line(tmp_path: Path, content: str, message: str) -> None:
    write_files(str(tmp_path), {"s.csv": content})
    with pytest.raises(DatasetError, match=message):
        read_csv(str(tmp_path / "s.csv"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"train":\n ["a",]}', r"s\.json must hold .*line 2"),
        ('["a"]', r's\.json must hold .*: found \["a"\]'),
        ('{"train": "abc"}', "'train' is \"abc\""),
        ('{"train": ["a", null]}', "key 1 of 'train' is null"),
        ('{"train": ["a", " "]}', "key 1 of 'train' is \" \""),
        ('{"trian": ["a"]}', r"s\.json names the split 'trian'"),
    ],
)
def test_bad_mappings_are_refused_with_the_entry(
    tmp_path: Path, content: str, message: str
) -> None:
    write_files(str(tmp_path), {"s.json": content})
    with pytest.raises(DatasetError, match=message):
        read_json(str(tmp_path / "s.json"))
