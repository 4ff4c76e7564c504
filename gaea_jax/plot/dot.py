"""A directed graph, such as a derived cell, as a file for Graphviz."""

import os
from collections.abc import Sequence

from gaea_jax.plot.canvas import replacement
from gaea_jax.plot.graph import Edge


def write_dot(nodes: Sequence[str], edges: Sequence[Edge], path: str | os.PathLike[str], title: str) -> None:
    """Writes a directed graph in `the language of Graphviz <https://graphviz.org/doc/info/lang.html>`_.

    Args:
      nodes: their names; a line break is allowed.
      edges: (index of the source, index of the target, label); without a label, an arrow without one.
      path: the file to write, in UTF-8 and in one atomic replacement; its folder is made if it is absent.
      title: what is drawn.
    """
    lines = ["rankdir=LR", "labelloc=t", f"label={_quoted(title)}", "node [shape=circle]"]
    lines += [f"n{index} [label={_quoted(name)}]" for index, name in enumerate(nodes)]
    for source, target, label in edges:
        lines.append(f"n{source} -> n{target}" + (f" [label={_quoted(label)}]" if label else ""))
    text = "\n".join(["digraph {", *(f"  {line};" for line in lines), "}"]) + "\n"
    with replacement(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _quoted(text: str) -> str:
    """A label in quotes, in which a backslash would begin an escape."""
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{text}"'
