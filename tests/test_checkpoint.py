import json
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gaea_jax.checkpoint import CheckpointError, Checkpoints
from gaea_jax.errors import UsageError

IDENTITY = {"--channels": 16, "--space": "darts", "--betas": (0.5, 0.999)}


class Memory(NamedTuple):
    best: float
    seen: int
    done: bool


@flax.struct.dataclass
class State:
    params: dict[str, Any]
    opt_state: optax.OptState
    keys: dict[str, jax.Array]
    memory: Memory
    host: dict[str, Any]
    name: str = flax.struct.field(pytree_node=False, default="static")


def make_state(seed: int) -> State:
    """A state of every kind of leaf, no value of which is the same for two seeds."""
    normal = jax.random.normal(jax.random.key(seed), (60, 70))
    params = {
        "f32": normal,
        "bf16": normal.astype(jnp.bfloat16),
        "f16": normal.astype(jnp.float16),
        "i8": jnp.full((3,), seed, jnp.int8),
        "u32": jnp.arange(4, dtype=jnp.uint32) + seed,
        "bool": normal > 0,
        "complex": normal[0] * 1j,
        "scalar": jnp.float32(seed),
        "empty": jnp.zeros((0, 3)),
        "strange": jnp.array([seed, jnp.nan, -0.0, jnp.inf]),
    }
    return State(
        params=params,
        opt_state=optax.chain(optax.clip(1.0), optax.adamw(1e-3)).init({"w": normal}),
        keys={
            "one": jax.random.key(seed),
            "many": jax.random.split(jax.random.key(seed), (2, 3)),
            "none": jax.random.split(jax.random.key(seed), 0),
            "rbg": jax.random.key(seed, impl="rbg"),
            "raw": jax.random.PRNGKey(seed),
        },
        memory=Memory(best=seed / 7, seen=10**12 + seed, done=seed % 2 == 0),
        host={"f64": np.linspace(0, seed, 5), "i64": np.int64(seed), "transposed": np.ones((3, 2)).T * seed},
    )


def bits(tree: Any) -> list[tuple]:
    def leaf_bits(leaf):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return str(leaf.dtype), leaf.shape, np.asarray(jax.random.key_data(leaf)).tobytes()
        return type(leaf).__name__, np.asarray(leaf).dtype, np.shape(leaf), np.asarray(leaf).tobytes()

    return [leaf_bits(leaf) for leaf in jax.tree.leaves(tree)]


def save_steps(folder: pathlib.Path, *steps: int) -> None:
    with Checkpoints(folder, IDENTITY) as checkpoints:
        for step in steps:
            checkpoints.save(step, {"w": jnp.full((4,), step)})


def refusal(folder: pathlib.Path, like: Any, identity: dict[str, Any] = IDENTITY) -> CheckpointError:
    with Checkpoints(folder, identity) as checkpoints, pytest.raises(CheckpointError) as caught:
        checkpoints.restore(like)
    assert caught.value.argument == "resume"
    return caught.value


def test_every_kind_of_leaf_comes_back_bit_for_bit(tmp_path):
    state, like = make_state(3), make_state(8)
    with Checkpoints(tmp_path, IDENTITY) as checkpoints:
        checkpoints.save(5, state)
    with Checkpoints(tmp_path, IDENTITY) as checkpoints:
        step, restored = checkpoints.restore(like)
    assert step == 5
    assert bits(restored) == bits(state) != bits(like)
    assert jax.tree.structure(restored) == jax.tree.structure(like)
    assert not restored.params["f32"].committed


def test_a_tree_without_values_can_be_saved(tmp_path):
    with Checkpoints(tmp_path, {}) as checkpoints:
        checkpoints.save(1, (optax.EmptyState(), None))
        assert checkpoints.restore((optax.EmptyState(), None)) == (1, (optax.EmptyState(), None))


