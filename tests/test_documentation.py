# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""What the pages hold, and what runs their blocks: conftest.py in the root folder and docs/testing."""

import importlib.util
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import anomalib_ddpm_st
from anomalib_ddpm_st import BankConfig, DdpmSt, DiffusionConfig

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
LANGUAGES = {"bash", "python", "yaml", "text", "cpp"}
MAX_SKIPS = 3
MAX_PICTURE = 150_000
MAX_README, MAX_BEFORE_PICTURE = 180, 20
# What users of anomalib ask again and again, and the page that answers it.
QUESTIONS = {
    "I have good images alone: which folders, which split?": "how-to/good-images-only",
    "Does validation see my test set?": "how-to/with-defects",
    "How is the threshold chosen, and how do I change it?": "how-to/thresholds",
    "What does the score mean?": "explanation/scores",
    "Which image size, and what of tiny defects?": "how-to/images",
    "Why do the exported and the trained model disagree?": "how-to/check-an-export",
    "RGB or BGR, 0-255 or 0-1?": "how-to/check-an-export",
    "How do I run it on a folder or a camera?": "how-to/inspect-folder",
    "How do I run it without Python?": "how-to/inspect-cpp",
    "Why does it run out of memory?": "how-to/time-and-memory",
    "How long does it take on a CPU?": "how-to/time-and-memory",
    "Which model should I use?": "explanation/choose-a-model",
    "How many images do I need?": "how-to/few-images",
    "How do I train without internet?": "how-to/no-network",
    "Does it take grey images?": "how-to/images",
    "INT8: how, and what does it cost?": "how-to/export-int8",
    "Does it run on Windows?": "how-to/troubleshooting",
}


