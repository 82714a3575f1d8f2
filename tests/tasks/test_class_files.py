"""Classes come from a list, a file, the layout or the masks, in this order."""

from pathlib import Path

import pytest

from tasks.class_files import CAMVID_NAMES, VOC_NAMES, derive_classes, find_classes, read_class_file
from tasks.dataset import DatasetError
from tasks.labels import ClassRow
from tasks.layouts import Source
from tests.tasks.sources import write_files


def source(layout: str, class_file_url: str | None = None) -> Source:
    return Source(url="u", layout=layout, pairs=[], findings=[], class_file_url=class_file_url)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.csv", "name,r,g,b\nsky,1,2,3\nroad,4,5,255\n"),
        ("c.csv", "Name, Colour\nsky, #010203\nroad, #0405ff\n"),
        ("c.json", '{"sky": [1, 2, 3], "road": [4, 5, 255]}'),
        ("c.json", '[{"name": "sky", "color": "#010203"}, {"name": "road", "colour": [4,5,255]}]'),
    ],
)
def test_files_with_colours(tmp_path: Path, name: str, content: str) -> None:
    write_files(str(tmp_path), {name: content})
    assert read_class_file(str(tmp_path / name)) == [
        ClassRow(name="sky", colour=(1, 2, 3)),
        ClassRow(name="road", colour=(4, 5, 255)),
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.txt", "sky\n\n road \n"),
        ("c.csv", "name\nsky\nroad\n"),
        ("c.json", '["sky", "road"]'),
    ],
)
def test_files_of_names(tmp_path: Path, name: str, content: str) -> None:
    write_files(str(tmp_path), {name: content})
    rows = read_class_file(str(tmp_path / name))
    assert rows == [ClassRow(name="sky"), ClassRow(name="road")]


@pytest.mark.parametrize("column", ["value", "id"])
def test_files_with_values(tmp_path: Path, column: str) -> None:
    write_files(str(tmp_path), {"c.csv": f"{column},name\n0,sky\n255,road\n"})
    assert [row.value for row in read_class_file(str(tmp_path / "c.csv"))] == [0, 255]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.csv", "sky,1\nroad,2\n", "expected columns name"),
        ("c.csv", "", "expected columns name"),
        ("c.csv", "name,r,g,b\nsky,1,2,300\n", "outside 0..255"),
        ("c.csv", "name,r,g,b\nsky,1,2,3\nroad,1,2,many\n", r"c\.csv .*line 3: .*'many'"),
        ("c.csv", "name,r,g,b\nsky,1,2,3\nroad,1,2\n", r"c\.csv .*line 3: "),
        ("c.csv", "name\nsky\n" + "x" * 200_000, r"c\.csv .*line 3: field larger than"),
        ("c.json", '[{"name": "sky", "value": Infinity}]', "expected a list of names"),
        ("c.json", "{", "expected a list of names"),
        ("c.json", '{"sky": "blue"}', "expected a list of names"),
        ("c.txt", b"\xff\xfe\x00", "expected a name per line"),
        ("c.xml", "", r"is no \.txt, \.csv or \.json file"),
    ],
)
def test_bad_files_say_what_was_expected(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    write_files(str(tmp_path), {name: content})
    with pytest.raises(DatasetError, match=message):
        read_class_file(str(tmp_path / name))


def test_names_given_come_first(tmp_path: Path) -> None:
    write_files(str(tmp_path), {"classes.txt": "x\n", "other.txt": "y\n"})
    voc = source("voc", str(tmp_path / "classes.txt"))
    assert find_classes(voc, ["a", "b"]).classes.names == ("a", "b")
    assert find_classes(voc, str(tmp_path / "other.txt")).classes.names == ("y",)
    assert find_classes(voc).classes.names == ("x",)


def test_layouts_have_known_names() -> None:
    assert find_classes(source("voc")).classes.names == VOC_NAMES
    camvid = find_classes(source("camvid"))
    assert camvid.classes.names == CAMVID_NAMES
    assert camvid.ids[11] == 255
    assert find_classes(source("folders")) is None


def test_ignored_values_of_camvid_can_be_changed() -> None:
    assert 11 not in find_classes(source("camvid"), ignore_values=[]).ids
    assert find_classes(source("camvid"), [str(i) for i in range(32)]).ids[11] == 11


def test_classes_derived_from_values() -> None:
    table = derive_classes({0, 1, 3, 255})
    assert table.classes.names == ("class 0", "class 1", "class 2", "class 3")
    assert derive_classes({0, 1, 2}, [0]).classes.names == ("class 1", "class 2")


@pytest.mark.parametrize("values", [{0, 255}, {0, 128}, {0, 50, 100, 200}, set()])
def test_values_that_tell_no_classes_are_errors(values: set[int]) -> None:
    with pytest.raises(DatasetError, match=r"does not tell the classes. Give classes"):
        derive_classes(values)
