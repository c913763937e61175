# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Runs the blocks of the README and of the documentation: ``python -m pytest README.md docs``.

The blocks of a page run in order in one temporary folder with small data, a trained model and its export, without a
network. They run as they are printed; ``docs/testing/tiny.py`` limits steps, textures and pixels.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import IO, cast

import pytest
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, SkipParser

ROOT = Path(__file__).parent
pytest_plugins = ["pytester"]
TESTING = ROOT / "docs" / "testing"
GOOD, DEFECTIVE, NEW, NEW_DEFECTIVE = 40, 6, 3, 2
SECONDS = 600
PRELOADED = (
    "anomalib.cli.cli",
    "anomalib.deploy",
    "anomalib.engine",
    "anomalib.models",
    "diffusers",
    "kornia",
    "matplotlib.pyplot",
    "onnxscript",
    "openvino",
    "pandas",
    "skimage.data",
    "torchmetrics",
)
# Commands of the pages. ``demo`` and ``benchmark`` take minutes, and what pip and git would do is done already.
CLIENT = 'exec "{python}" -S -E "{client}" "{socket}" {name} "$@"'
COMMANDS = {
    "anomalib": CLIENT,
    "anomalib-ddpm-st": f"""case "$1" in
demo | benchmark) echo "Not run with the pages: $1" ;;
*) {CLIENT} ;;
esac""",
    "git": """if [ "$1" = clone ]; then mkdir -p "$(basename "${{@: -1}}" .git)"; fi""",
    "pip": "exit 0",
    "python": CLIENT,
}

# What all pages start from.
START = """
anomalib-ddpm-st train -c "{configs}/own_parts.yaml" --data.root images --default_root_dir made
mv "$(find made -type f -name '*.ckpt')" model.ckpt
anomalib-ddpm-st export --model DdpmSt --ckpt_path model.ckpt --export_type openvino --default_root_dir made
mv $(find made -name 'model.xml' -o -name 'model.bin' -o -name 'model.calibration.json') .
rm -r made
anomalib-ddpm-st diffusion --images images/good --output ddpm --image_size '[64, 64]' \\
    --teacher_weights resnet18.safetensors
"""


