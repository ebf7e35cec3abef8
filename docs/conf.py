"""Sphinx: `bash scripts/docs.sh` builds the site, where a warning is an error."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]  # this checkout, and directives.py

import itrd_nlp  # noqa: E402

project = "itrd_nlp"
release = itrd_nlp.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "directives"]
nitpicky = True  # a reference to something of this package that does not exist is an error
nitpick_ignore_regex = [(r"py:.*", r"(?!itrd_nlp\b).*")]  # other libraries' names, and words of docstrings
default_role = "literal"
smartquotes = False  # arguments and recipes as they are typed
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings give shapes and units
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"  # brings its own styles and scripts: pages work without a network
html_title = f"itrd_nlp {release}"
html_show_copyright = False
html_copy_source = False
