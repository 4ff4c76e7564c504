"""How Sphinx builds the documents: ``make docs``."""

from typing import Any

import gaea_jax

project = "gaea_jax"
author = "The gaea_jax authors"
release = gaea_jax.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = f"gaea_jax {release}"
default_role = "py:obj"
autodoc_typehints = "signature"
autodoc_member_order = "alphabetical"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # Else the attributes of records are described twice.
napoleon_use_rtype = False


def setup(app: Any) -> None:
    """Leaves out the fields of named tuples, which their class describes."""
    app.connect("autodoc-skip-member", lambda app, what, name, member, skip, options: _is_field(member) or None)


def _is_field(member: object) -> bool:
    return type(member).__name__ == "_tuplegetter"