class Server:
    """The process that runs the commands of all pages.

    Args:
        log (Path): File for what it prints.
        environment (dict[str, str]): Its environment.
        preloaded (Sequence[str]): Modules that it imports, so that the commands need not.
    """

    def __init__(self, log: Path, environment: dict[str, str], preloaded: Sequence[str]) -> None:
        # The path of a socket must be short.
        self.folder = Path(tempfile.mkdtemp())
        self.socket = self.folder / "socket"
        with log.open("w", encoding="utf-8") as file:
            self.process = subprocess.Popen(
                [sys.executable, TESTING / "server.py", self.socket, *preloaded],
                env=environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        while not self.socket.exists():
            if self.process.poll() is not None:
                pytest.fail(f"The server of the commands ended:\n{log.read_text(encoding='utf-8')}", pytrace=False)
            time.sleep(0.1)

    def stop(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.folder)


class Site:
    """What all pages share: images, a model, its export, a DDPM, weights, and commands that run this tree.

    Args:
        folder (Path): Folder for all of it.
        preloaded (Sequence[str]): Modules that the server imports. Defaults to those of most commands.
    """

    def __init__(self, folder: Path, preloaded: Sequence[str] = PRELOADED) -> None:
        self.folder = folder
        self.start = folder / "start"
        self.commands = folder / "commands"
        self.cache = folder / "cache"
        self.commands.mkdir(parents=True, exist_ok=True)
        self.server = Server(folder / "server.log", self.environment, preloaded)
        self.write_commands()

    @property
    def environment(self) -> dict[str, str]:
        """Environment of the blocks."""
        paths = (self.commands, Path(sys.executable).parent, os.environ["PATH"])
        modules = (ROOT, os.environ.get("PYTHONPATH", ""))
        return {
            **os.environ,
            "PATH": os.pathsep.join(map(str, paths)),
            "PYTHONPATH": os.pathsep.join(str(part) for part in modules if str(part)),
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(self.cache / "huggingface"),
            "XDG_CACHE_HOME": str(self.cache),
            "MPLBACKEND": "Agg",
            "CUDA_VISIBLE_DEVICES": "",
            "TQDM_DISABLE": "1",
            "COLUMNS": "200",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        }

    def run(self, script: str, folder: Path) -> None:
        """Run a bash script, and show its output if it fails."""
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=SECONDS,
        )
        if result.returncode:
            msg = f"Exit status {result.returncode} of\n\n{script}\n{result.stdout}"
            pytest.fail(msg, pytrace=False)
        print(result.stdout)  # noqa: T201

    def prepare(self) -> None:
        """Make what the pages start from, by the real commands."""
        self.write_images()
        self.write_weights()
        self.run(START.format(configs=ROOT / "configs"), self.start)

    def write_commands(self) -> None:
        """Write the commands of the pages."""
        for name, text in COMMANDS.items():
            path = self.commands / name
            line = text.format(
                python=sys.executable, client=TESTING / "client.py", socket=self.server.socket, name=name
            )
            path.write_text(f"#!/usr/bin/env bash\n{line}\n", encoding="utf-8")
            path.chmod(0o755)

    def write_images(self) -> None:
        """Write photographs of gravel: good ones, defective ones with masks, and new ones of a camera."""
        script = """python -c '
from pathlib import Path
from anomalib_ddpm_st.cli.demo_data import write_data
write_data(Path("tiles"), "gravel", seed=0)'"""
        self.run(script, self.folder)
        source = self.folder / "tiles"
        good, new_good, defective = (
            sorted((source / name).glob("*.png")) for name in ("train/good", "test/good", "test/defect")
        )
        new = [*new_good[-NEW:], *defective[DEFECTIVE : DEFECTIVE + NEW_DEFECTIVE]]
        masks = [source / "mask" / "defect" / path.name for path in defective]
        parts = {"images/good": good[:GOOD], "images/defect": defective[:DEFECTIVE], "images/mask": masks[:DEFECTIVE]}
        for name, paths in {**parts, "camera": new}.items():
            (self.start / name).mkdir(parents=True)
            for index, path in enumerate(paths):
                shutil.copy(path, self.start / name / f"{index:03d}.png")
        self.write_benchmark(parts)

    def write_benchmark(self, parts: dict[str, list[Path]]) -> None:
        """Write the same images in the layout and under the name of a category of MVTec AD, where anomalib looks."""
        root = self.start / "datasets" / "MVTecAD" / "bottle"
        good = parts["images/good"]
        moves = {
            "train/good": (good[:-4], ""),
            "test/good": (good[-4:], ""),
            "test/broken": (parts["images/defect"], ""),
            "ground_truth/broken": (parts["images/mask"], "_mask"),
        }
        for name, (paths, suffix) in moves.items():
            (root / name).mkdir(parents=True)
            for index, path in enumerate(paths):
                shutil.copy(path, root / name / f"{index:03d}{suffix}.png")

    def write_weights(self) -> None:
        """Write random weights of the default backbone."""
        script = """python -c '
import timm, torch
from safetensors.torch import save_file
torch.manual_seed(0)
save_file(timm.create_model("resnet18", pretrained=False).state_dict(), "resnet18.safetensors")'"""
        self.run(script, self.start)

    def open_page(self, folder: Path) -> None:
        """Give a page its own copies of the images, and links to the rest."""
        for path in self.start.iterdir():
            if path.name in {"images", "camera"}:
                shutil.copytree(path, folder / path.name)
            else:
                (folder / path.name).symlink_to(path)
        for name in ("configs", "examples", "benchmarks"):
            (folder / name).symlink_to(ROOT / name)


