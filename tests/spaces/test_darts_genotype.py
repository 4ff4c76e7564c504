import json
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaea_jax.errors import UsageError
from gaea_jax.spaces.darts import DARTS_NOZERO, DARTS_SPACE, NODES, OPERATIONS, Genotype
from gaea_jax.spaces.published import DARTS_V2

SPACES = [DARTS_SPACE, DARTS_NOZERO]
NONE, MAX, AVG, SKIP, SEP3, SEP5, DIL3, DIL5 = OPERATIONS
CELLS = ("normal", "reduce")
CELL = (((MAX, 0), (MAX, 1)),) * 4
EMPTY = ((),) * 4

Genotypes = Callable[..., st.SearchStrategy[Genotype]]


def test_the_order_of_pairs_means_nothing() -> None:
    node, turned = ((SEP3, 1), (MAX, 0), (DIL3, 1), (SKIP, 1)), ((SKIP, 1), (DIL3, 1), (SEP3, 1), (MAX, 0))
    one, other = (Genotype((pairs, (), (), ()), CELL) for pairs in (node, turned))
    assert one == other and hash(one) == hash(other) and str(one) == str(other)
    assert one.normal[0] == ((MAX, 0), (SKIP, 1), (SEP3, 1), (DIL3, 1))
    assert Genotype(CELL, EMPTY) != Genotype(EMPTY, CELL)


@pytest.mark.parametrize(
    ("cell", "sentence"),
    [
        (None, "normal wants 4 nodes in a tuple (a list in JSON), got None"),
        (CELL[:3], "normal wants 4 nodes in a tuple"),
        ([*CELL], "normal wants 4 nodes in a tuple"),
        (
            (*CELL[:3], [(MAX, 0), (MAX, 1)]),
            "normal, node 5 wants (operation, input) pairs in a tuple (a list in JSON)",
        ),
        ((*CELL[:3], MAX), "normal, node 5 wants (operation, input) pairs"),
        ((((MAX, 0, 1),), *CELL[1:]), "normal, node 2: ('max_pool_3x3', 0, 1) is not a pair (operation, input)"),
        (((MAX,), *CELL[1:]), "normal, node 2: 'max_pool_3x3' is not a pair"),
        ((((0, MAX),), *CELL[1:]), "normal, node 2: (0, 'max_pool_3x3') is not a pair"),
        ((((MAX, True),), *CELL[1:]), "normal, node 2: ('max_pool_3x3', True) is not a pair"),
        ((((MAX, 0.0),), *CELL[1:]), "normal, node 2: ('max_pool_3x3', 0.0) is not a pair"),
        ((((NONE, 0),), *CELL[1:]), "normal, node 2: operation 'none' is not one of max_pool_3x3, avg_pool_3x3"),
        ((CELL[0], (("sep_conv_7x7", 0),), *CELL[2:]), "normal, node 3: operation 'sep_conv_7x7' is not one of max"),
        ((((MAX, 2),), *CELL[1:]), "normal, node 2: input 2 is not one of 0 to 1"),
        ((*CELL[:3], ((MAX, -1),)), "normal, node 5: input -1 is not one of 0 to 4"),
        ((*CELL[:2], ((MAX, 1), (SKIP, 0), (MAX, 1)), CELL[3]), "normal, node 4 has ('max_pool_3x3', 1) twice"),
    ],
)
def test_what_is_no_cell_is_refused(cell: object, sentence: str) -> None:
    for arguments in ((cell, CELL), (CELL, cell)):
        with pytest.raises(UsageError) as caught:
            Genotype(*arguments)  # type: ignore[arg-type]
        assert caught.value.argument == "genotype"
        expected = sentence if arguments[0] is cell else sentence.replace("normal", "reduce", 1)
        assert expected in caught.value.sentence


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_text_is_read_back(genotypes: Genotypes, data: st.DataObject) -> None:
    any_number, two = data.draw(genotypes(several=True)), data.draw(genotypes(several=True, least=2, most=2))
    for space in SPACES:
        assert space.parse(f" {any_number}\n") == any_number
        assert space.parse(str(two)) == two
        for genotype in (any_number, two):
            text = json.dumps({"space": space.name, "normal": genotype.normal, "reduce": genotype.reduce})
            assert space.parse(text) == genotype
    assert str(two).startswith("Genotype(normal=[(")
    has_two = all(len(pairs) == 2 for cell in CELLS for pairs in getattr(any_number, cell))
    assert str(any_number).startswith("Genotype(" if has_two else '{"space": "darts", ')


def test_a_text_is_the_published_one() -> None:
    assert str(DARTS_V2) == (
        "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1), "
        "('skip_connect', 0), ('sep_conv_3x3', 1), ('skip_connect', 0), ('dil_conv_3x3', 2)], "
        "normal_concat=range(2, 6), reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('max_pool_3x3', 1), "
        "('skip_connect', 2), ('max_pool_3x3', 0), ('skip_connect', 2), ('max_pool_3x3', 1), ('skip_connect', 2)], "
        "reduce_concat=range(2, 6))"
    )


