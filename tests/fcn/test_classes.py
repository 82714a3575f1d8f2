import pytest

from fcn.classes import Classes, voc_palette


def test_the_voc_colours() -> None:
    palette = voc_palette(256)
    assert palette[:4] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert palette[255] == (224, 224, 192)
    assert len(set(palette)) == 256


def test_more_classes_than_voc_has_colours_have_colours_of_their_own() -> None:
    palette = voc_palette(5000)
    assert palette[:256] == voc_palette(256)
    assert len(set(palette)) == 5000
    assert Classes.named(map(str, range(300)), -1).palette == palette[:300]


def test_classes_survive_json() -> None:
    classes = Classes(("a", "b"), ((1, 2, 3), (4, 5, 6)), 7)
    assert Classes.from_json(classes.to_json(), 7) == classes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((), ()), "no classes given"),
        ((("a",), ()), "1 class names but 0 colours"),
        ((("a", "a"), ((0, 0, 0), (1, 1, 1))), r"more than once: \['a'\]"),
        ((("a",), ((0, 0, 300),)), r"RGB in 0..255, found \(0, 0, 300\)"),
        ((("a",), ((0, 0, 0),), 0), r"ignore_index 0 is a class; classes are 0..0"),
    ],
)
def test_impossible_classes_are_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Classes(*arguments)  # type: ignore[arg-type]


def test_ids_must_be_in_order() -> None:
    rows = [{"id": 1, "name": "a", "colour": [0, 0, 0]}]
    with pytest.raises(ValueError, match=r"0..0 in order, found \[1\]"):
        Classes.from_json(rows)
