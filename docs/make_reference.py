# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Writes the tables of settings and commands into the pages of the reference, from docstrings and parsers.

From the root of the repository: ``python docs/make_reference.py``; ``--check`` changes nothing and fails if a page is
not up to date.
"""

import argparse
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from jsonargparse import ArgumentParser

from anomalib_ddpm_st import BankConfig, DdpmSt, DefectConfig, DiffusionConfig
from anomalib_ddpm_st.cli import DdpmStCLI
from anomalib_ddpm_st.cli.main import COMMANDS

REFERENCE = Path(__file__).parent / "reference"
SETTINGS: dict[str, type] = {
    "DdpmSt": DdpmSt,
    "DiffusionConfig": DiffusionConfig,
    "BankConfig": BankConfig,
    "DefectConfig": DefectConfig,
}
ARGUMENT = re.compile(r"^    (\w+) \((.*?)\): (.*)$")
DEFAULT = re.compile(r"\s*Defaults to ``(.*?)``(?:, ([^.]*))?\.")
ROLE = re.compile(r":(?:class|func|meth):`~?([\w.]+)`")


def arguments(docstring: str) -> dict[str, tuple[str, str]]:
    """Type and text of each argument of a Google docstring.

    Args:
        docstring (str): Docstring.

    Returns:
        dict[str, tuple[str, str]]: By name, in the order of the docstring.
    """
    found: dict[str, tuple[str, str]] = {}
    name = ""
    lines = inspect.cleandoc(docstring).split("\n")
    for line in lines[lines.index("Args:") + 1 :]:
        if line and not line.startswith("    "):
            break
        if match := ARGUMENT.match(line):
            name, kind, text = match.groups()
            found[name] = (kind.removesuffix(", optional"), text)
        elif name and line:
            kind, text = found[name]
            found[name] = (kind, f"{text} {line.strip()}")
    return found


def to_markdown(text: str) -> str:
    """Text of a docstring for a cell of a table."""
    text = ROLE.sub(lambda match: f"`{match[1].rsplit('.', maxsplit=1)[-1]}`", " ".join(text.split()))
    return text.replace("``", "`").replace("|", r"\|")


def table(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def settings_table(owner: type) -> str:
    """Table of the settings of a class.

    Args:
        owner (type): Class whose docstring has an argument list.

    Returns:
        str: Table in Markdown.
    """
    rows = []
    parameters = inspect.signature(owner).parameters
    for name, (kind, text) in arguments(owner.__doc__ or "").items():
        choices = get_args(parameters[name].annotation) if kind.isidentifier() else ()
        kind_or_choices = " | ".join(f'"{choice}"' for choice in choices) or kind
        match = DEFAULT.search(text)
        default = f"`{match[1]}`" if match else ""
        meaning = DEFAULT.sub(f" By default {match[2]}." if match and match[2] else "", text)
        rows.append([f"`{name}`", to_markdown(f"``{kind_or_choices}``"), default, to_markdown(meaning)])
    return table(["Setting", "Type", "Default", "Meaning"], rows)


def command_table(function: Callable[..., None]) -> str:
    """Table of the options of one of our own commands, as its parser has them.

    Args:
        function (Callable[..., None]): Function of the command.

    Returns:
        str: Table in Markdown.
    """
    parser = ArgumentParser()
    DdpmStCLI._add_function_arguments(function, parser)  # noqa: SLF001
    rows = []
    for action in parser._actions:  # noqa: SLF001
        option = max(action.option_strings, key=len)
        # Options for a whole group, and those that every parser has.
        if not re.fullmatch(r"--[a-z_]+(\.[a-z_]+)?", option) or action.nargs == 0 or action.dest == "config":
            continue
        if any(other.dest.startswith(f"{action.dest}.") for other in parser._actions):  # noqa: SLF001
            continue
        rows.append([
            f"`{option}`",
            _default(action.default, action.dest in parser.required_args),
            to_markdown(str(action.help or "")),
        ])
    return table(["Option", "Default", "Meaning"], rows)


def _default(value: Any, is_required: bool) -> str:  # noqa: ANN401
    """Cell with the default of an option."""
    if is_required:
        return "required"
    if isinstance(value, tuple):
        value = list(value)
    return "" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def sections() -> dict[str, dict[str, str]]:
    """Generated tables by page and marker."""
    commands = {name: command_table(function) for name, function in COMMANDS.items()}
    return {"settings.md": {name: settings_table(owner) for name, owner in SETTINGS.items()}, "cli.md": commands}


def fill(text: str, tables: dict[str, str]) -> str:
    """Put tables between the markers of a page.

    Args:
        text (str): Page with ``<!-- generated NAME -->`` and ``<!-- /generated NAME -->``.
        tables (dict[str, str]): Tables by name.

    Returns:
        str: Page.

    Raises:
        ValueError: If a marker is missing.
    """
    for name, content in tables.items():
        start, end = f"<!-- generated {name} -->", f"<!-- /generated {name} -->"
        before, found, rest = text.partition(start)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            msg = f"The page lacks the markers {start} and {end}."
            raise ValueError(msg)
        text = f"{before}{start}\n\n{content}\n\n{end}{after}"
    return text


def outdated(*, write: bool) -> list[str]:
    """Pages whose tables differ from the code.

    Args:
        write (bool): Whether to update them.

    Returns:
        list[str]: Names of the pages.
    """
    names = []
    for name, tables in sections().items():
        path = REFERENCE / name
        text = path.read_text(encoding="utf-8")
        new = fill(text, tables)
        if new != text:
            names.append(name)
            if write:
                path.write_text(new, encoding="utf-8")
    return names


def main() -> None:
    """Update the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, fail if a page is not up to date")
    is_check = parser.parse_args().check
    if (names := outdated(write=not is_check)) and is_check:
        sys.exit(f"Not up to date: {', '.join(names)}. Run python docs/make_reference.py.")


if __name__ == "__main__":
    main()
