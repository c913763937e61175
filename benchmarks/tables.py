# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tables of results in README and documentation, from the files in ``benchmarks/results``.

Example:
    python benchmarks/tables.py
    python benchmarks/tables.py --check

A page holds ``<!-- table: NAME -->`` and ``<!-- /table -->``; what is between them is written by this script, so that
no figure is copied by hand. With ``--check`` nothing is written, and the exit status is 1 if a page differs from the
results. Ties after rounding are best together.
"""

import csv
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

ROOT = Path(__file__).resolve().parents[1]
CATEGORIES = ("bottle", "screw", "magnetic_tile")
METRICS = {
    "image_AUROC": "image AUROC",
    "pixel_AUROC": "pixel AUROC",
    "pixel_AUPR": "pixel AUPR",
    "pixel_AUPRO": "AUPRO",
}
# Decimals that tell the models apart.
DECIMALS = {"image_AUROC": 1, "pixel_AUROC": 2, "pixel_AUPR": 1, "pixel_AUPRO": 1}
# Tables of curve.py with the default settings, the newest first. Of each category the first one that has it counts.
DEFAULT_CURVES = ("curve_light.csv", "curve_half.csv")
# Other models in accuracy.csv.
OTHERS = ("Patchcore", "Patchcore, canonical pose", "Stfpm")
LABELS = {
    "Patchcore": "PatchCore",
    "Patchcore, canonical pose": "PatchCore, turned to one pose",
    "DdpmSt, pose": "DdpmSt, turned to one pose",
    "Stfpm": "STFPM",
    "Padim": "PaDiM",
    "EfficientAd": "EfficientAd, small",
}
NONE = "–"  # noqa: RUF001
NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?")
MARKERS = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- /table -->)", re.DOTALL)

Row = dict[str, str]
Figures = dict[str, float]


class Results:
    """Files of a folder of results.

    Args:
        folder (Path): Folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def rows(self, name: str, **values: str) -> list[Row]:
        """Rows of a table that have these values; none if there is no such file."""
        path = self.folder / name
        if not path.exists():
            return []
        with path.open(newline="", encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if values.items() <= row.items()]

    def curve(self, category: str) -> list[Row]:
        """Rows of a training with the default settings, by step."""
        found = (self.rows(name, category=category) for name in DEFAULT_CURVES)
        return sorted(next((rows for rows in found if rows), []), key=lambda row: int(row["step"]))

    def default_rows(self) -> list[tuple[Row, str]]:
        """Rows of the default settings after the last step, each with the name of its file."""
        last = [self.curve(category)[-1] for category in CATEGORIES if self.curve(category)]
        return [(row, next(name for name in DEFAULT_CURVES if row in self.rows(name))) for row in last]

    def quick(self, category: str) -> Figures:
        """Metrics and seconds of the quick schedule."""
        path = self.folder / f"quick_{category}.json"
        if not path.exists():
            return {}
        record = json.loads(path.read_text(encoding="utf-8"))
        return {**record["metrics"], "seconds": record["seconds"]["total"]}

    def accuracy(self) -> dict[str, dict[str, Figures]]:
        """Metrics in percent and seconds of training by model and category."""
        own: dict[str, Callable[[str], Figures]] = {
            "DdpmSt (default)": lambda category: _numbers(self.curve(category)[-1:]),
            "DdpmSt, quick": self.quick,
        }
        measured = {label: {category: read(category) for category in CATEGORIES} for label, read in own.items()}
        for name in OTHERS:
            rows = {category: self.rows("accuracy.csv", model=name, category=category) for category in CATEGORIES}
            measured[_label(name)] = {category: _numbers(found) for category, found in rows.items()}
        return measured

    def latency(self, model: str, precision: str, name: str = "latency.csv") -> Figures:
        """Figures of an exported model; none if it was not measured."""
        return _numbers(self.rows(name, model=model, precision=precision))


def _numbers(rows: Sequence[Row]) -> Figures:
    """Numeric values of the last row."""
    row = rows[-1] if rows else {}
    return {name: float(value) for name, value in row.items() if NUMBER.fullmatch(value)}


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines).replace("|  |", "| |").replace("|  |", "| |")