class Page:
    """A page: its folder, and the process of its blocks of Python.

    Args:
        site (Site): What all pages share.
        folder (Path): Empty folder.
    """

    def __init__(self, site: Site, folder: Path) -> None:
        self.site = site
        self.folder = folder
        self.process: subprocess.Popen | None = None
        self.input: IO[str] | None = None
        self.output = folder.with_suffix(".txt")
        self.answer = folder.with_suffix(".answer")
        site.open_page(folder)

    def run_block(self, language: str, example: Example) -> None:
        """Run a block of Python in the namespace of the page, or check one of YAML; show the output if it fails."""
        if self.process is None or self.input is None:
            with self.output.open("w", encoding="utf-8") as file:
                self.process = subprocess.Popen(
                    [sys.executable, "-S", "-E", TESTING / "client.py", self.site.server.socket, "blocks"],
                    cwd=self.folder,
                    env=self.site.environment,
                    stdin=subprocess.PIPE,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            self.input = cast("IO[str]", self.process.stdin)
        start = self.output.stat().st_size
        self.answer.unlink(missing_ok=True)
        block = {
            "language": language,
            "source": example.parsed,
            "path": example.path,
            "line": example.line + example.parsed.line_offset,
            "answer": str(self.answer),
        }
        self.input.write(json.dumps(block) + "\n")
        self.input.flush()
        end = time.monotonic() + SECONDS
        while not self.answer.exists() and self.process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        with self.output.open(encoding="utf-8", errors="replace") as file:
            file.seek(start)
            output = file.read()
        if not self.answer.exists() or self.answer.read_text(encoding="utf-8") != "passed":
            pytest.fail(f"Failed:\n\n{example.parsed}\n{output}", pytrace=False)
        print(output)  # noqa: T201

    def close(self) -> None:
        """End the process and delete the folder."""
        if self.process is not None and self.input is not None:
            self.input.close()
            self.process.wait()
        shutil.rmtree(self.folder)


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    """What all pages share, made again only if the code has changed."""
    sources = [Path(__file__), TESTING / "tiny.py", ROOT / "configs" / "own_parts.yaml"]
    sources += sorted((ROOT / "anomalib_ddpm_st").rglob("*.py"))
    key = sha256(b"".join(path.read_bytes() for path in sources) + str(ROOT).encode()).hexdigest()[:16]
    # Not in pytest's own cache, whose name begins with a dot: anomalib warns of images in hidden folders.
    root = ROOT / "docs" / "_build" / "pages"
    root.mkdir(parents=True, exist_ok=True)
    is_ready = (root / key / "done").exists()
    if not is_ready:
        for old in root.iterdir():
            shutil.rmtree(old)
    site = Site(root / key)
    try:
        if not is_ready:
            site.start.mkdir()
            site.prepare()
            (site.folder / "done").touch()
        yield site
    finally:
        site.server.stop()


@pytest.fixture(scope="module")
def page(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """Folder in which the blocks of a page run."""
    page = Page(site, tmp_path_factory.mktemp("page"))
    yield page
    page.close()


def run_bash(example: Example) -> None:
    """Run a block of commands in the folder of its page."""
    if example.parsed.startswith("cmake ") and not (shutil.which("cmake") and shutil.which("c++")):
        pytest.skip("needs CMake and a C++ compiler")
    page = example.namespace["page"]
    page.site.run(example.parsed, page.folder)


def run_python(example: Example) -> None:
    """Run a block of Python in the folder and the namespace of its page."""
    example.namespace["page"].run_block("python", example)


def check_yaml(example: Example) -> None:
    """Check that a config can be parsed, and its arguments."""
    example.namespace["page"].run_block("yaml", example)


def collector(root: Path) -> Callable:
    """Collect the blocks of the pages of a repository.

    Args:
        root (Path): Folder of the README.

    Returns:
        Callable: Hook of pytest.
    """
    parsers = [
        CodeBlockParser("bash", run_bash),
        CodeBlockParser("python", run_python),
        CodeBlockParser("yaml", check_yaml),
        SkipParser(),
    ]
    return Sybil(
        parsers,
        path=str(root),
        patterns=["README.md", "docs/*.md", "docs/*/*.md"],
        excludes=["benchmarks/README.md", "docs/_build/*"],
        fixtures=["page"],
    ).pytest()


pytest_collect_file = collector(ROOT)
