# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""The architecture: imports point one way, modules stay small, each setting is checked in one place.

Only the source is read. Imports count wherever they stand, in functions and under ``TYPE_CHECKING``, too.
"""

import ast
import inspect
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from anomalib_ddpm_st import DdpmSt

PACKAGE = "anomalib_ddpm_st"
ROOT = Path(__file__).parents[1]
# Each layer may import those before it. The package itself, which holds the public names, is on top.
LAYERS = ("core", "visualization", "diffusion", "synthesis", "detector", "registration", "cli", PACKAGE)
LIGHTNING = {"lightning", "pytorch_lightning"}
MAX_LINES = {"module": 400, "class": 350, "function": 50}
MAX_ARGUMENTS = 19

Functions = (ast.FunctionDef, ast.AsyncFunctionDef)


def read_sources() -> dict[str, str]:
    """Source of each module of the package by its dotted name."""
    sources = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return sources


def imported_names(source: str, parent: str) -> set[str]:
    """Absolute dotted names that a source imports: ``from a.b import c`` imports ``a.b.c``.

    Args:
        source (str): Source of a module.
        parent (str): Dotted name of the folder that the module is in, which relative imports start from.

    Returns:
        set[str]: Names.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = parent.rsplit(".", node.level - 1)[0] if node.level else ""
            names |= {".".join(filter(None, (base, node.module, alias.name))) for alias in node.names}
    return names


def import_graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """Names that each module imports; those of the package as the module that defines them.

    A module does not count as an importer of the folders that it is in, although Python runs their ``__init__``.
    """
    folders = {name.rpartition(".")[0] for name in sources}

    def module_of(name: str) -> str:
        while name not in sources and name.startswith(f"{PACKAGE}."):
            name = name.rpartition(".")[0]
        return name

    graph = {}
    for module, source in sources.items():
        parent = module if module in folders else module.rpartition(".")[0]
        graph[module] = {module_of(name) for name in imported_names(source, parent)}
    return graph


def layer_of(module: str) -> str:
    """Folder of a module, or the module itself if it is in none."""
    return module.split(".")[1] if "." in module else module


def upward_imports(graph: dict[str, set[str]]) -> list[str]:
    """Imports of a later layer, and those by ``visualization`` of any layer but ``core``."""
    wrong = []
    for module, names in graph.items():
        layer = layer_of(module)
        allowed = {"core", layer} if layer == "visualization" else LAYERS[: LAYERS.index(layer) + 1]
        inner = (name for name in names if name.split(".")[0] == PACKAGE)
        wrong += [f"{module} imports {name}" for name in inner if layer_of(name) not in allowed]
    return sorted(wrong)


def reachable(graph: dict[str, set[str]], module: str) -> set[str]:
    """Everything that a module imports, directly or through other modules of the package, and itself."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += graph.get(name, ())
    return found


def oversized(source: str) -> list[str]:
    """Modules, classes and function bodies of a source that are too long; docstrings of functions do not count."""
    tree = ast.parse(source)
    sizes = [("module", "", len(source.splitlines()))]
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            sizes.append(("class", node.name, node.end_lineno - node.lineno + 1))
        elif isinstance(node, Functions):
            first = node.body[0]
            start = first.end_lineno if ast.get_docstring(node) is not None else first.lineno - 1
            sizes.append(("function", node.name, node.end_lineno - start))
    return [f"{kind} {name}: {size} lines" for kind, name, size in sizes if size > MAX_LINES[kind]]


def range_checks(source: str) -> Iterator[tuple[str, str]]:
    """Calls of ``check_*`` with the name of a setting: the check and the name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function.startswith("check_"):
                yield function, str(node.args[0].value)


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    return read_sources()


@pytest.fixture(scope="module")
def graph(sources: dict[str, str]) -> dict[str, set[str]]:
    return import_graph(sources)


def test_imports_point_one_way(graph: dict[str, set[str]]) -> None:
    assert {layer_of(module) for module in graph} == set(LAYERS)
    assert upward_imports(graph) == []


def test_no_import_cycles(graph: dict[str, set[str]]) -> None:
    TopologicalSorter(graph).prepare()


def test_torch_model_needs_no_lightning(graph: dict[str, set[str]]) -> None:
    names = reachable(graph, f"{PACKAGE}.detector.torch_model")
    assert f"{PACKAGE}.detector.teacher" in names
    assert f"{PACKAGE}.core.config" in names
    assert [name for name in names if name.split(".")[0] in LIGHTNING] == []


def test_no_module_class_or_function_is_too_long(sources: dict[str, str]) -> None:
    wrong = {module: oversized(source) for module, source in sources.items()}
    assert {module: names for module, names in wrong.items() if names} == {}


