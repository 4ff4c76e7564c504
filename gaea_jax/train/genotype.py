"""Finds the genotype that a user names: as a text, or by a file that has it."""

import json
import pathlib
from typing import Any

from gaea_jax.errors import UsageError
from gaea_jax.methods.base import Space
from gaea_jax.spaces import get_space
from gaea_jax.spaces.darts import read

# A name and a path, unlike the grammars and JSON, have none of these; looking a long text up as a file would fail.
_MARKS = ("|", "{", "Genotype(")


def read_genotype(text: str, space: str | None = None) -> tuple[Space, Any]:
    """Reads a genotype, and finds its space where that is not given.

    Args:
      text: the cell in the grammar of its space, as JSON or by the name under which it was published; or a file with
        one of these, or with a JSON object that has it as ``genotype``, such as the ``result.json`` of a search.
      space: name of the space; by default that which the JSON names, else "nas_bench_201" for a cell in its grammar and
        for any other "darts", or "nasp" if it has operations of that.

    Returns:
      The space and the genotype.

    Raises:
      UsageError: on ``space``, if it is unknown; on ``genotype``, if there is none, or it is not of the space.
    """
    if any(mark in text for mark in _MARKS):
        found = get_space(space or _space_of(text))
        return found, found.parse(text)
    try:
        content = pathlib.Path(text).read_text()
    except (OSError, UnicodeDecodeError):
        found = get_space(space or _space_of(text))
        try:
            return found, found.parse(text)
        except UsageError as error:
            said = f"{text!r} is neither a genotype nor a file with one: {error.sentence}"
            raise UsageError("genotype", said) from error
    result = _json(content)
    cell = result.get("genotype")
    if not isinstance(cell, str):
        cell = content
    found = get_space(space or _named(result) or _space_of(cell))
    return found, found.parse(cell)


def _space_of(cell: str) -> str:
    if named := _named(_json(cell)):
        return named
    if "|" in cell:
        return "nas_bench_201"
    try:
        return read(cell).space
    except UsageError:  # which the space then says itself
        return "darts"


def _named(record: dict[str, Any]) -> str | None:
    """The space that a JSON object names."""
    name = record.get("space")
    return name if isinstance(name, str) else None


def _json(text: str) -> dict[str, Any]:
    """A JSON object; an empty one, if the text is anything else."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}
