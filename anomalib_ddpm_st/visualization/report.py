# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""HTML report in a single file that opens without a network connection."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from .plots import DPI

TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class Section:
    """Section of a report.

    Args:
        title (str): Heading, which is also the figure's alternative text.
        text (str): Paragraph above the figure.
        figure (Figure): Figure to embed.
    """

    title: str
    text: str
    figure: Figure


def render_report(
    title: str,
    sections: Sequence[Section],
    settings: Mapping[str, object],
    health: Mapping[str, object] | None = None,
) -> str:
    """Render a self-contained HTML page; figures are embedded as PNG and all text is escaped.

    Args:
        title (str): Title of the page.
        sections (Sequence[Section]): Sections in order of appearance.
        settings (Mapping[str, object]): Settings by name, shown as a table at the end.
        health (Mapping[str, object] | None): Health of the DDPM, shown at the top: ``"verdict"`` (``"good"``,
            ``"usable"``, ``"poor"`` or ``"unknown"``), ``"advice"`` and any further figures, which become a table.
            Defaults to ``None``, which leaves it out.

    Returns:
        str: HTML page.
    """
    # The name ends in .j2, so jinja2 would not choose to escape by itself.
    environment = Environment(
        loader=PackageLoader("anomalib_ddpm_st.visualization"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(png=_png, plain=_plain)
    template = environment.get_template(TEMPLATE)
    return template.render(title=title, sections=sections, settings=settings, health=health)


def _plain(value: object) -> str:
    """Value of a table cell, floats with three significant digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _png(figure: Figure) -> str:
    """Figure as a base64-encoded PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI, format="png")
    return base64.b64encode(buffer.getvalue()).decode()
