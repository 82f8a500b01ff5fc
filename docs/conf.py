"""Build the documentation with Sphinx: ``make docs``."""

import xgray

project = "xgray"
author = "the xgray authors"
copyright = author
version = release = xgray.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]

# The notebook is executed by a test, which takes a minute; the site shows its stored outputs.
nb_execution_mode = "off"
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = "xgray"
