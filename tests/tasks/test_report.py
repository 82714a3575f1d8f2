import base64
import io
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from fcn.classes import Classes
from fcn.evaluate import ImageScores, SplitScores
from fcn.intervals import Interval, Intervals
from fcn.metrics import Scores, confusion
from tasks import stores
from tasks.report import (
    MARKDOWN_BYTES,
    Example,
    Report,
    choose_examples,
    markdown,
    percent,
    render,
    write_report,
)

CLASSES = Classes.named(["sky", "road", "car"])
METRICS = [
    {"step": 10, "epoch": 0, "loss": 1.5, "learning_rate": 0.1, "images_per_second": 20.0},
    {"step": 20, "epoch": 0, "loss": 0.7, "learning_rate": 0.1, "images_per_second": 20.0},
    {"step": 20, "epoch": 0, "mean_iu": 0.6, "pixel_accuracy": 0.8, "iu": [0.6, 0.6, None]},
]


def example(rng, caption="val/a", group="best", height=40, width=50):
    label = rng.integers(0, 2, (height, width)).astype(np.uint8)
    image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    return Example(
        group=group, image=image, label=label, prediction=1 - label, caption=caption, score=0.5
    )


def image_scores(mean_iu):
    return ImageScores(
        height=4, width=5, pixels=20, pixel_accuracy=0.9, mean_iu=mean_iu, num_present=2,
        boundary_f1=0.3,
    )  # fmt: skip


def result(matrix, mean_ius=(0.2, 0.9, 0.6)):
    """Scores of a split of some images."""
    known, unknown = Interval(low=0.512, high=0.634), Interval(low=np.nan, high=np.nan)
    counted = matrix.any()
    return SplitScores(
        scores=Scores(matrix),
        intervals=Intervals(mean_iu=known if counted else unknown, pixel_accuracy=unknown),
        boundary_f1=np.array([0.414, 0.2, np.nan]) if counted else np.full(3, np.nan),
        images=[image_scores(mean_iu) for mean_iu in mean_ius],
    )


def report(rng, **changes):
    label = np.array([[0, 0, 0, 1, 255]])
    matrix = confusion(label, np.array([[0, 0, 1, 1, 0]]), len(CLASSES))
    settings = {
        "title": "A run",
        "result": result(matrix),
        "classes": CLASSES,
        "metrics": METRICS,
        "hardest": [{"image": "val/b", "mean IU": "20.0 %", "classes": "2"}],
        "examples": [example(rng)],
        "facts": {"Settings": {"epochs": 20, "crop_size": None}},
    }
    return Report(**settings | changes)