def test_values_move_between_one_device_and_eight(tmp_path):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    one = {"w": jnp.arange(16.0), "b": jnp.ones(3), "k": jax.random.split(jax.random.key(1), 8)}
    shardings = {"w": split, "b": whole, "k": split}
    eight = jax.device_put(one, shardings)
    like = jax.device_put({**jax.tree.map(jnp.zeros_like, one), "k": one["k"][::-1]}, shardings)
    with Checkpoints(tmp_path, {}) as checkpoints:
        checkpoints.save(1, one)
        checkpoints.save(2, eight)
        for step in (1, 2):
            _, restored = checkpoints.restore(like, step)
            assert bits(restored) == bits(one)
            assert jax.tree.map(lambda leaf: leaf.sharding, restored) == shardings
        assert bits(checkpoints.restore(one)[1]) == bits(one)


def test_only_the_newest_stay_and_any_of_them_can_be_restored(tmp_path):
    save_steps(tmp_path, 1, 4, 5, 9)
    with Checkpoints(tmp_path, IDENTITY) as checkpoints:
        assert checkpoints.steps() == [4, 5, 9]
        assert checkpoints.restore({"w": jnp.zeros(4, int)}, 5)[1]["w"].tolist() == [5] * 4
        with pytest.raises(CheckpointError, match=r"no checkpoint of step 6 in .*, only of 4, 5, 9$"):
            checkpoints.restore({"w": jnp.zeros(4, int)}, 6)
        for step in (9, 3):
            with pytest.raises(UsageError, match=f"^step: must be greater than 9.* got {step}$"):
                checkpoints.save(step, {"w": jnp.zeros(4, int)})
    with Checkpoints(tmp_path, IDENTITY, keep=1) as checkpoints:
        checkpoints.save(10, {"w": jnp.zeros(4, int)}, wait=True)
        assert os.listdir(tmp_path) == ["10"]


def test_a_state_can_be_donated_while_it_is_saved(tmp_path):
    advance = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jnp.zeros(500_000)
    host = np.zeros(1000)
    with Checkpoints(tmp_path, {}, keep=5) as checkpoints:
        for step in range(5):
            checkpoints.save(step, {"x": x, "host": host})
            before, x = x, advance(x)
            assert before.is_deleted()
            host += 1
        for step in range(5):
            _, restored = checkpoints.restore({"x": x, "host": host}, step)
            np.testing.assert_array_equal(restored["x"], np.full(500_000, step))
            np.testing.assert_array_equal(restored["host"], np.full(1000, step))


def test_a_checkpoint_of_another_configuration_is_refused_by_field(tmp_path):
    save_steps(tmp_path, 1)
    identity = {"--channels": 8, "--space": "darts", "--seed": 2}
    assert refusal(tmp_path, {"w": jnp.zeros(4, int)}, identity).sentence == (
        f"the checkpoint {tmp_path}/1 is of another run: --betas was [0.5, 0.999], now absent; "
        "--channels was 16, now 8; --seed was absent, now 2"
    )


@pytest.mark.parametrize(
    ("like", "difference"),
    [
        ({"w": jnp.zeros(5, int)}, r"leaf ['w'] was int32[4], now int32[5]"),
        ({"w": jnp.zeros(4)}, r"leaf ['w'] was int32[4], now float32[4]"),
        (
            {"v": jnp.zeros(4, int)},
            r"leaf ['v'] was absent, now int32[4]; leaf ['w'] was int32[4], now absent",
        ),
        ({"w": jax.random.key(0)}, r"leaf ['w'] was int32[4], now threefry2x32 key uint32[2]"),
        ({}, r"leaf ['w'] was int32[4], now absent"),
    ],
)
def test_a_checkpoint_of_other_leaves_is_refused_by_name(tmp_path, like, difference):
    save_steps(tmp_path, 1)
    assert refusal(tmp_path, like).sentence.endswith(f"is of another run: {difference}")


def test_wrong_arguments_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"^keep: must be at least 1, got 0$"):
        Checkpoints(tmp_path, {}, keep=0)
    with pytest.raises(TypeError, match="not JSON serializable"):
        Checkpoints(tmp_path, {"net": object()})
    with Checkpoints(tmp_path, {}) as checkpoints:
        with pytest.raises(CheckpointError, match=f"^resume: there is no checkpoint in {tmp_path}"):
            checkpoints.restore({"w": jnp.zeros(3)})
        for leaf in ("text", np.array([None])):
            with pytest.raises(UsageError, match=r"^tree: leaf \['w'\] must be an array or a number, got"):
                checkpoints.save(1, {"w": leaf})


