"""Which space a genotype is of, and where it is read from."""

import json

import pytest

from gaea_jax.errors import UsageError
from gaea_jax.spaces import get_space
from gaea_jax.spaces.published import PUBLISHED
from gaea_jax.train.genotype import read_genotype

CELL = "|nor_conv_3x3~0|+|skip_connect~0|nor_conv_1x1~1|+|skip_connect~0|avg_pool_3x3~1|skip_connect~2|"
OPERATIONS = [item.split("~")[0] for item in CELL.split("|") if "~" in item]
DARTS = PUBLISHED["PC_DARTS_CIFAR"]
# More inputs than the published grammar has.
WIDE = '{"space": "darts_nozero", "normal": [[["skip_connect", 0]], [], [], []], "reduce": [[], [], [], []]}'


@pytest.mark.parametrize("in_a_file", [False, True])
@pytest.mark.parametrize(
    ("text", "space", "cell"),
    [
        (CELL, "nas_bench_201", CELL),
        (f" {CELL}\n", "nas_bench_201", CELL),
        (json.dumps({"space": "nas_bench_201_nozero", "cell": OPERATIONS}), "nas_bench_201_nozero", CELL),
        (str(DARTS), "darts", str(DARTS)),
        ("PC_DARTS_CIFAR", "darts", str(DARTS)),
        ("pcdarts_cifar", "darts", str(DARTS)),
        ("NASP", "nasp", str(PUBLISHED["NASP"])),
        (str(PUBLISHED["NASP"]), "nasp", str(PUBLISHED["NASP"])),
        (WIDE, "darts_nozero", str(get_space("darts").parse(WIDE))),
    ],
    ids=[
        "cell",
        "white space",
        "JSON",
        "Genotype",
        "name",
        "name in small letters",
        "name of NASP",
        "NASP",
        "JSON of DARTS",
    ],
)
def test_the_space_follows_from_the_genotype(tmp_path, text, space, cell, in_a_file):
    if in_a_file:
        (tmp_path / "cell").write_text(text)
        text = str(tmp_path / "cell")
    found, genotype = read_genotype(text)
    assert (found.name, str(genotype)) == (space, cell)


@pytest.mark.parametrize("space", ["nas_bench_201", "nas_bench_201_nozero", "darts_nozero"])
def test_a_result_names_its_space(tmp_path, space):
    cell = str(DARTS) if space == "darts_nozero" else CELL
    file = tmp_path / "result.json"
    file.write_text(json.dumps({"space": space, "genotype": cell, "steps": 3}))
    found, genotype = read_genotype(str(file))
    assert (found.name, str(genotype)) == (space, cell)


def test_the_space_that_is_given_counts(tmp_path):
    file = tmp_path / "result.json"
    file.write_text(json.dumps({"space": "nas_bench_201_nozero", "genotype": CELL}))
    found, _ = read_genotype(str(file), "nas_bench_201")
    assert found.name == "nas_bench_201"
    with pytest.raises(UsageError, match="wants Genotype"):
        read_genotype(str(file), "darts")


@pytest.mark.parametrize(
    ("content", "argument"),
    [
        ('{"space": "nasnet", "genotype": "x"}', "space"),
        ('{"space": 3, "genotype": "x"}', "genotype"),
        ('{"genotype": ["x"]}', "genotype"),
        ('{"space": "darts"', "genotype"),
        ("[" * 100_000, "genotype"),
        ("\xff", "genotype"),
        ("", "genotype"),
    ],
    ids=["unknown space", "no name", "no text", "cut", "deep", "letters", "empty"],
)
def test_files_without_a_genotype_are_refused(tmp_path, content, argument):
    file = tmp_path / "found"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(UsageError) as error:
        read_genotype(str(file))
    assert error.value.argument == argument