def test_model_has_few_arguments() -> None:
    parameters = inspect.signature(DdpmSt).parameters.values()
    assert len(parameters) <= MAX_ARGUMENTS
    assert {parameter.kind for parameter in parameters} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}


def test_each_setting_is_checked_in_one_place(sources: dict[str, str]) -> None:
    calls = [(module, *check) for module, source in sources.items() for check in range_checks(source)]
    counts = Counter((check, name) for _, check, name in calls)
    assert ("check_integer", "diffusion.training_steps") in counts
    assert [call for call, count in counts.items() if count > 1] == []
    places = Counter(name for _, name in {(module, name) for module, _, name in calls})
    assert [name for name, count in places.items() if count > 1] == []


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import torch, numpy as np", {"torch", "numpy"}),
        ("import lightning.pytorch", {"lightning.pytorch"}),
        ("from torch import nn", {"torch.nn"}),
        ("from . import blending", {"package.synthesis.blending"}),
        ("from .masks import a, b", {"package.synthesis.masks.a", "package.synthesis.masks.b"}),
        ("from ..core.images import a", {"package.core.images.a"}),
        ("from .. import core", {"package.core"}),
        ("def f():\n    from ..detector import student", {"package.detector.student"}),
        ("if TYPE_CHECKING:\n    import openvino", {"openvino"}),
    ],
)
def test_imported_names(source: str, names: set[str]) -> None:
    assert imported_names(source, "package.synthesis") == names


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("synthesis.masks", "from anomalib_ddpm_st.core.images import load_image", False),
        ("synthesis.masks", "from anomalib_ddpm_st.visualization import plots", False),
        ("synthesis.masks", "from .perlin import noise", False),
        ("synthesis.masks", "from anomalib_ddpm_st.detector.student import Student", True),
        ("synthesis.masks", "def f():\n    from ..detector import Student", True),
        ("synthesis.masks", "import anomalib_ddpm_st.cli.main", True),
        ("synthesis.masks", "from anomalib_ddpm_st import DdpmSt", True),
        ("core.images", "from ..diffusion import unet", True),
        ("visualization.plots", "from ..core import images", False),
        ("visualization.plots", "from ..diffusion import unet", True),
        ("diffusion.unet", "from ..visualization import plots", False),
        ("cli.main", "from ..registration import register", False),
        ("registration", "from .detector import DdpmSt", False),
        ("registration", "from .cli import main", True),
    ],
)
def test_upward_imports(module: str, source: str, wrong: bool) -> None:
    sources = dict.fromkeys([PACKAGE, *(f"{PACKAGE}.{layer}" for layer in LAYERS[:-1])], "")
    graph = import_graph({**sources, f"{PACKAGE}.{module}": source})
    assert bool(upward_imports(graph)) == wrong


def test_import_graph_finds_what_is_imported_indirectly() -> None:
    sources = {
        f"{PACKAGE}.detector": "from .b import B",
        f"{PACKAGE}.detector.a": "from anomalib_ddpm_st.detector import B",
        f"{PACKAGE}.detector.b": "def f():\n    from lightning.pytorch import Trainer",
    }
    graph = import_graph(sources)
    assert graph[f"{PACKAGE}.detector.a"] == {f"{PACKAGE}.detector"}
    assert "lightning.pytorch.Trainer" in reachable(graph, f"{PACKAGE}.detector.a")
    TopologicalSorter(graph).prepare()
    with pytest.raises(CycleError):
        TopologicalSorter(import_graph({**sources, f"{PACKAGE}.detector.b": "from .a import A"})).prepare()


def test_oversized() -> None:
    statement = "    x = 1\n"
    assert oversized("def f():\n" + 50 * statement) == []
    assert oversized("def f():\n" + 51 * statement) == ["function f: 51 lines"]
    assert oversized('def f():\n    """One.\n\n    Two.\n    """\n' + 50 * statement) == []
    assert oversized('def f():\n    """One.\n\n    Two.\n    """\n' + 51 * statement) == ["function f: 51 lines"]
    assert oversized("async def f():\n" + 51 * statement) == ["function f: 51 lines"]
    assert oversized("class C:\n" + 349 * statement) == []
    assert oversized("class C:\n" + 350 * statement) == ["class C: 351 lines"]
    assert oversized(400 * "x = 1\n") == []
    assert oversized(401 * "x = 1\n") == ["module : 401 lines"]


def test_range_checks() -> None:
    source = 'check_number("a", a, 0)\nx = config.check_range("b", b, 1)\nother("c")\ncheck_number(name, value, 0)\n'
    assert list(range_checks(source)) == [("check_number", "a"), ("check_range", "b")]
