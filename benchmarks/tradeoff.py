# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Plot of accuracy against latency, from the results of the other benchmarks.

Example:
    python benchmarks/tradeoff.py

Reads the tables of ``latency.py``, ``accuracy.py`` and ``precision.py`` and draws latency and mean accuracy of each
model, over the categories that all models have. Models and precisions without a row of accuracy are left out.
"""

from pathlib import Path

import pandas as pd
from common import read_table, save_lines
from jsonargparse import ArgumentParser

PANELS = {"image_AUROC": "image AUROC in %", "pixel_AUPR": "pixel AUPR in %", "pixel_AUPRO": "AUPRO in %"}


def points(latency: pd.DataFrame, accuracy: pd.DataFrame, precision: pd.DataFrame) -> pd.DataFrame:
    """Join the tables.

    Args:
        latency (pd.DataFrame): Rows of ``latency.py``.
        accuracy (pd.DataFrame): Rows of ``accuracy.py``, all in FP32.
        precision (pd.DataFrame): Rows of ``precision.py``, all of DdpmSt.

    Returns:
        pd.DataFrame: Milliseconds and mean metrics in percent of each model and precision; empty if there are none.
    """
    if latency.empty or accuracy.empty:
        return pd.DataFrame()
    others = precision if precision.empty else precision[precision["precision"] != "FP32"].assign(model="DdpmSt")
    measured = pd.concat([accuracy.assign(precision="FP32"), others])
    rows = latency.merge(measured, on=["model", "precision"])
    rows["name"] = rows["model"] + " " + rows["precision"]
    counts = rows.groupby("category")["name"].nunique()
    rows = rows[rows["category"].isin(counts[counts == rows["name"].nunique()].index)]
    return rows.groupby("name", sort=False)[["latency_ms", *PANELS]].mean()


def main() -> None:
    """Draw the plot."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="Folder of the tables.")
    results = parser.parse_args().results
    found = points(*(read_table(results / f"{name}.csv") for name in ("latency", "accuracy", "precision")))
    if found.empty:
        msg = f"{results} holds no model with both latency and accuracy: run latency.py and accuracy.py first."
        raise FileNotFoundError(msg)
    panels = {
        label: {name: ([row["latency_ms"]], [row[metric]]) for name, row in found.iterrows()}
        for metric, label in PANELS.items()
    }
    save_lines(panels, "latency in ms", results / "tradeoff.png")


if __name__ == "__main__":
    main()
