"""What the house promises: its floors, its wheel, its words, its versions."""

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", *(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]


def text(name):
    return (ROOT / name).read_text(encoding="utf-8")


PROJECT = tomllib.loads(text("pyproject.toml"))["project"]


def run(tool, *arguments):
    """Runs a tool of this environment; its output is the failure message."""
    command = [Path(sys.executable).with_name(tool), *arguments]
    outcome = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return outcome.stdout


def test_the_floors_hold():
    assert "0 broken" in run("lint-imports", "--no-cache")


def test_the_wheel_holds_the_network_only(tmp_path):
    run("python", "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path))
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.partition("/")[0] for name in archive.namelist()}
        assert "fcn/model.py" in archive.namelist()
    assert tops == {"fcn", f"fcn_flows-{PROJECT['version']}.dist-info"}


def test_version_and_changelog_agree():
    newest = re.search(r"^## (\S+)", text("CHANGELOG.md"), re.MULTILINE)
    assert newest
    assert newest[1] == PROJECT["version"] == version("fcn-flows")


def test_every_dependency_of_development_has_a_tested_version():
    pinned = set(re.findall(r"^([a-z0-9-]+)==", text("constraints.txt"), re.M))
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *extras["pipeline"], *extras["s3"], *extras["dev"]]
    names = {re.match(r"[\w-]+", requirement)[0].lower() for requirement in wanted} - {"fcn-flows"}
    assert names <= pinned


def test_constraints_name_versions_and_no_host():
    lines = text("constraints.txt").splitlines()
    odd = [line for line in lines if not re.fullmatch(r"#.*|[a-z0-9-]+==[\w.]+( ; .*)?", line)]
    assert odd == []


@pytest.mark.parametrize(
    "word", ["image", "label map", "mask", "dataset", "collection", "manifest", "shard", "part"]
)
def test_the_glossary_has_the_word(word):
    assert f"\n| {word} | " in text("docs/glossary.md")


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text(page))
    assert [
        target for target in targets if not (ROOT / page).parent.joinpath(target).exists()
    ] == []


@pytest.mark.parametrize("floor", ["fcn", "tasks", "flows"])
def test_every_module_says_what_it_is(floor):
    modules = (ROOT / floor).rglob("*.py")
    assert [path for path in modules if not path.read_text("utf-8").startswith('"""')] == []