@settings(deadline=None, max_examples=200)
@given(
    st.data(),
    st.integers(0, 700),
    st.integers(0, 3),
    st.text(alphabet="()[]{}'\",=*:-\\\0 01.e+jnxéℕ\n", max_size=4),
)
def test_a_damaged_text_is_a_genotype_or_refused(
    genotypes: Genotypes, data: st.DataObject, at: int, drop: int, put: str
) -> None:
    whole = str(data.draw(genotypes(several=True, most=3)))
    at %= len(whole)
    try:
        found = DARTS_SPACE.parse(whole[:at] + put + whole[at + drop :])
    except UsageError as error:
        assert error.argument == "genotype"
        assert error.sentence and "\n" not in error.sentence
    else:
        assert DARTS_SPACE.parse(str(found)) == found


@settings(deadline=None, max_examples=200)
@given(st.one_of(st.text(max_size=40), st.text(alphabet="Genotyp(normal=[])rduc{}':,_01 ", max_size=60)))
def test_any_other_text_is_refused(junk: str) -> None:
    with pytest.raises(UsageError) as caught:
        DARTS_SPACE.parse(junk)
    assert caught.value.argument == "genotype"


def text(normal: str = "", reduce: str = "", concat: str = "range(2, 6)", name: str = "Genotype") -> str:
    """A published text with a part replaced."""
    good = "[" + ", ".join(f"('{MAX}', {source})" for _ in NODES for source in (0, 1)) + "]"
    cells = f"normal={normal or good}, normal_concat={concat}, reduce={reduce or good}, reduce_concat={concat}"
    return f"{name}({cells})"


def with_pair(pair: str, index: int) -> str:
    pairs = [f"('{MAX}', {source})" for _ in NODES for source in (0, 1)]
    return "[" + ", ".join([*pairs[:index], pair, *pairs[index + 1 :]]) + "]"


def as_json(normal: object, reduce: object = CELL, space: object = "darts") -> str:
    return json.dumps({"space": space, "normal": normal, "reduce": reduce})


@pytest.mark.parametrize(
    "spelled",
    [
        text(),
        text(concat="[2, 3, 4, 5]"),
        text(concat="(2, 3, 4, 5)"),
        text(normal=with_pair(f'["{MAX}", 0]', 0)),
        text(normal="(" + with_pair(f"('{MAX}', 0)", 0)[1:-1] + ")").replace(", ", ",\n  "),
        "Genotype(reduce={0}, reduce_concat=range(2, 6), normal_concat=[2, 3, 4, 5], normal={0})".format(
            with_pair(f"('{MAX}', 0)", 0)
        ),
        as_json(CELL),
        as_json(CELL, space="darts_nozero"),
    ],
)
def test_other_spellings_of_a_text(spelled: str) -> None:
    for space in SPACES:
        assert space.parse(spelled) == Genotype(CELL, CELL)


