"""Reports as searches of either space make them, and readers of the files that are drawn."""

import re
import struct

import numpy as np
import pytest

from gaea_jax.spaces import get_space


@pytest.fixture(scope="session")
def search_records():
    def search_records(count, table=True):
        """Reports of a search whose mixtures are drawn at random, every 50 steps."""
        rng = np.random.default_rng(0)
        records = []
        for index in range(count):
            mixture = rng.dirichlet(np.ones(4), size=6)
            record = {
                "step": 50 * (index + 1),
                "loss": 2.3 / (index + 1),
                "accuracy": 10.0 + index,
                "entropy": {"cell": float(-(mixture * np.log(mixture)).sum(-1).mean())},
                "skip_share": float((mixture.argmax(-1) == 0).mean()),
                "mixture": {"cell": mixture.tolist()},
            }
            if table:
                record["table"] = {
                    "cifar10": {"test": 90.0 + index % 3, "rank": 1812, "oracle": 94.37},
                    "cifar100": {"test": 70.0 + index % 3, "rank": 900, "oracle": 73.51},
                    "ImageNet16-120": {"test": 40.0 + index % 3, "rank": 7, "oracle": 47.31},
                }
            records.append(record)
        return records

    return search_records


@pytest.fixture(scope="session")
def darts_records(search_records):
    def darts_records(count, edges=True):
        """Reports of a search on the space of DARTS."""
        rng = np.random.default_rng(1)
        records = search_records(count, table=False)
        for record in records:
            record["entropy"], record["mixture"] = {}, {}
            for name, choice in get_space("darts").choices.items():
                if edges or not choice.optional:
                    weights = choice.uniform() * rng.uniform(0.5, 1, choice.shape)
                    record["mixture"][name] = weights.tolist()
                    record["entropy"][name] = 2.0 if choice.kind == "op" else 1.1
        return records

    return darts_records


@pytest.fixture(scope="session")
def size():
    def size(path):
        """Width and height of a PNG in pixels, from its header."""
        data = path.read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n" and data[-8:-4] == b"IEND"
        return struct.unpack(">II", data[16:24])

    return size


@pytest.fixture(scope="session")
def read_dot():
    def read_dot(text):
        """Names and edges of a Graphviz file with one statement a line, labels as Graphviz shows them."""

        def shown(label):
            return re.sub(r"\\(.)", lambda found: {"n": "\n"}.get(found[1], found[1]), label)

        string = r'"((?:[^"\\]|\\.)*)"'
        first, *lines, last = text.splitlines()
        assert (first, last) == ("digraph {", "}")
        statements = {"rankdir=LR": 0, "labelloc=t": 0, "node [shape=circle]": 0}
        nodes, edges, titles = {}, [], []
        for line in lines:
            line = line.removeprefix("  ").removesuffix(";")
            if line in statements:
                statements[line] += 1
            elif found := re.fullmatch(f"label={string}", line):
                titles.append(shown(found[1]))
            elif found := re.fullmatch(rf"n(\d+) \[label={string}\]", line):
                nodes[int(found[1])] = shown(found[2])
            else:
                found = re.fullmatch(rf"n(\d+) -> n(\d+)(?: \[label={string}\])?", line)
                assert {int(found[1]), int(found[2])} <= set(nodes), line
                edges.append((int(found[1]), int(found[2]), shown(found[3] or "")))
        assert set(statements.values()) == {1} and len(titles) == 1 and list(nodes) == list(range(len(nodes)))
        return list(nodes.values()), edges, titles[0]

    return read_dot
