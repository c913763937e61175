# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Sphinx configuration: sphinx-build -n -W --keep-going docs docs/_build/html. It needs no network."""

import sys
from pathlib import Path

# The pages describe this tree, also if another copy is installed.
sys.path.insert(0, str(Path(__file__).parents[1]))

import anomalib_ddpm_st

project = "anomalib_ddpm_st"
author = "The anomalib_ddpm_st authors"
copyright = f"2026, {author}"  # noqa: A001
version = release = anomalib_ddpm_st.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# The docstrings hold the types.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False

# Inventories of other projects would need a network. So only names of this package are checked.
nitpick_ignore_regex = [(r"py:.*", r"(?!anomalib_ddpm_st\b).*")]

html_theme = "furo"
html_title = f"{project} {release}"
html_theme_options = {
    "source_repository": "https://github.com/anomalib-ddpm-st/anomalib_ddpm_st/",
    "source_branch": "main",
    "source_directory": "docs/",
}
# Prompts and printed lines are no part of what one copies.
copybutton_exclude = ".linenos, .gp, .go"
