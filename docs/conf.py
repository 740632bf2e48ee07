"""The documentation site: `sphinx-build -W docs docs/_build/html`; it needs no network."""

import jaxiter

project = "jaxiter"
author = "the jaxiter authors"
release = version = jaxiter.__version__

extensions = [
    "myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "README.md"]
html_theme = "furo"
html_title = f"jaxiter {release}"
html_static_path = []

nb_execution_mode = "off"  # the tests execute the notebooks; their outputs are stored
autodoc_typehints = "none"  # the docstrings give shapes, which types do not
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_use_rtype = False
napoleon_use_ivar = True  # fields of result types are listed once
# Docstrings are plain text: `name` is code, and `**keywords` is not a strong emphasis.
default_role = "literal"
suppress_warnings = ["myst.header", "myst.xref_missing", "docutils"]
myst_heading_anchors = 3