def load(path: Path, name: str) -> ModuleType:
    """Import a file."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickles look modules up by name; these have neither, so nothing is registered.
    spec.loader.exec_module(module)
    return module


def fences(text: str) -> list[str]:
    """What stands behind the opening of each fenced block, its language."""
    found = []
    closing: re.Pattern | None = None
    for line in text.splitlines():
        if closing is not None:
            closing = None if closing.fullmatch(line) else closing
        elif match := re.match(r"\s*(?:[-*+]|\d+[.)])?\s*(`{3,}|~{3,})(.*)", line):
            found.append(match[2].strip())
            closing = re.compile(rf"\s*{match[1]}+\s*")
    return found


def wrong_fences(text: str) -> list[str]:
    """Languages of blocks that nothing checks. Directives of Sphinx are checked when the site is built."""
    return [language for language in fences(text) if language not in LANGUAGES and not language.startswith("{")]


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_has_a_language(page: Path) -> None:
    assert wrong_fences(page.read_text(encoding="utf-8")) == []


def test_wrong_fences() -> None:
    text = (
        "```bash\n```\n```\nno language\n```\n- ```sh\n  ```\n````text\n```\n````\n```{toctree}\n```\n~~~ python\n~~~\n"  # noqa: RUF027
    )
    assert wrong_fences(text) == ["", "sh"]


def test_few_blocks_are_skipped() -> None:
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *PAGES)]
    skips = [line for text in texts for line in re.findall(r"<!--+\s*skip:.*", text)]
    assert len(skips) <= MAX_SKIPS, skips
    assert all(re.fullmatch(r'<!-- skip: next "[^"]+" -->', line) for line in skips), "a reason for each"


def test_readme_is_short_and_begins_with_a_picture() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MAX_README
    assert any(re.search(r"!\[[^\]]+\]\(docs/images/|<img ", line) for line in lines[:MAX_BEFORE_PICTURE])


def test_pictures_are_small() -> None:
    sizes = {path.name: path.stat().st_size for path in (DOCS / "images").rglob("*.*")}
    assert {name: size for name, size in sizes.items() if size > MAX_PICTURE} == {}


def toctree() -> list[str]:
    """Pages in the table of contents."""
    text = (DOCS / "index.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```\{toctree\}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line and not line.startswith(":")]


def test_every_page_is_in_the_table_of_contents() -> None:
    names = [str(page.relative_to(DOCS).with_suffix("")) for page in PAGES]
    assert sorted(toctree()) == sorted(set(names) - {"index"})


def test_every_question_has_a_page() -> None:
    text = (DOCS / "index.md").read_text(encoding="utf-8")
    missing = [page for page in QUESTIONS.values() if page not in toctree() or f"({page}.md)" not in text]
    assert missing == []
    assert len(QUESTIONS) == 17


def test_every_public_name_is_in_the_reference() -> None:
    text = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
    found = re.findall(r"^\.\. auto\w+:: anomalib_ddpm_st\.(\w+)$", text, re.MULTILINE)
    assert sorted(found) == sorted(anomalib_ddpm_st.__all__)


# ---------------------------------------------------------------------------------------------------------------------
# Generated tables


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """The script that writes the tables of the reference."""
    return load(DOCS / "make_reference.py", "make_reference")


def test_reference_is_up_to_date(reference: ModuleType) -> None:
    assert reference.outdated(write=False) == [], "run python docs/make_reference.py"


@pytest.mark.parametrize("owner", [DdpmSt, DiffusionConfig, BankConfig, anomalib_ddpm_st.DefectConfig])
def test_every_setting_is_in_the_reference(reference: ModuleType, owner: type) -> None:
    names = list(inspect.signature(owner).parameters)
    assert list(reference.arguments(owner.__doc__)) == names
    rows = reference.settings_table(owner).splitlines()
    assert [row.split("`")[1] for row in rows[2:]] == names
    # A bar divides cells unless it is escaped.
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {5}


def test_options_of_groups_are_in_the_reference(reference: ModuleType) -> None:
    rows = reference.command_table(reference.COMMANDS["diffusion"])
    assert "| `--images` | required | Folder of normal images." in rows
    assert "| `--diffusion.training_steps` | `1000` | Number of optimiser steps. |" in rows
    assert "`--diffusion` |" not in rows
    assert "--config" not in rows


def test_outdated_reference(reference: ModuleType) -> None:
    page = "a\n<!-- generated t -->\nold\n<!-- /generated t -->\nb\n"
    assert reference.fill(page, {"t": "new"}) == "a\n<!-- generated t -->\n\nnew\n\n<!-- /generated t -->\nb\n"
    with pytest.raises(ValueError, match="lacks the markers"):
        reference.fill("a", {"t": "new"})


# ---------------------------------------------------------------------------------------------------------------------
# What runs the blocks

PAGE = """
```bash
echo "from bash" > file.txt
git clone https://example.org/somewhere/project.git && cd project && pip install nothing && cd ..
anomalib-ddpm-st demo && python -c 'print("from", "a command")'
```

```python
from pathlib import Path

text = Path("file.txt").read_text()
```

```python
assert text == "from bash\\n"
print(text)
```

```text
not run
```

<!-- skip: next "it would fail" -->
```bash
exit 7
```
"""
CONFTEST = f"""
import importlib.util

import pytest

spec = importlib.util.spec_from_file_location("own", {str(ROOT / "conftest.py")!r})
own = importlib.util.module_from_spec(spec)
spec.loader.exec_module(own)
page = own.page


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    # Nothing is imported and nothing trained.
    site = own.Site(tmp_path_factory.mktemp("site"), ())
    site.start.mkdir()
    yield site
    site.server.stop()


def pytest_collect_file(file_path, parent):
    return own.collector(parent.config.rootpath)(file_path, parent)
"""


@pytest.fixture
def pages(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A repository that has pages alone."""
    monkeypatch.setenv("PYTHONPATH", "")
    pytester.makeconftest(CONFTEST)
    (pytester.path / "docs").mkdir()
    return pytester


def run_page(pages: pytest.Pytester, text: str) -> pytest.RunResult:
    """Run the blocks of a page."""
    (pages.path / "docs" / "page.md").write_text(text, encoding="utf-8")
    return pages.runpytest_subprocess("-p", "no:cacheprovider", "docs")


def test_page(pages: pytest.Pytester) -> None:
    run_page(pages, PAGE).assert_outcomes(passed=4, skipped=1)


