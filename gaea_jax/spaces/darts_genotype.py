"""Cells of the DARTS space: the record of a pair of them, and the texts that describe one.

A genotype says which operations a node applies to which of its inputs. Nodes are numbered as inputs are: 0 and 1
are the outputs of the two cells before, 2 to 5 the intermediate nodes.
"""

import ast
import dataclasses
import json
import reprlib
import warnings
from typing import Any

from gaea_jax.errors import UsageError

OPERATIONS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
"""The operations of DARTS, in the order of the columns of its weight tables; a derived cell never has ``none``."""

KNOWN = (
    *OPERATIONS,
    "conv_3x1_1x3",
    "conv 1x1",
    "conv 3x3",
    "sep_3x3",
    "sep_5x5",
    "sep_7x7",
    "max_pool_5x5",
    "max_pool_7x7",
)
"""The operations of all spaces with these cells, under the names of the codes that have them; ``sep_3x3`` and
``sep_5x5`` are NASP's names of ``sep_conv_3x3`` and ``sep_conv_5x5``."""

NODES = (2, 3, 4, 5)
"""The intermediate nodes; the output of a cell is the concatenation of all four."""

EDGES = tuple((node, source) for node in NODES for source in range(node))
"""The 14 edges as (node, source), in the order of the rows of every weight table."""

CELLS = ("normal", "reduce")
"""The two cells: one keeps the size of its maps, one halves it."""

GRAMMAR = "Genotype(normal=[('op', input), 8 pairs], normal_concat=range(2, 6), reduce=[8 pairs], reduce_concat=...)"
JSON = '{"space": "darts", "normal": [4 nodes, each a list of ["op", input] pairs], "reduce": [4 nodes]}'
FAMILY = ("darts", "darts_nozero", "nasp")

_SELECTABLE = KNOWN[1:]
_KEYWORDS = ("normal", "normal_concat", "reduce", "reduce_concat")
# Python's parser can exhaust the stack on long texts; a published one has some 700 characters.
_LONGEST = 10_000

Cell = tuple[tuple[tuple[str, int], ...], ...]


@dataclasses.dataclass(frozen=True)
class Genotype:
    """A normal and a reduction cell. ``str`` gives the published text if every node has two pairs, JSON otherwise.

    The order of a node's pairs means nothing: they are kept sorted by input, then operation, so that two spellings of
    a cell are equal.

    Attributes:
      normal: for each of the four `NODES` its (operation, input) pairs, any number of them; the operations are those
        of `KNOWN` but ``none``, the inputs are below the node.
      reduce: the same for the reduction cell.

    Raises:
      UsageError: on ``genotype``, if a cell is not so, or a node has a pair twice.

    Example:
      >>> node = (("skip_connect", 1), ("sep_conv_3x3", 0))
      >>> genotype = Genotype(normal=(node,) * 4, reduce=(node,) * 4)
      >>> genotype.normal[0]
      (('sep_conv_3x3', 0), ('skip_connect', 1))
      >>> print(str(genotype)[:62])
      Genotype(normal=[('sep_conv_3x3', 0), ('skip_connect', 1), ('s
      >>> print(str(Genotype(normal=((),) * 4, reduce=(node[:1], (), (), ()))))
      {"space": "darts", "normal": [[], [], [], []], "reduce": [[["skip_connect", 1]], [], [], []]}
    """

    normal: Cell
    reduce: Cell

    def __post_init__(self) -> None:
        for name in CELLS:
            object.__setattr__(self, name, _sorted_cell(name, getattr(self, name)))

    @property
    def space(self) -> str:
        """The name of a space that has its operations: ``"darts"`` if that does, or ``"nasp"``."""
        pairs = (pair for cell in (self.normal, self.reduce) for node in cell for pair in node)
        return FAMILY[0] if all(operation in OPERATIONS for operation, _ in pairs) else FAMILY[-1]

    def __str__(self) -> str:
        if any(len(pairs) != 2 for cell in (self.normal, self.reduce) for pairs in cell):
            return json.dumps({"space": self.space, "normal": self.normal, "reduce": self.reduce})
        normal, reduce = ([pair for pairs in cell for pair in pairs] for cell in (self.normal, self.reduce))
        concat = range(NODES[0], NODES[-1] + 1)
        return f"Genotype(normal={normal}, normal_concat={concat}, reduce={reduce}, reduce_concat={concat})"


def _sorted_cell(name: str, cell: Any) -> Cell:
    """The cell with the pairs of each node in order, if it is one."""
    if not isinstance(cell, tuple) or len(cell) != len(NODES):
        raise UsageError("genotype", f"{name} wants 4 nodes in a tuple (a list in JSON), got {reprlib.repr(cell)}")
    for node, pairs in zip(NODES, cell, strict=True):
        place = f"{name}, node {node}"
        if not isinstance(pairs, tuple):
            accepted = "(operation, input) pairs in a tuple (a list in JSON)"
            raise UsageError("genotype", f"{place} wants {accepted}, got {reprlib.repr(pairs)}")
        for pair in pairs:
            if not isinstance(pair, tuple) or [type(part) for part in pair] != [str, int]:
                raise UsageError("genotype", f"{place}: {reprlib.repr(pair)} is not a pair (operation, input)")
            operation, source = pair
            if operation not in _SELECTABLE:
                accepted = ", ".join(_SELECTABLE)
                raise UsageError("genotype", f"{place}: operation {reprlib.repr(operation)} is not one of {accepted}")
            if not 0 <= source < node:
                raise UsageError("genotype", f"{place}: input {reprlib.repr(source)} is not one of 0 to {node - 1}")
        if twice := [pair for pair in pairs if pairs.count(pair) > 1]:
            raise UsageError("genotype", f"{place} has {twice[0]} twice; wants each pair once")
    return tuple(tuple(sorted(pairs, key=lambda pair: (pair[1], KNOWN.index(pair[0])))) for pairs in cell)


