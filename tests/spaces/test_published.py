import ast
import itertools
import pathlib

import pytest

from gaea_jax.errors import UsageError
from gaea_jax.spaces import get_space, published
from gaea_jax.spaces.darts import Genotype

OPERATIONS = {
    "max": "max_pool_3x3",
    "avg": "avg_pool_3x3",
    "skip": "skip_connect",
    "sep3": "sep_conv_3x3",
    "sep5": "sep_conv_5x5",
    "dil3": "dil_conv_3x3",
    "dil5": "dil_conv_5x5",
    "flat": "conv_3x1_1x3",
    "conv3": "conv 3x3",
    "max5": "max_pool_5x5",
}

# The pairs of the published texts, in their order: the normal cell, then the reduction cell.
PAIRS = {
    "DARTS_V1": (
        "sep3 1 sep3 0 skip 0 sep3 1 skip 0 sep3 1 sep3 0 skip 2",
        "max 0 max 1 skip 2 max 0 max 0 skip 2 skip 2 avg 0",
    ),
    "DARTS_V2": (
        "sep3 0 sep3 1 sep3 0 sep3 1 sep3 1 skip 0 skip 0 dil3 2",
        "max 0 max 1 skip 2 max 1 max 0 skip 2 skip 2 max 1",
    ),
    "PC_DARTS_CIFAR": (
        "sep3 1 skip 0 sep3 0 dil3 1 sep5 0 sep3 1 avg 0 dil3 1",
        "sep5 1 max 0 sep5 1 sep5 2 sep3 0 sep3 3 sep3 1 sep3 2",
    ),
    "PC_DARTS_IMAGE": (
        "skip 1 sep3 0 sep3 0 skip 1 sep3 1 sep3 3 sep3 1 dil5 4",
        "sep3 0 skip 1 dil5 2 max 1 sep3 2 sep3 1 sep5 0 sep3 3",
    ),
    "GAEA_PC_DARTS_CIFAR10": (
        "sep3 1 skip 0 sep3 1 skip 2 sep3 1 sep3 2 sep3 0 dil3 4",
        "max 0 max 1 sep5 0 sep5 2 dil3 3 sep5 2 sep5 4 sep3 1",
    ),
    "GAEA_PC_DARTS_CIFAR10_1307": (
        "sep3 1 skip 0 sep3 0 sep3 2 sep3 2 sep5 1 sep3 1 sep5 0",
        "max 0 sep5 1 dil5 2 max 0 sep3 2 skip 0 dil3 4 max 0",
    ),
    "GAEA_PC_DARTS_IMAGENET": (
        "skip 1 skip 0 sep3 2 sep3 1 sep5 2 sep3 0 sep5 3 sep5 2",
        "max 1 sep3 0 sep5 1 dil5 2 sep3 1 sep3 3 sep5 1 max 2",
    ),
    "NASP": (
        "flat 0 conv3 1 dil3 2 conv3 1 dil3 2 conv3 0 skip 0 dil3 3",
        "max 0 max 1 skip 2 max5 1 skip 2 skip 3 skip 0 skip 1",
    ),
    "ISTA_TWOSTAGE": (
        "skip 0 dil3 1 sep5 0 dil3 2 dil3 1 sep3 0 sep3 2 skip 0",
        "avg 0 sep5 1 dil5 2 max 1 dil5 3 sep3 1 dil5 4 sep5 1",
    ),
}


def published_text(name: str) -> str:
    cells = []
    for cell in PAIRS[name]:
        words = cell.split()
        cells.append([(OPERATIONS[word], int(number)) for word, number in zip(words[::2], words[1::2], strict=True)])
    normal, reduce = cells
    concat = "[2, 3, 4, 5]" if name.startswith("DARTS") else "range(2, 6)"
    return f"Genotype(normal={normal}, normal_concat={concat}, reduce={reduce}, reduce_concat={concat})"


def test_the_table_has_every_constant() -> None:
    constants = {name: value for name, value in vars(published).items() if isinstance(value, Genotype)}
    assert constants == published.PUBLISHED
    assert list(PAIRS) == list(published.PUBLISHED)
    assert len(set(published.PUBLISHED.values())) == len(PAIRS)


@pytest.mark.parametrize("name", PAIRS)
def test_the_published_texts_are_these_genotypes(name: str) -> None:
    genotype = published.PUBLISHED[name]
    assert get_space(genotype.space).parse(published_text(name)) == genotype


@pytest.mark.parametrize("space", ["darts", "darts_nozero"])
def test_a_name_is_a_genotype(space: str) -> None:
    assert get_space("nasp").parse("nasp") == published.NASP
    with pytest.raises(UsageError, match="operation 'conv_3x1_1x3' is not in darts"):
        get_space(space).parse("NASP")
    parse = get_space(space).parse
    for name, genotype in published.PUBLISHED.items():
        if genotype.space == "nasp":
            continue
        assert parse(name) == parse(f" {name.lower()}\n") == parse(name.replace("_", "")) == genotype
    assert parse("GAEA_PCDARTS_CIFAR10") == published.GAEA_PC_DARTS_CIFAR10
    assert parse("PC_DARTS_cifar") == published.PC_DARTS_CIFAR


@pytest.mark.parametrize("name", ["DARTS", "DARTS_V3", "GAEA_PC_DARTS", "cell"])
def test_another_name_is_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        get_space("darts").parse(name)
    assert caught.value.argument == "genotype"
    known = ", ".join(PAIRS)
    assert caught.value.sentence.startswith(f"'{name}' is no published genotype; known are {known}; or give Genotype(")


def test_every_constant_says_its_source_and_its_error() -> None:
    documented = {}
    for statement, following in itertools.pairwise(ast.parse(pathlib.Path(published.__file__).read_text()).body):
        match statement, following:
            case ast.Assign(targets=[ast.Name(id=name)]), ast.Expr(value=ast.Constant(value=str(docstring))):
                documented[name] = docstring
    assert list(documented) == list(PAIRS)
    for docstring in documented.values():
        assert "Source: ``" in docstring and "Reported error: " in docstring