@pytest.mark.parametrize(
    ("block", "shown"),
    [
        ("```bash\necho a message; false\n```", ["*Exit status 1*", "*a message*"]),
        ("```bash\nfalse | cat\n```", ["*Exit status 1*"]),
        ("```bash\npython -c 'import sys; sys.exit(\"a reason\")'\n```", ["*Exit status 1*", "*a reason*"]),
        ('```python\nprint("a message")\n1 / 0\n```', ["*a message*", "*docs/page.md*line 7*", "*ZeroDivisionError*"]),
        ("```python\nimport os\nos._exit(3)\n```", ["*Failed*"]),
        ("```yaml\na: [1\n```", ["*ParserError*"]),
    ],
)
def test_failing_block(pages: pytest.Pytester, block: str, shown: list[str]) -> None:
    result = run_page(pages, f"# Title\n\nText.\n\n{block}\n\n```bash\ntrue\n```\n")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(shown)


def test_pages_share_nothing(pages: pytest.Pytester) -> None:
    (pages.path / "README.md").write_text("```bash\ntouch file.txt\n```\n\n```python\nx = 1\n```\n", encoding="utf-8")
    (pages.path / "docs" / "page.md").write_text(
        '```bash\ntest ! -e file.txt\n```\n\n```python\nassert "x" not in globals()\n```\n', encoding="utf-8"
    )
    pages.runpytest_subprocess("-p", "no:cacheprovider", "README.md", "docs").assert_outcomes(passed=4)


@pytest.fixture(scope="module")
def tiny() -> ModuleType:
    """What limits the settings."""
    return load(DOCS / "testing" / "tiny.py", "tiny")


@pytest.fixture
def tiny_settings(tiny: ModuleType) -> Iterator[None]:
    """Limited settings."""
    with tiny.tiny_settings():
        yield


def shown_size(model: DdpmSt) -> tuple[int, ...]:
    """Height and width of the images that a model sees."""
    return tuple(model.pre_processor(torch.rand(1, 3, 100, 100)).shape[-2:])


@pytest.mark.parametrize("arguments", [{}, {"training_steps": 5000, "memory_size": 2000, "bank": {"size": 100}}])
@pytest.mark.usefixtures("tiny_settings")
def test_settings_are_limited(arguments: dict[str, Any]) -> None:
    model = DdpmSt(**arguments)
    assert model.training_steps == 4
    assert model.model.memory_bank is not None
    assert model.model.memory_bank.size == 64
    assert not model.pre_trained
    assert (model.bank.size, model.diffusion.training_steps) == (4, 2)
    assert model.hparams["bank"]["size"] == 4
    assert shown_size(model) == (64, 64)
    loader = DataLoader(range(20), batch_size=8, num_workers=4, persistent_workers=True)  # type: ignore[arg-type,var-annotated]
    assert (loader.batch_size, loader.num_workers) == (4, 0)


@pytest.mark.usefixtures("tiny_settings")
def test_smaller_settings_stay() -> None:
    model = DdpmSt(training_steps=1, pre_processor=DdpmSt.configure_pre_processor((32, 96)))
    assert model.training_steps == 1
    assert shown_size(model) == (32, 96)
    assert BankConfig(size=3).size == 3


@pytest.mark.usefixtures("tiny_settings")
@pytest.mark.parametrize("arguments", [{"training_steps": 0}, {"training_steps": "many"}, {"unknown": 1}])
def test_wrong_settings_are_still_errors(arguments: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        DdpmSt(**arguments)
    with pytest.raises(ValueError, match=r"bank\.size"):
        BankConfig(size=-1)


def test_settings_are_not_limited_for_ever(tiny: ModuleType) -> None:
    with tiny.tiny_settings():
        pass
    assert DiffusionConfig().training_steps == 1000
    assert inspect.signature(DdpmSt).parameters["training_steps"].default == 3000


@pytest.mark.slow
def test_settings_of_commands_are_limited(pages: pytest.Pytester) -> None:
    """A command imports the package itself."""
    code = "import anomalib_ddpm_st as own; print(own.DiffusionConfig().training_steps)"
    (pages.path / "docs" / "page.md").write_text(f"```bash\ntest $(python -c '{code}') = 2\n```\n", encoding="utf-8")
    pages.runpytest_subprocess("-p", "no:cacheprovider", "docs").assert_outcomes(passed=1)
