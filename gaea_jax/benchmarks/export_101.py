"""Writes the table of NAS-Bench-101 from its official file.

The file, ``nasbench_full.tfrecord`` or ``nasbench_only108.tfrecord``, has a record for each training of each cell: JSON
of the cell's hash, the epochs, its adjacency matrix row by row as text of 0 and 1, its operations separated by commas,
and in base 64 a protocol buffer of what was measured at the start, in the middle and at the end. Nothing in it can run.
This module follows the published source (`google-research/nasbench`) and has been run on files made to look like the
official ones, never on these.
"""

import base64
import binascii
import functools
import json
import os
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from gaea_jax.errors import UsageError
from gaea_jax.spaces import nas_bench_101

_ACCEPTED = "wants nasbench_full.tfrecord or nasbench_only108.tfrecord"
# Fields of the protocol buffers in their order, which is their number.
_EVALUATION = ("current_epoch", "training_time", "train_accuracy", "validation_accuracy", "test_accuracy")
# Hashes take long to compute: that of every so-manieth cell is compared with the file's.
_CHECKED_EVERY = 500
# Bytes of a record, of which the official ones have a few thousand.
_LONGEST = 2**20


def export_nas_bench_101(file: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Collects the arrays of a table.

    Args:
      file: the official file, 2 GB; it is read once, from its start to its end.

    Returns:
      The arrays that `gaea_jax.benchmarks.load_benchmark` reads, one row a cell, sorted by hash: ``hash`` uint8
      [cells, 16], ``num_vertices`` uint8, ``adjacency`` uint8 [cells, 7, 7], ``ops`` uint8 [cells, 5], ``epochs`` int
      [schedules], ``valid_acc`` and ``test_acc`` float32 [cells, schedules], the means over all trainings, 0 to 1,
      ``valid_acc_runs`` and ``test_acc_runs`` float32 [cells, schedules, trainings], ``train_time`` float32
      [cells, schedules] in seconds and ``params`` int32.

    Raises:
      UsageError: on ``file``, if it cannot be read, is cut short or is no such file, or its cells differ in how often
        they were trained.
    """
    cells: dict[str, tuple[str, str]] = {}
    runs: dict[tuple[str, int], list[tuple[float, float, float]]] = {}
    parameters: dict[str, int] = {}
    try:
        with open(file, "rb") as stream:
            for name, epochs, adjacency, operations, metrics in map(json.loads, _records(stream)):
                measured = _message().FromString(base64.b64decode(metrics, validate=True))
                last = measured.evaluation_data[-1]
                cells[name] = adjacency, operations
                parameters[name] = measured.trainable_parameters
                found = last.validation_accuracy, last.test_accuracy, last.training_time
                runs.setdefault((name, epochs), []).append(found)
    except OSError as error:
        raise UsageError("file", f"{file} cannot be read ({error.strerror}); {_ACCEPTED}") from error
    except (ValueError, TypeError, IndexError, binascii.Error, DecodeError, struct.error) as error:
        raise UsageError("file", f"{file} is cut short or of another form; {_ACCEPTED}") from error
    names, schedules = sorted(cells), sorted({epochs for _, epochs in runs})
    counts = {len(runs.get((name, epochs), ())) for name in names for epochs in schedules}
    if len(counts) != 1 or 0 in counts:
        raise UsageError(
            "file", f"{file}: cells were trained {min(counts, default=0)} to {max(counts, default=0)} times"
        )
    measured = np.array([[runs[name, epochs] for epochs in schedules] for name in names], np.float32)
    graphs = [_graph(str(file), name, *cells[name]) for name in names]
    for name, genotype in list(zip(names, graphs, strict=True))[::_CHECKED_EVERY]:
        if genotype.hash() != name:
            raise UsageError("file", f"{file}: the cell {name} has the hash {genotype.hash()}; the file is damaged")
    adjacency, operations = _padded(graphs)
    return {
        "hash": np.array([list(bytes.fromhex(name)) for name in names], np.uint8),
        "num_vertices": np.array([len(genotype.operations) + 2 for genotype in graphs], np.uint8),
        "adjacency": adjacency,
        "ops": operations,
        "op_names": np.array(nas_bench_101.OPERATIONS),
        "epochs": np.array(schedules),
        "valid_acc": measured[..., 0].mean(axis=-1),
        "test_acc": measured[..., 1].mean(axis=-1),
        "valid_acc_runs": measured[..., 0],
        "test_acc_runs": measured[..., 1],
        "train_time": measured[..., 2].mean(axis=-1),
        "params": np.array([parameters[name] for name in names], np.int32),
    }


def _records(stream: BinaryIO) -> Iterator[bytes]:
    """The records of a TFRecord file: length and its check, content and its check; the checks are not computed."""
    while head := stream.read(12):
        (length,) = struct.unpack("<Q", head[:8])
        if length > _LONGEST:
            raise ValueError("no record is so long")
        record = stream.read(length)
        if len(head) < 12 or len(record) < length or len(stream.read(4)) < 4:
            raise ValueError("the last record is cut short")
        yield record


def _graph(file: str, name: str, adjacency: str, operations: str) -> nas_bench_101.Genotype:
    nodes = operations.split(",")
    if len(adjacency) != len(nodes) ** 2 or not set(adjacency) <= set("01"):
        raise UsageError("file", f"{file}: the cell {name} has no matrix of {len(nodes)} nodes; {_ACCEPTED}")
    matrix = np.array(list(adjacency), int).reshape(len(nodes), -1)
    try:
        return nas_bench_101.pruned(matrix, nodes[1:-1])
    except UsageError as error:
        raise UsageError("file", f"{file}: the cell {name} {error.sentence}; {_ACCEPTED}") from error


def _padded(graphs: list[nas_bench_101.Genotype]) -> tuple[np.ndarray, np.ndarray]:
    size = nas_bench_101.MAX_NODES
    adjacency = np.zeros((len(graphs), size, size), np.uint8)
    operations = np.full((len(graphs), size - 2), 255, np.uint8)
    for row, genotype in enumerate(graphs):
        for source, node in genotype.edges:
            adjacency[row, source, node] = 1
        numbers = [nas_bench_101.OPERATIONS.index(operation) for operation in genotype.operations]
        operations[row, : len(numbers)] = numbers
    return adjacency, operations


@functools.cache
def _message() -> Any:
    """The class of the protocol buffer of a training."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="gaea_jax/nasbench.proto", package="gaea_jax.nasbench")
    evaluation = file.message_type.add(name="EvaluationData")
    for number, name in enumerate(_EVALUATION, start=1):
        evaluation.field.add(name=name, number=number, type=kinds.TYPE_DOUBLE, label=kinds.LABEL_OPTIONAL)
    metrics = file.message_type.add(name="ModelMetrics")
    metrics.field.add(
        name="evaluation_data",
        number=1,
        type=kinds.TYPE_MESSAGE,
        label=kinds.LABEL_REPEATED,
        type_name=".gaea_jax.nasbench.EvaluationData",
    )
    metrics.field.add(name="trainable_parameters", number=2, type=kinds.TYPE_INT32, label=kinds.LABEL_OPTIONAL)
    metrics.field.add(name="total_time", number=3, type=kinds.TYPE_DOUBLE, label=kinds.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("gaea_jax.nasbench.ModelMetrics"))