def _best(values: Sequence[float | None], decimals: int, lowest: bool = False) -> list[str]:
    """Values of a column as text, the best ones in bold.

    Args:
        values (Sequence[float | None]): Values; ``None`` was not measured.
        decimals (int): Decimals.
        lowest (bool): Whether the lowest is best. Defaults to ``False``.

    Returns:
        list[str]: Cells.
    """
    rounded = [None if value is None else round(value, decimals) for value in values]
    known = [value for value in rounded if value is not None]
    best = (min if lowest else max)(known) if len(known) > 1 else None
    cells = [NONE if value is None else f"{value:.{decimals}f}" for value in rounded]
    return [
        f"**{cell}**" if value is not None and value == best else cell
        for cell, value in zip(cells, rounded, strict=True)
    ]


def _minutes(figures: Iterable[Figures]) -> tuple[int, int] | None:
    """Shortest and longest training in minutes."""
    minutes = [round(figure["seconds"] / 60) for figure in figures if "seconds" in figure]
    return (min(minutes), max(minutes)) if minutes else None


def _spans(spans: Sequence[tuple[int, int] | None]) -> list[str]:
    """Spans of minutes as text, the one that ends first in bold."""
    best = min(span[1] for span in spans if span)
    cells = []
    for span in spans:
        cell = NONE if span is None else str(span[0]) if span[0] == span[1] else f"{span[0]} to {span[1]}"
        cells.append(f"**{cell}**" if span and span[1] == best else cell)
    return cells


def _joined(*columns: Sequence[str]) -> list[str]:
    """Cells of several columns in one."""
    return [NONE if set(cells) == {NONE} else " / ".join(cells) for cells in zip(*columns, strict=True)]


def overview(results: Results) -> str:
    """The one table of the README."""
    models = results.accuracy()
    columns = [list(models)]
    for category in CATEGORIES:
        pairs = [
            _best([models[model][category].get(metric) for model in models], 1)
            for metric in ("image_AUROC", "pixel_AUPR")
        ]
        columns.append(_joined(*pairs))
    names = ("DdpmSt", "DdpmSt", *OTHERS)
    times = [
        _best([results.latency(name, precision).get("latency_ms") for name in names], 0, lowest=True)
        for precision in ("FP32", "INT8")
    ]
    minutes = _spans([_minutes(model.values()) for model in models.values()])
    header = ["Model", *CATEGORIES, "ms per image, FP32 / INT8", "Training, minutes"]
    return _table(header, zip(*columns, _joined(*times), minutes, strict=True))


def accuracy(results: Results) -> str:
    """All metrics of each category."""
    models = results.accuracy()
    rows = []
    for category in CATEGORIES:
        measured = {label: figures[category] for label, figures in models.items() if figures[category]}
        columns = [
            _best([figures.get(metric) for figures in measured.values()], DECIMALS[metric]) for metric in METRICS
        ]
        minutes = _spans([_minutes([figures]) for figures in measured.values()])
        for number, (label, *cells) in enumerate(zip(measured, *columns, minutes, strict=True)):
            rows.append(["" if number else category, label, *cells])
    return _table(["", "Model", *METRICS.values(), "Minutes"], rows)


def schedule(results: Results) -> str:
    """Accuracy of the default settings along the schedule."""
    rows = []
    for category in CATEGORIES:
        for number, row in enumerate(results.curve(category)):
            cells = [f"{float(row[metric]):.{DECIMALS[metric]}f}" for metric in METRICS]
            rows.append(["" if number else category, row["step"], f"{float(row['seconds']) / 60:.0f}", *cells])
    return _table(["", "Steps", "Minutes", *METRICS.values()], rows)


def latency(results: Results) -> str:
    """Time, throughput, memory and size of exported models."""
    models = list(dict.fromkeys(row["model"] for row in results.rows("latency.csv")))
    columns: list[Sequence[str]] = [[_label(name) for name in models]]
    for precision in ("FP32", "INT8"):
        found = [results.latency(name, precision) for name in models]
        times = _best([figures["latency_ms"] for figures in found], 1, lowest=True)
        columns.append([f"{time} ± {row['latency_spread_ms']:.1f}" for time, row in zip(times, found, strict=True)])
    whole = [results.latency(name, "FP32") for name in models]
    columns.append(_best([row["macs"] / 1e9 for row in whole], 1, lowest=True))
    small = [results.latency(name, "INT8") for name in models]
    columns += [_best([row[name] for row in small], 1, lowest=True) for name in ("size_mb", "peak_rss_mb")]
    header = ["Model", "FP32, ms", "INT8, ms", "Multiply-adds, 10^9", "INT8 file, MB", "INT8 peak memory, MB"]
    return _table(header, zip(*columns, strict=True))


