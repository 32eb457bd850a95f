"""How Sphinx builds these pages. `make docs` runs it with every warning an error."""

from __future__ import annotations

import ast
import builtins
import sys
from pathlib import Path
from typing import Any

import mpkit

project = "mpkit"
author = "the mpkit authors"
copyright = "2026, the mpkit authors"
version = release = mpkit.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
html_theme = "furo"
html_title = f"mpkit {release}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist"]
myst_heading_anchors = 3

# In a docstring, `Signal` is a link. With nitpicky, one that leads nowhere fails the
# build: that is how the docs notice that a name has changed.
default_role = "py:obj"
nitpicky = True

# The standard library's names are not checked: that would take its inventory from
# the network, and these pages build without one.
STDLIB = "|".join(sorted(sys.stdlib_module_names))
nitpick_ignore_regex = [
    (r"py:.*", rf"({STDLIB}|typing_extensions|distributed)(\..+)?"),
    (r"py:.*", "|".join(name for name in dir(builtins) if name.isalnum())),
    (r"py:.*", r"[PRST]\.(args|kwargs)|CancelledError"),
    (r"py:class", "Control|Feeds|Submit"),  # private, and in annotations of who uses them only
]

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_typehints_format = "short"


def resolve_private_path(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """Link ``mpkit._channel.Channel`` to where it is documented: ``mpkit.Channel``.

    An annotation names the module that defines a class. A private name, or a type
    variable, has no page of its own and stays plain text. And what `mpkit.dask` has
    from mpkit, or leaves as it is, is documented there.
    """
    if node.get("refdomain") != "py":
        return None
    target = node.get("reftarget", "")
    module, _, name = target.rpartition(".")
    places = [f"mpkit.{name}", f"mpkit.{node.get('py:class', '')}.{name}"]
    if module.startswith("mpkit.dask._"):
        places.insert(0, f"mpkit.dask.{name}")
    if module.startswith(("mpkit._", "mpkit.dask")) or not module:
        for place in places:
            found = env.get_domain("py").resolve_xref(
                env, node["refdoc"], app.builder, node["reftype"], place, node, contnode
            )
            if found is not None:
                return found
    private = module.startswith(("mpkit._", "mpkit.dask._"))
    return contnode if private or name in TYPE_VARIABLES or target in FOR_CHECKERS else None


def imported_for_checkers() -> set[str]:
    """Return the names that modules of mpkit import, or define, for type checkers only."""
    names: set[str] = set()
    for path in Path(mpkit.__file__).parent.rglob("*.py"):
        for block in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING":
                for node in block.body:
                    if isinstance(node, ast.ImportFrom):
                        names |= {alias.asname or alias.name for alias in node.names}
                    elif isinstance(node, ast.Assign):
                        names |= {ast.unparse(target) for target in node.targets}
    return names


FOR_CHECKERS = imported_for_checkers()


def type_variables() -> set[str]:
    """Return the names of all type variables of mpkit, imported or not in this build."""
    return {
        ast.unparse(target)
        for path in Path(mpkit.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
        if ast.unparse(node.value.func) in {"TypeVar", "ParamSpec", "TypeVarTuple"}
        for target in node.targets
    }


TYPE_VARIABLES = type_variables()


def name_the_language(
    app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Say in which language a page is, lest a browser takes Japanese glyphs for Chinese."""
    if pagename.startswith("zh/"):
        context["language"] = "zh-CN"


def setup(app: Any) -> None:
    app.connect("missing-reference", resolve_private_path)
    app.connect("html-page-context", name_the_language)
