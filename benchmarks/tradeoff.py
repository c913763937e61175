# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Picture of accuracy against latency, of what the other benchmarks measured.

Example:
    python benchmarks/tradeoff.py

Reads the tables of ``latency.py``, ``accuracy.py`` and ``precision.py`` and draws each model where its latency and its
mean accuracy meet, over the categories that all of the models have. Models without a row of accuracy are left out. INT8
is drawn where its accuracy was measured.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from common import read_rows, save_lines
from jsonargparse import ArgumentParser

PANELS = {"image_AUROC": "image AUROC in %", "pixel_AUPR": "pixel AUPR in %", "pixel_AUPRO": "AUPRO in %"}
Row = dict[str, str]
Point = tuple[float, dict[str, float]]


def points(latency: Sequence[Row], accuracy: Sequence[Row], precision: Sequence[Row]) -> dict[str, Point]:
    """Bring the tables together.

    Args:
        latency (Sequence[Row]): Rows of ``latency.py``.
        accuracy (Sequence[Row]): Rows of ``accuracy.py``, in 32 bit.
        precision (Sequence[Row]): Rows of ``precision.py``, all of DdpmSt.

    Returns:
        dict[str, Point]: Milliseconds and mean metrics in percent, by name.
    """
    rows = {
        f"{model} {bits}": [row for row in accuracy if row["model"] == model]
        if bits == "FP32"
        else [row for row in precision if (model, row["precision"]) == ("DdpmSt", bits)]
        for model, bits in ((row["model"], row["precision"]) for row in latency)
    }
    rows = {name: values for name, values in rows.items() if values}
    categories = set.intersection(*({row["category"] for row in values} for values in rows.values())) if rows else set()
    if not categories:
        return {}
    times = {f"{row['model']} {row['precision']}": float(row["latency_ms"]) for row in latency}
    return {
        name: (
            times[name],
            {panel: mean(float(row[panel]) for row in values if row["category"] in categories) for panel in PANELS},
        )
        for name, values in rows.items()
    }


def main() -> None:
    """Draw the picture."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="Folder of the tables.")
    results = parser.parse_args().results
    found = points(*(read_rows(results / f"{name}.csv") for name in ("latency", "accuracy", "precision")))
    if not found:
        msg = f"{results} holds no model with both latency and accuracy: run latency.py and accuracy.py first."
        raise FileNotFoundError(msg)
    panels = {
        label: {name: ([milliseconds], [metrics[metric]]) for name, (milliseconds, metrics) in found.items()}
        for metric, label in PANELS.items()
    }
    save_lines(panels, "latency in ms", results / "tradeoff.png")


if __name__ == "__main__":
    main()