class Page(HTMLParser):
    """Tags and text of a page."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags = []
        self.text = ""
        self.feed(page.decode())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """The files of an ordinary report."""
    return render(report(np.random.default_rng(0)))


@pytest.fixture(scope="module")
def page(files) -> Page:
    """Its page."""
    return Page(files["report.html"])


@pytest.fixture(scope="module")
def text(files) -> str:
    """Its Markdown."""
    return markdown(report(np.random.default_rng(0)), files)


def test_the_files_are_a_page_and_its_pictures(files):
    assert sorted(files) == [
        *("confusion.png", "curves.png", "examples.png", "images.png", "report.html")
    ]
    for name in sorted(files)[:4]:
        assert Image.open(io.BytesIO(files[name])).format == "PNG"


def test_the_page_asks_for_nothing_beside_it(files, page):
    names = ("src", "srcset", "href", "action", "data", "poster")
    sources = [attrs[n] for _, attrs in page.tags for n in names if n in attrs]
    assert len(sources) == 10  # three plots, light and dark; four pictures of one example
    assert all(source.startswith("data:image/") for source in sources)
    for word in (b"http://", b"https://", b"@import", b"url("):
        assert word not in files["report.html"]


def test_plots_are_shown_light_and_dark(page):
    sources = [attrs for tag, attrs in page.tags if tag == "source"]
    assert len(sources) == 3
    assert all(attrs["media"] == "(prefers-color-scheme: dark)" for attrs in sources)


def test_the_markdown_shows_the_light_plots(text, files):
    for name in ("curves.png", "confusion.png", "images.png"):
        assert base64.b64encode(files[name]).decode() in text


def test_words_of_strangers_are_text_and_never_markup(rng):
    evil = '<script>alert("1")</script>'
    page = Page(
        render(
            report(
                rng,
                title=evil,
                subtitle=evil,
                classes=Classes.named([evil, "'>\"<img onerror=x>", "車"]),
                examples=[example(rng, caption=evil + '" onload="x')],
                hardest=[{"image": evil}],
                facts={evil: {evil: evil}},
            )
        )["report.html"]
    )
    assert "script" not in {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert page.text.count(evil) >= 8
    assert "車" in page.text


def test_figures_say_over_how_many_classes_they_run(page):
    assert "58.3 %" in page.text  # (2/3 + 1/2) / 2
    assert "mean IU over 2 of 3 classes" in page.text


def test_figures_stand_with_their_intervals_where_there_are_some(page, text):
    assert "51.2–63.4 %" in page.text
    assert page.text.count("–") == 1 + 4  # and the dashes of the class that does not occur
    assert "its 95 % bootstrap interval" in page.text
    assert "boundary F1" in page.text
    assert "| mean IU over 2 of 3 classes | 58.3 % | 51.2–63.4 % |" in text
    assert "| mean accuracy |" in text


def test_the_page_lists_the_hardest_images(page):
    assert "val/b" in page.text
    assert "images.parquet" in page.text


def test_a_class_that_does_not_occur_has_dashes(page, text):
    assert [attrs.get("class") for tag, attrs in page.tags if tag == "tr"] == [
        *(None, None, None, "absent"),
        *(None, None),  # of the hardest images
    ]
    assert "| car | – | – | – | 0.0 % |  |" in text


def test_the_class_table_tells_what_a_class_was_taken_for(text):
    assert "| sky | 66.7 % | 66.7 % | 41.4 % | 75.0 % | road, 33.3 % |" in text


def test_a_report_without_metrics_examples_and_facts_is_whole(rng):
    matrix = np.eye(3, dtype=np.int64)
    bare = report(rng, result=result(matrix, [0.5]), metrics=[], examples=[], facts={}, hardest=[])
    files = render(bare)
    assert sorted(files) == ["confusion.png", "report.html"]
    text = Page(files["report.html"]).text
    assert "Classes" in text
    assert not any(word in text for word in ("Learning curves", "Examples", "Hardest", "How it"))
    assert "## Examples" not in markdown(bare, files)


def test_a_report_of_no_counted_pixel_holds_dashes(rng):
    nothing = result(np.zeros((3, 3), np.int64), [np.nan, np.nan])
    page = Page(render(report(rng, result=nothing, examples=[]))["report.html"])
    assert "mean IU over 0 of 3 classes" in page.text
    assert "nan" not in page.text
    assert "bootstrap" not in page.text


def test_groups_stand_in_order_best_typical_worst(rng):
    examples = [example(rng, group, group) for group in ("worst", "best", "typical")]
    text = Page(render(report(rng, examples=examples))["report.html"]).text
    assert text.index("Best") < text.index("Typical") < text.index("Worst")


def test_large_images_are_made_smaller(rng):
    page = Page(render(report(rng, examples=[example(rng, width=3001)]))["report.html"])
    pictures = [attrs["src"] for tag, attrs in page.tags if tag == "img" and "class" not in attrs]
    for url in pictures:
        data = base64.b64decode(url.partition(",")[2])
        assert Image.open(io.BytesIO(data)).width <= 400


def test_markdown_escapes_and_stays_small(rng):
    names = Classes.named(["a|b", "<script>", "[x](y)"])
    examples = [example(rng, height=400, width=400) for _ in range(30)]
    given = report(rng, classes=names, examples=examples)
    text = markdown(given, render(given))
    assert r"| a\|b |" in text
    assert "<script>" not in text
    assert r"\[x\]\(y\)" in text
    assert MARKDOWN_BYTES / 2 < len(text) < MARKDOWN_BYTES


def test_write_report_puts_every_file_and_names_the_page(files, tmp_path):
    url = write_report(str(tmp_path / "run"), files)
    assert url == stores.join(str(tmp_path / "run"), "report.html")
    assert stores.read_bytes(url).startswith(b"<!doctype html>")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "confusion.png",
        "curves.png",
        "examples.png",
        "images.png",
        "report.html",
    }


def test_examples_are_the_best_the_middle_and_the_worst():
    scores = [0.9, 0.1, 0.5, float("nan"), 0.7, 0.3, 0.6, 0.2]
    assert choose_examples(scores, 2) == {"best": [0, 4], "typical": [5, 2], "worst": [1, 7]}


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_no_example_is_shown_twice_and_few_are_all_shown(count):
    chosen = choose_examples([0.1 * index for index in range(count)], 3)
    indices = [index for members in chosen.values() for index in members]
    assert sorted(indices) == list(range(count))


@pytest.mark.parametrize(("share", "text"), [(0.8642, "86.4 %"), (1, "100.0 %"), (np.nan, "–")])
def test_percent(share, text):
    assert percent(share) == text
