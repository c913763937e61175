# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""The page about errors lists every message of the package, and no other."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "how-to" / "troubleshooting.md"
PLACEHOLDER = re.compile(r"%[a-z]")
FROM_ANOMALIB = "(from anomalib)"


def literal(node: ast.expr) -> str:
    """Text of a string, an f-string or a sum of these, without what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return PLACEHOLDER.sub("", node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(literal(part) for part in node.values)
    return literal(node.left) + literal(node.right) if isinstance(node, ast.BinOp) else ""


def messages(source: str) -> Iterator[str]:
    """Messages of errors and warnings in a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "msg":
            yield literal(node.value)
        elif isinstance(node, ast.Call) and node.args:
            name = ast.unparse(node.func)
            if name in {"logger.warning", "warnings.warn"} or name.endswith("Error"):
                yield literal(node.args[0])


def all_messages() -> set[str]:
    """Messages of the package."""
    paths = (ROOT / "anomalib_ddpm_st").rglob("*.py")
    return {text for path in paths for text in messages(path.read_text(encoding="utf-8")) if text.strip()}


def listed_patterns() -> list[str]:
    """Regular expressions of the messages in the first column of the page, but those of anomalib."""
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    cells = [line.split(" | ")[0] for line in rows if FROM_ANOMALIB not in line.split(" | ")[0]]
    listed = [message for cell in cells for message in re.findall(r"`([^`]+)`", cell)]
    return [".*".join(map(re.escape, message.split("..."))) for message in listed]


def test_every_message_is_listed() -> None:
    """Who gets a message finds it on the page."""
    patterns = listed_patterns()
    missing = [text for text in all_messages() if not any(re.search(pattern, text) for pattern in patterns)]
    assert not missing


def test_no_other_message_is_listed() -> None:
    """Messages that were removed or reworded leave the page, too."""
    texts = all_messages()
    unknown = [pattern for pattern in listed_patterns() if not any(re.search(pattern, text) for text in texts)]
    assert not unknown


def test_messages_are_found() -> None:
    """What the test reads from the source: strings, f-strings, sums and placeholders of logging."""
    source = """
def fail(name):
    logger.warning("There are %d of them.", 3)
    yield ValueError(f"No {name}" " here" + suffix)
    msg = "First line:\\n" + text
    raise ValueError(msg)
"""
    assert set(messages(source)) - {""} == {"There are  of them.", "No  here", "First line:\n"}
