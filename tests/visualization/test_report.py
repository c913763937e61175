# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""The HTML report."""

import base64
import io
import re
from typing import Any

import pytest
import torch
from PIL import Image

from anomalib_ddpm_st.visualization import Section, contact_sheet, histograms, render_report

HEALTH: dict[str, Any] = {
    "images": 12,
    "from_noise": 2.46813,
    "yardstick": None,
    "verdict": "usable",
    "advice": "Samples look like the images <blurred>.",
}


@pytest.fixture
def sections() -> list[Section]:
    """Two sections, their titles and texts full of markup."""
    sheet = contact_sheet({"normal": [torch.rand(3, 8, 8)] * 2})
    return [
        Section("Pairs & <co>", "Text with <script>alert(1)</script>.", sheet),
        Section('Areas "quoted"', "Second.", histograms({"area": [0.1, 0.2]})),
    ]


def table_rows(page: str) -> dict[str, str]:
    """Rows of all tables of a page."""
    return dict(re.findall(r"<tr><th>(.*?)</th><td>(.*?)</td></tr>", page))


def test_sections_in_order_with_embedded_figures(sections: list[Section]) -> None:
    page = render_report("Synthetic defects", sections, {})
    assert page.startswith("<!doctype html>")
    assert "<title>Synthetic defects</title>" in page
    assert "<h1>Synthetic defects</h1>" in page
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Pairs &amp; &lt;co&gt;", "Areas &#34;quoted&#34;", "Settings"]
    encoded = re.findall(r'<img src="data:image/png;base64,([^"]*)" alt="([^"]*)">', page)
    assert [text for _, text in encoded] == ["Pairs &amp; &lt;co&gt;", "Areas &#34;quoted&#34;"]
    for (data, _), section in zip(encoded, sections, strict=True):
        width, height = section.figure.get_size_inches()
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            assert image.format == "PNG"
            assert image.size == (int(110 * width), int(110 * height))


def test_self_contained(sections: list[Section]) -> None:
    """Nothing is fetched, from the network or from files."""
    page = render_report("Report", sections, {"a": 1}, HEALTH)
    assert not re.search(r"https?:|@import|url\(|<link|<script", page)
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', page))


def test_text_is_escaped(sections: list[Section]) -> None:
    """Whatever users and files name is text."""
    page = render_report("A <title> & more", sections, {"<name>": "<here>", "a&b": ["<x>"]}, HEALTH)
    body = re.sub(r"(?s)<style>.*?</style>", "", page)
    for text in ("<script>", "<co>", "<here>", "<name>", "<x>", "<blurred>"):
        assert text not in body
        assert text.replace("<", "&lt;").replace(">", "&gt;") in body
    assert "<h1>A &lt;title&gt; &amp; more</h1>" in body
    assert table_rows(page)["a&amp;b"] == "[&#39;&lt;x&gt;&#39;]"


@pytest.mark.parametrize("verdict", ["good", "usable", "poor", "unknown"])
def test_verdict(verdict: str) -> None:
    page = render_report("Report", [], {}, {**HEALTH, "verdict": verdict})
    expected = f'<p class="verdict {verdict}">DDPM: {verdict}. Samples look like the images &lt;blurred&gt;.</p>'
    assert expected in page
    assert table_rows(page) == {"images": "12", "from noise": "2.47", "yardstick": "None"}
    style = re.findall(r"(?s)<style>(.*?)</style>", page)[0]
    assert (f".{verdict} " in style) == (verdict != "unknown")


def test_without_health() -> None:
    page = render_report("Report", [], {"delta": (0.3, 2.0), "seed": 0, "learning_rate": 0.00123456})
    assert "verdict" not in re.sub(r"(?s)<style>.*?</style>", "", page)
    assert table_rows(page) == {"delta": "(0.3, 2.0)", "seed": "0", "learning_rate": "0.00123"}