NOT_A_PAIR = " is not a pair"


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (" \n", "is empty; wants Genotype(normal=[('op', input), "),
        ("darts_v3", "'darts_v3' is no published genotype; known are DARTS_V1, DARTS_V2, "),
        ("Genotype", "'Genotype' is no published genotype; known are "),
        ("|none~0|", "'|none~0|' cannot be read (invalid syntax); wants Genotype(normal="),
        (text()[:-1], " cannot be read ('(' was never closed); wants Genotype(normal="),
        (text() + "\0", " cannot be read ("),
        (text().replace("0", "9" * 5000, 1), " cannot be read (Exceeds the limit"),
        pytest.param("(" * 5000, " cannot be read (", id="nested too deep"),
        pytest.param("-" * 9999 + "1", " cannot be read (", id="recursion"),
        pytest.param("x" + ".a" * 4999, "Genotype(normal=", id="deep tree"),
        pytest.param(text() + " " * 20_000 + "#", " characters, more than 10,000; wants Genotype(", id="too long"),
        ("1 + 1", "'1 + 1' is not of the form Genotype(normal="),
        (text(name="Geno"), " is not of the form Genotype(normal="),
        (text(name="genotypes.Genotype"), " is not of the form Genotype(normal="),
        (text(name="Genotype(1)"), " is not of the form Genotype(normal="),
        ("Genotype([], range(2, 6), [], range(2, 6))", " is not of the form Genotype(normal="),
        ("Genotype()", "has the keywords ''; wants normal, normal_concat, reduce, reduce_concat, each once"),
        (text().replace("reduce_concat", "concat"), "has the keywords 'normal, norm"),
        (text()[:-1] + ", normal=[])", "has the keywords "),
        ("Genotype(**{})", "has the keywords '**'; wants normal, "),
        (text()[:-1] + ", **x)", "has the keywords "),
        (text(concat="range(6)"), "normal_concat is 'range(6)'; wants range(2, 6) or [2, 3, 4, 5]"),
        (text(concat="range(3, 6)"), "normal_concat is 'range(3, 6)'; wants "),
        (text(concat="range(2, 6, 1)"), "normal_concat is 'range(2, 6, 1)'; wants "),
        (text(concat="range(2.0, 6)"), "normal_concat is 'range(2.0, 6)'; wants "),
        (text(concat="range(2, stop=6)"), "normal_concat is 'range(2, stop=6)'; wants "),
        (text(concat="[2, 3, 4]"), "normal_concat is '[2, 3, 4]'; wants "),
        (text(concat="[2, 3, 5, 4]"), "normal_concat is '[2, 3, 5, 4]'; wants "),
        (text(concat="[2, 3, 4, 5, x]"), "normal_concat is '[2, 3, 4, 5, x]'; wants "),
        (text(concat="[2, 3, 4, 5.0]"), "normal_concat is '[2, 3, 4, 5.0]'; wants "),
        (text(concat="None"), "normal_concat is 'None'; wants "),
        ("[4, 5, 6]".join(text().rsplit("range(2, 6)", 1)), "reduce_concat is '[4, 5, 6]'; wants "),
        (text(normal="[]"), "normal has '[]'; wants eight pairs ('op', input) in a list, two a node"),
        (text(normal="x"), "normal has 'x'; wants eight pairs"),
        (text(reduce="{1: 2}"), "reduce has '{1: 2}'; wants eight pairs"),
        (text(reduce="[('a', 0), ('b', 1)]"), "reduce has 2 entries; wants eight pairs"),
        (text(normal=with_pair("*x", 0)), "normal, node 2: '*x'" + NOT_A_PAIR),
        (text(normal=with_pair("'op'", 3)), "normal, node 3: \"'op'\"" + NOT_A_PAIR),
        (text(reduce=with_pair("('op', 0, 1)", 7)), "reduce, node 5: \"('op', 0, 1)\"" + NOT_A_PAIR),
        (text(normal=with_pair("('op', -1)", 1)), "normal, node 2: \"('op', -1)\"" + NOT_A_PAIR),
        (text(normal=with_pair("('op', f())", 5)), "normal, node 4: \"('op', f())\"" + NOT_A_PAIR),
        (text(normal=with_pair(f"('{MAX}', True)", 0)), "normal, node 2: ('max_pool_3x3', True)" + NOT_A_PAIR),
        (text(normal=with_pair(f"(b'{MAX}', 0)", 0)), "normal, node 2: (b'max_pool_3x3', 0)" + NOT_A_PAIR),
        (text(normal=with_pair(f"(0, '{MAX}')", 0)), "normal, node 2: (0, 'max_pool_3x3')" + NOT_A_PAIR),
        (text(normal=with_pair("('none', 0)", 0)), "normal, node 2: operation 'none' is not one of max_pool_3x3, avg"),
        (text(reduce=with_pair("('conv', 0)", 0)), "reduce, node 2: operation 'conv' is not one of max_pool_3x3, avg"),
        (text(normal=with_pair(f"('{MAX}', 2)", 0)), "normal, node 2: input 2 is not one of 0 to 1"),
        (text(normal=with_pair(f"('{MAX}', 5)", 7)), "normal, node 5: input 5 is not one of 0 to 4"),
        (text(reduce=with_pair(f"('{MAX}', 1)", 4)), "reduce, node 4 has ('max_pool_3x3', 1) twice; wants each"),
        ("{", "is not JSON (Expecting property name"),
        pytest.param('{"a":' * 100_000, "is not JSON (", id="JSON nested too deep"),
        ('{"space": "darts", "normal": []}', "has the JSON keys ['normal', 'space']; wants {"),
        (as_json(CELL)[:-1] + ', "normal_concat": []}', "has the JSON keys ['normal', 'normal_concat', 'reduce', "),
        (as_json(CELL, space="nas_bench_201"), "is a cell of 'nas_bench_201'; wants space darts or darts_nozero"),
        (as_json(CELL, space=["darts"]), "is a cell of ['darts']; wants space darts or darts_nozero"),
        (as_json([]), "normal wants 4 nodes in a tuple (a list in JSON), got ()"),
        (as_json(CELL, {"2": []}), "reduce wants 4 nodes in a tuple (a list in JSON), got {'2': []}"),
        (as_json([*CELL[:3], 1]), "normal, node 5 wants (operation, input) pairs in a tuple (a list in JSON), got 1"),
        (as_json([*CELL[:3], [[MAX]]]), "normal, node 5: ('max_pool_3x3',)" + NOT_A_PAIR),
        (as_json([*CELL[:3], [[MAX, [0]]]]), "normal, node 5: ('max_pool_3x3', [0])" + NOT_A_PAIR),
        (as_json([*CELL[:3], [[MAX, 1.0]]]), "normal, node 5: ('max_pool_3x3', 1.0)" + NOT_A_PAIR),
        (as_json(CELL, [[["conv", 0]], [], [], []]), "reduce, node 2: operation 'conv' is not one of "),
        (as_json([[[MAX, 3]], [], [], []]), "normal, node 2: input 3 is not one of 0 to 1"),
    ],
)  # fmt: skip
def test_every_error_of_a_text_is_named(broken: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        DARTS_SPACE.parse(broken)
    assert caught.value.argument == "genotype"
    assert sentence in caught.value.sentence
    assert len(caught.value.sentence) < 500