@pytest.mark.parametrize("below", ["file", "file/checkpoints"])
def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path, below):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=f"^out: {tmp_path / below} cannot be written to") as caught:
        Checkpoints(tmp_path / below, {})
    assert not isinstance(caught.value, CheckpointError)


def damages(size: int) -> dict[str, Any]:
    """Ways to damage a file: a flipped bit at several places, a cut at several places, removal."""
    rng = random.Random(size)
    places = {0, size - 1, *(rng.randrange(size) for _ in range(12))}

    def flip(place, bit):
        return lambda raw: raw[:place] + bytes([raw[place] ^ bit]) + raw[place + 1 :]

    flips = {f"bit {place}": flip(place, 1 << rng.randrange(8)) for place in places}
    cuts = {f"cut {end}": lambda raw, end=end: raw[:end] for end in (0, size // 2, size - 1)}
    return {**flips, **cuts, "removed": lambda raw: None}


def test_damage_to_any_file_is_refused_or_harmless(tmp_path):
    states, like = {1: make_state(1), 2: make_state(2)}, make_state(3)
    with Checkpoints(tmp_path, IDENTITY) as checkpoints:
        for step, state in states.items():
            checkpoints.save(step, state)
    files = [path for path in sorted((tmp_path / "2").rglob("*")) if path.is_file()]
    refused, tried = {}, {}
    for path in files:
        name = str(path.relative_to(tmp_path / "2"))
        raw = path.read_bytes()
        for damage in damages(len(raw)).values():
            damaged = damage(raw)
            path.unlink() if damaged is None else path.write_bytes(damaged)
            tried[name] = tried.get(name, 0) + 1
            try:
                with Checkpoints(tmp_path, IDENTITY) as checkpoints:
                    step, restored = checkpoints.restore(like)
            except CheckpointError as error:
                refused[name] = refused.get(name, 0) + 1
                assert error.sentence == (
                    f"the checkpoint {tmp_path}/2 is damaged; remove that folder to continue from step 1"
                )
            else:
                assert step == 2
                assert bits(restored) == bits(states[2])
            path.write_bytes(raw)
    table = "\n".join(f"{name}: refused {refused.get(name, 0)} of {tried[name]}" for name in tried)
    print(table)
    # Every byte of the manifest counts, and most of the file with the values, the rest being spare nodes.
    values = max((path for path in files if path.parent.name == "d"), key=lambda path: path.stat().st_size)
    assert refused["manifest/metadata"] == tried["manifest/metadata"], table
    values_name = str(values.relative_to(tmp_path / "2"))
    assert refused[values_name] > tried[values_name] / 2, table


def test_a_damaged_checkpoint_can_be_removed_or_passed_over(tmp_path, caplog):
    save_steps(tmp_path, 1, 2)
    (tmp_path / "2/manifest/metadata").write_text("{")
    (tmp_path / "1/_CHECKPOINT_METADATA").write_text("{")
    like = {"w": jnp.zeros(4, int)}
    with Checkpoints(tmp_path, IDENTITY) as checkpoints:
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoints.restore(like)
        assert checkpoints.restore(like, 1)[0] == 1
    shutil.rmtree(tmp_path / "2")
    with Checkpoints(tmp_path, IDENTITY) as checkpoints:
        assert checkpoints.restore(like)[1]["w"].tolist() == [1] * 4
    (tmp_path / "1/manifest/metadata").unlink()
    assert refusal(tmp_path, like).sentence == (
        f"the checkpoint {tmp_path}/1 is damaged; remove that folder and start a new run"
    )
    assert not caplog.records


def test_changed_values_are_found_where_orbax_reads_them_without_complaint(tmp_path, monkeypatch):
    save_steps(tmp_path, 1)
    read = ocp.CheckpointManager.restore

    def flipped(self, step, args):
        items = read(self, step, args=args)
        if "leaves" in items:
            items.leaves["bytes"][5] ^= 1
        return items

    monkeypatch.setattr(ocp.CheckpointManager, "restore", flipped)
    error = refusal(tmp_path, {"w": jnp.zeros(4, int)})
    assert "damaged" in error.sentence
    assert str(error.__cause__) == "leaf ['w'] does not match its digest"


def test_a_changed_manifest_and_a_renamed_step_are_damage(tmp_path):
    save_steps(tmp_path, 1)
    manifest = tmp_path / "1/manifest/metadata"
    stored = json.loads(manifest.read_text())
    like = {"w": jnp.zeros(4, int)}
    manifest.write_text(json.dumps({**stored, "identity": {**stored["identity"], "--channels": 8}}))
    assert "damaged" in refusal(tmp_path, like, {**IDENTITY, "--channels": 8}).sentence
    manifest.write_text(json.dumps(stored))
    (tmp_path / "1").rename(tmp_path / "7")
    assert "damaged" in refusal(tmp_path, like).sentence


def test_an_interrupt_while_reading_is_not_taken_for_damage(tmp_path, monkeypatch):
    save_steps(tmp_path, 1)

    def interrupted(self, step, args):
        raise KeyboardInterrupt

    monkeypatch.setattr(ocp.CheckpointManager, "restore", interrupted)
    with Checkpoints(tmp_path, IDENTITY) as checkpoints, pytest.raises(KeyboardInterrupt):
        checkpoints.restore({"w": jnp.zeros(4, int)})


def test_a_save_that_fails_in_the_background_is_raised_at_the_end(tmp_path):
    save_steps(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        # Larger files fail to be written, as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
        with (
            pytest.raises(ValueError, match="Failed writing"),
            Checkpoints(tmp_path, IDENTITY) as checkpoints,
        ):
            checkpoints.save(2, {"w": np.random.default_rng(0).normal(size=100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with Checkpoints(tmp_path, IDENTITY) as checkpoints:
        assert checkpoints.restore({"w": jnp.zeros(4, int)})[0] == 1
        checkpoints.save(2, {"w": jnp.zeros(4, int)})
    assert sorted(os.listdir(tmp_path)) == ["1", "2"]


SAVE_FOR_EVER = """
import itertools, sys
import numpy as np
from gaea_jax.checkpoint import Checkpoints

with Checkpoints(sys.argv[1], {}) as checkpoints:
    done = max(checkpoints.steps(), default=0)
    for step in itertools.count(done + 1):
        checkpoints.save(step, {"w": np.random.default_rng(step).normal(size=200_000)})
        # The save before this one is complete now.
        print(step - 1, flush=True)
"""


def test_a_killed_process_loses_no_complete_checkpoint(tmp_path):
    rng = random.Random(0)
    for _ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", SAVE_FOR_EVER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        for _ in range(4):
            complete = int(child.stdout.readline())
        time.sleep(rng.uniform(0, 0.1))
        child.send_signal(signal.SIGKILL)
        complete = max([complete, *map(int, child.communicate()[0].split())])
        with Checkpoints(tmp_path, {}) as checkpoints:
            step, restored = checkpoints.restore({"w": np.zeros(200_000)})
        assert step >= complete
        np.testing.assert_array_equal(restored["w"], np.random.default_rng(step).normal(size=200_000))


def test_what_a_killed_save_left_is_ignored_and_removed(tmp_path):
    save_steps(tmp_path, 3)
    # What Orbax has on the disk in the middle of a save.
    shutil.copytree(tmp_path / "3", tmp_path / "4.orbax-checkpoint-tmp")
    shutil.rmtree(tmp_path / "4.orbax-checkpoint-tmp/leaves")
    with Checkpoints(tmp_path, IDENTITY) as checkpoints:
        assert checkpoints.steps() == [3]
        checkpoints.save(5, {"w": jnp.zeros(4, int)})
    assert sorted(os.listdir(tmp_path)) == ["3", "5"]
