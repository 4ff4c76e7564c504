import base64
import json
import pathlib
import struct
from typing import Any

import numpy as np
import pytest

from gaea_jax.benchmarks import Signal, load_benchmark
from gaea_jax.benchmarks.export_101 import export_nas_bench_101
from gaea_jax.errors import UsageError
from gaea_jax.spaces.nas_bench_101 import OPERATIONS, Genotype

C3, C1, POOL = OPERATIONS
CELLS = [
    Genotype(((0, 1),), ()),
    Genotype(((0, 1), (1, 2)), (C3,)),
    Genotype(((0, 1), (0, 2), (1, 3), (2, 3)), (C1, POOL)),
]


def tagged(number: int, kind: int) -> bytes:
    return bytes([number << 3 | kind])


def varint(value: int) -> bytes:
    found = b""
    while value > 127:
        found += bytes([value & 127 | 128])
        value >>= 7
    return found + bytes([value])


def measured(accuracies: list[tuple[float, float]], parameters: int) -> str:
    """What the official writer stores of a training, spelt out byte by byte."""
    message = b""
    for epoch, (valid, test) in enumerate(accuracies):
        values = (float(epoch), 10.0 * epoch, 0.9, valid, test)
        inner = b"".join(tagged(number, 1) + struct.pack("<d", value) for number, value in enumerate(values, start=1))
        message += tagged(1, 2) + varint(len(inner)) + inner
    message += tagged(2, 0) + varint(parameters) + tagged(3, 1) + struct.pack("<d", 99.0)
    return base64.b64encode(message).decode()


def record(genotype: Genotype, epochs: int, run: int, **changed: Any) -> bytes:
    row = CELLS.index(genotype)
    accuracy = (row + 1) / 10 + run / 100 + epochs / 1000
    fields = {
        "hash": genotype.hash(),
        "epochs": epochs,
        "adjacency": "".join(str(int(bit)) for bit in genotype.matrix().ravel()),
        "operations": ",".join(["input", *genotype.operations, "output"]),
        "metrics": measured([(0.1, 0.1), (0.2, 0.2), (accuracy, accuracy - 0.05)], 1_000 * (row + 1)),
    }
    content = json.dumps(list({**fields, **changed}.values())).encode()
    return struct.pack("<Q", len(content)) + b"crc!" + content + b"crc!"


def written(folder: pathlib.Path, *records: bytes) -> pathlib.Path:
    path = folder / "nasbench_full.tfrecord"
    path.write_bytes(b"".join(records))
    return path


def everything(**changed: Any) -> list[bytes]:
    return [record(cell, epochs, run, **changed) for run in range(3) for cell in CELLS for epochs in (4, 108)]


def test_the_last_measurements_of_all_trainings_become_a_table(tmp_path: pathlib.Path) -> None:
    arrays = export_nas_bench_101(written(tmp_path, *everything()))
    order = np.argsort([cell.hash() for cell in CELLS])
    assert [bytes(row).hex() for row in arrays["hash"]] == [CELLS[row].hash() for row in order]
    assert arrays["epochs"].tolist() == [4, 108]
    expected = (order + 1)[:, None] / 10 + 0.01 + np.array([4, 108]) / 1000
    np.testing.assert_allclose(arrays["valid_acc"], expected, rtol=1e-6)
    np.testing.assert_allclose(arrays["test_acc"], expected - 0.05, rtol=1e-6)
    np.testing.assert_allclose(np.ptp(arrays["valid_acc_runs"], axis=-1), 0.02, rtol=1e-4)
    assert (arrays["train_time"] == 20).all()
    assert arrays["params"].tolist() == (1_000 * (order + 1)).tolist()
    np.savez(tmp_path / "nb101.npz", **arrays)
    benchmark = load_benchmark("nas_bench_101", tmp_path / "nb101.npz", Signal(metric="test", epochs=108))
    best = int(benchmark.scores.argmax())
    assert benchmark.scores[best] == pytest.approx(100 * (0.3 + 0.01 + 0.108 - 0.05), rel=1e-6)
    assert benchmark.text(best) == str(CELLS[2])
    assert set(benchmark.reported) == {"valid", "test"}


def test_a_file_that_is_not_whole_is_refused(tmp_path: pathlib.Path) -> None:
    whole = b"".join(everything())
    for end in (len(whole) - 1, len(whole) - 30, len(whole) // 2 + 1):
        with pytest.raises(UsageError, match=r"file: .* is cut short or of another form; wants nasbench_full.tfrecord"):
            export_nas_bench_101(written(tmp_path, whole[:end]))


@pytest.mark.parametrize(
    ("records", "sentence"),
    [
        ([], "cells were trained 0 to 0 times"),
        (everything()[:-1], "cells were trained 2 to 3 times"),
        ([b"not a record at all, but some text"], "cut short or of another form"),
        ([record(CELLS[1], 4, 0, adjacency="01")], "has no matrix of 3 nodes"),
        ([record(CELLS[1], 4, 0, operations="input,conv9x9,output")], "'conv9x9' is unknown"),
        ([record(CELLS[1], 4, 0, hash=CELLS[0].hash())], "has the hash .*; the file is damaged"),
        ([record(CELLS[1], 4, 0, metrics="!")], "cut short or of another form"),
        ([record(CELLS[1], 4, 0, metrics="")], "cut short or of another form"),
    ],
)
def test_what_is_no_such_file_is_refused(tmp_path: pathlib.Path, records: list[bytes], sentence: str) -> None:
    with pytest.raises(UsageError, match="file: .*" + sentence):
        export_nas_bench_101(written(tmp_path, *records))


def test_a_missing_file_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UsageError, match=r"file: .* cannot be read \(No such file"):
        export_nas_bench_101(tmp_path / "nowhere.tfrecord")