def _label(name: str) -> str:
    """Name of a model in a table."""
    return LABELS.get(name, name)


def latency_pose(results: Results) -> str:
    """Time with parts turned to one pose, on another processor."""
    rows = []
    for name in dict.fromkeys(row["model"] for row in results.rows("latency_pose.csv")):
        cells = [results.latency(name, precision, "latency_pose.csv") for precision in ("FP32", "INT8")]
        rows.append([_label(name), *(f"{cell['latency_ms']:.1f} ± {cell['latency_spread_ms']:.1f}" for cell in cells)])
    return _table(["Model", "FP32, ms", "INT8, ms"], rows)


def precision(results: Results) -> str:
    """Accuracy after export."""
    rows = []
    for kind in ("FP32", "FP16", "INT8"):
        cells = []
        for category in CATEGORIES:
            figures = _numbers(results.rows("precision.csv", category=category, precision=kind))
            cells.append(f"{figures['image_AUROC']:.1f} / {figures['pixel_AUPR']:.1f}" if figures else NONE)
        rows.append([kind, *cells])
    return _table(["", *CATEGORIES], rows)


def light(results: Results) -> str:
    """Accuracy and false alarms in another light."""
    rows = []
    for model in dict.fromkeys(row["model"] for row in results.rows("light.csv")):
        for number, kind in enumerate(("original", "changed")):
            cells = []
            for category in CATEGORIES:
                figures = _numbers(results.rows("light.csv", model=model, category=category, light=kind))
                known = f"{figures['image_AUROC']:.1f} / {figures['pixel_AUPR']:.1f}" if figures else NONE
                cells.append(f"{known}, {figures['false_alarms']:.0f} %" if figures else known)
            rows.append(["" if number else _label(model), kind, *cells])
    return _table(["", "Light", *CATEGORIES], rows)


def position(results: Results) -> str:
    """The memory bank alone, by the weight of the position; bold is the weight that the normal images choose."""
    categories = (*CATEGORIES, "assembly")
    rows = []
    for weight in dict.fromkeys(row["position_weight"] for row in results.rows("memory.csv")):
        cells = []
        for category in categories:
            row = results.rows("memory.csv", category=category, position_weight=weight)[-1]
            cell = f"{float(row['image_AUROC']):.1f} / {float(row['pixel_AUPR']):.1f}"
            cells.append(f"**{cell}**" if row["chosen"] == "True" else cell)
        rows.append([f"{float(weight):.0f}", *cells])
    return _table(["Weight", *categories], rows)


def _gain(rows: Sequence[Row], variant: str, baseline: str, metric: str) -> str:
    """Mean gain of a variant over a baseline with its standard error, paired by category and seed."""

    def values(name: str) -> Mapping[tuple[str, str], float]:
        return {(row["category"], row["seed"]): float(row[metric]) for row in rows if row["variant"] == name}

    own, base = values(variant), values(baseline)
    gains = [own[cell] - base[cell] for cell in sorted(own.keys() & base.keys())]
    # Adding zero turns a rounded -0.0 into 0.0.
    mean = round(statistics.fmean(gains), 1) + 0.0
    return f"{mean:+.1f} ± {statistics.stdev(gains) / len(gains) ** 0.5:.1f}"


def premise(results: Results) -> str:
    """Gain of defects with textures of the DDPM over tiles of the image itself."""
    alone = ", map=segmentation"
    variants = (
        ("half of each, the default", "premise", "default", "synthesis=self_texture"),
        ("DDPM alone", "premise", "synthesis=diffusion", "synthesis=self_texture"),
        (
            "DDPM alone, segmentation only",
            "segmentation",
            f"synthesis=diffusion{alone}",
            f"synthesis=self_texture{alone}",
        ),
    )
    rows = []
    for label, file, variant, baseline in variants:
        cells = []
        for kind in ("_validation", "_faint", ""):
            found = results.rows(f"ablation_{file}{kind}.csv")
            gains = [_gain(found, variant, baseline, metric) for metric in ("image_AUROC", "pixel_AUPR")]
            cells.append(" / ".join(gains))
        rows.append([label, *cells])
    return _table(["Textures", "Drawn defects", "Faint drawn defects", "Real test sets"], rows)