def parse_grammar(text: str) -> Genotype:
    """Reads the published text, whose pairs are listed two a node; nothing in it is run.

    Args:
      text: ``Genotype(normal=[...], normal_concat=range(2, 6), reduce=[...], reduce_concat=range(2, 6))``. Lists may be
        tuples and the concatenations ``[2, 3, 4, 5]``; a cell that concatenates other nodes is none of this space.

    Returns:
      The genotype.

    Raises:
      UsageError: on ``genotype``, with the place of the first error and what is accepted there.
    """
    if len(text) > _LONGEST:
        raise UsageError("genotype", f"has {len(text):,} characters, more than {_LONGEST:,}; wants {GRAMMAR}")
    try:
        with warnings.catch_warnings(action="ignore"):
            call = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = getattr(error, "msg", "not an expression")
        raise UsageError("genotype", f"{reprlib.repr(text)} cannot be read ({reason}); wants {GRAMMAR}") from error
    match call:
        case ast.Call(func=ast.Name(id="Genotype"), args=[], keywords=keywords):
            names = [keyword.arg or "**" for keyword in keywords]
        case _:
            raise UsageError("genotype", f"{reprlib.repr(text)} is not of the form {GRAMMAR}")
    if sorted(names) != sorted(_KEYWORDS):
        found = reprlib.repr(", ".join(names))
        raise UsageError("genotype", f"has the keywords {found}; wants {', '.join(_KEYWORDS)}, each once")
    values = {keyword.arg: keyword.value for keyword in keywords}
    for cell in CELLS:
        _check_concat(text, f"{cell}_concat", values[f"{cell}_concat"])
    return Genotype(*(_pairs(text, cell, values[cell]) for cell in CELLS))


def _check_concat(text: str, name: str, value: ast.expr) -> None:
    match value:
        case ast.Call(func=ast.Name(id="range"), args=elements, keywords=[]):
            wanted = [NODES[0], NODES[-1] + 1]
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            wanted = [*NODES]
        case _:
            elements, wanted = [], [*NODES]
    constants = [element.value for element in elements if isinstance(element, ast.Constant)]
    if len(elements) != len(wanted) or constants != wanted or any(type(number) is not int for number in constants):
        found = reprlib.repr(ast.get_source_segment(text, value))
        accepted = "range(2, 6) or [2, 3, 4, 5]; other cells are not of this space"
        raise UsageError("genotype", f"{name} is {found}; wants {accepted}")


def _pairs(text: str, name: str, value: ast.expr) -> Cell:
    """The cell that eight pairs in the order of the nodes describe, not yet checked."""
    elements = value.elts if isinstance(value, ast.List | ast.Tuple) else []
    if len(elements) != 2 * len(NODES):
        found = f"{len(elements)} entries" if elements else reprlib.repr(ast.get_source_segment(text, value))
        raise UsageError("genotype", f"{name} has {found}; wants eight pairs ('op', input) in a list, two a node")
    pairs: list[Any] = []
    for index, element in enumerate(elements):
        match element:
            case ast.Tuple(elts=[ast.Constant(value=operation), ast.Constant(value=source)]):
                pairs.append((operation, source))
            case ast.List(elts=[ast.Constant(value=operation), ast.Constant(value=source)]):
                pairs.append((operation, source))
            case _:
                place = f"{name}, node {NODES[index // 2]}"
                found = reprlib.repr(ast.get_source_segment(text, element))
                raise UsageError("genotype", f"{place}: {found} is not a pair ('op', input)")
    return tuple(zip(pairs[::2], pairs[1::2], strict=True))


def parse_json(text: str) -> Genotype:
    """Reads JSON, which can say all that a `Genotype` can.

    Args:
      text: ``{"space": "darts", "normal": [...], "reduce": [...]}``, where a cell lists for each of the four nodes its
        ``["op", input]`` pairs, any number of them. The name of any of these spaces is accepted.

    Returns:
      The genotype.

    Raises:
      UsageError: on ``genotype``, with the place of the first error and what is accepted there.
    """
    try:
        record: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError("genotype", f"is not JSON ({error}); wants {JSON}") from error
    if set(record) != {"space", *CELLS}:
        raise UsageError("genotype", f"has the JSON keys {reprlib.repr(sorted(record))}; wants {JSON}")
    if record["space"] not in FAMILY:
        found = reprlib.repr(record["space"])
        raise UsageError("genotype", f"is a cell of {found}; wants space {' or '.join(FAMILY)}")
    return Genotype(*(_as_tuples(record[cell], 3) for cell in CELLS))


def _as_tuples(value: Any, depth: int) -> Any:
    """The lists of a value, down to a depth, as tuples."""
    return tuple(_as_tuples(entry, depth - 1) for entry in value) if depth and isinstance(value, list) else value