def input_size(results: Results) -> str:
    """Drawn defects by the number of input pixels that they cover, means over categories and input sizes."""
    rows = results.rows("input_size.csv")
    # The sizes of a category are half, once and twice its original size.
    fractions = {}
    for category in {row["category"] for row in rows}:
        sizes = {int(row["height"]) * int(row["width"]) for row in rows if row["category"] == category}
        fractions |= {(category, size): 2.0**power for power, size in enumerate(sorted(sizes), start=-1)}
    covered: dict[float, list[Row]] = {}
    for row in rows:
        fraction = fractions[row["category"], int(row["height"]) * int(row["width"])]
        covered.setdefault(int(row["defect"]) * fraction, []).append(row)
    columns = []
    for pixels in sorted(covered):
        means = [
            statistics.fmean(float(row[metric]) for row in covered[pixels]) for metric in ("image_AUROC", "pixel_AUPR")
        ]
        columns.append((f"{pixels:.0f}", " / ".join(f"{mean:.0f}" for mean in means)))
    header, cells = zip(*columns, strict=True)
    return _table(["Pixels of the input", *header], [["image AUROC / pixel AUPR", *cells]])


def sources(results: Results) -> str:
    """Files and commits of the accuracy of each model."""
    files = {"DdpmSt (default)": {row["commit"]: name for row, name in results.default_rows()}}
    for category in CATEGORIES:
        name = f"quick_{category}.json"
        if (results.folder / name).exists():
            commit = json.loads((results.folder / name).read_text(encoding="utf-8"))["commit"]
            files.setdefault("DdpmSt, quick", {})[commit] = "quick_*.json"
    for name in OTHERS:
        files[_label(name)] = {row["commit"]: "accuracy.csv" for row in results.rows("accuracy.csv", model=name)}
    rows = [
        [
            label,
            ", ".join(f"`{name}`" for name in sorted(set(found.values()))),
            ", ".join(f"`{key[:7]}`" for key in found),
        ]
        for label, found in files.items()
    ]
    return _table(["Model", "File in `benchmarks/results`", "Commits"], rows)


TABLES: dict[str, Callable[[Results], str]] = {
    function.__name__: function
    for function in (
        overview,
        accuracy,
        schedule,
        latency,
        latency_pose,
        precision,
        light,
        position,
        premise,
        input_size,
        sources,
    )
}


def pages(root: Path) -> list[Path]:
    """README and documentation."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def fill(text: str, results: Results) -> str:
    """Write the tables of a page.

    Args:
        text (str): Page.
        results (Results): Results.

    Returns:
        str: Page with current tables.

    Raises:
        ValueError: If a marker names no table, or is not closed.
    """
    if text.count("<!-- table: ") != len(MARKERS.findall(text)):
        msg = "A marker is not closed by <!-- /table -->, or does not stand alone in its line."
        raise ValueError(msg)

    def replace(match: re.Match[str]) -> str:
        if match[2] not in TABLES:
            msg = f"There is no table {match[2]!r}, only {', '.join(TABLES)}."
            raise ValueError(msg)
        return f"{match[1]}{TABLES[match[2]](results)}{match[3]}"

    return MARKERS.sub(replace, text)


def outdated(root: Path) -> dict[Path, str]:
    """Pages whose tables differ from the results.

    Args:
        root (Path): Root of the repository.

    Returns:
        dict[Path, str]: Their content as it should be.
    """
    results = Results(root / "benchmarks" / "results")
    texts = {page: page.read_text(encoding="utf-8") for page in pages(root)}
    filled = {page: fill(text, results) for page, text in texts.items()}
    return {page: text for page, text in filled.items() if text != texts[page]}


def main() -> None:
    """Write the tables, or check them."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="Write nothing; fail if a table differs.")
    parser.add_argument("--root", type=Path, default=ROOT, help="Root of the repository.")
    options = parser.parse_args()
    changed = outdated(options.root)
    if options.check and changed:
        names = ", ".join(str(page.relative_to(options.root)) for page in changed)
        sys.exit(f"These pages differ from benchmarks/results: {names}. Run: python benchmarks/tables.py")
    for page, text in changed.items():
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
