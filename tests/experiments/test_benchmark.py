"""The benchmark script, run as a user runs it, on a problem of a second."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import threading
import time

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.suites import convergence, data, kernels, loops, methods, seeds, startup, supernet, tpu
from experiments.suites.steps import StepConfig, batches, make
from gaea_jax.data import StoredSplit, load_dataset
from gaea_jax.errors import UsageError

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def compile_little():
    """Programs that run a few times need no polish."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@flax.struct.dataclass
class Point:
    """The state of a step that compiles in a moment."""

    step: jax.Array
    params: dict
    collections: dict
    key: jax.Array


@pytest.fixture
def small_step(monkeypatch):
    """The suites time a step of gradient descent on a matrix instead of a supernet's."""

    def step(state, batch):
        def loss(params):
            return jnp.mean(jnp.tanh(batch["weights"] @ params["arch"]) ** 2)

        value, grads = jax.value_and_grad(loss)(state.params)
        params = jax.tree.map(lambda one, grad: one - 0.1 * grad, state.params, grads)
        return state.replace(step=state.step + 1, params=params), {"loss": value}

    def build(config):
        state = Point(jnp.zeros((), jnp.int32), {"arch": jnp.ones((8, 8))}, {}, jax.random.key(0))
        return state, {"weights": jax.random.normal(jax.random.key(1), (4, 8))}, step

    for suite in (loops, methods, seeds):
        monkeypatch.setattr(suite, "build", build)


def benchmark(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "experiments.benchmark", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_convergence_writes_numbers_and_a_picture(tmp_path):
    flags = ("--ks", 4, 8, "--seeds", 3, "--epsilon", 0.05, "--noise", 0.3)
    done = benchmark(
        "convergence", *flags, "--json", tmp_path / "new" / "result.json", "--plot", tmp_path / "curves.png"
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "new" / "result.json").read_text())
    assert result["config"]["ks"] == [4, 8]
    assert len(result["curves"]) == 4
    for curve in result["curves"].values():
        assert all(n > 0 for n in curve["iterations"]) and len(curve["step"]) == 2
    assert result["command"].startswith("python -m experiments.benchmark convergence --ks 4 8")
    assert result["conclusion"] == done.stdout.splitlines()[-1]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--ks", 1), "error: --ks: a simplex needs at least 2 options, got 1."),
        (("--ks", 2, "--epsilon", 0.5), "error: --epsilon: the uniform start is already below 0.5; ask for less."),
    ],
)
def test_wrong_flags_end_with_status_2_and_one_line(flags, line):
    done = benchmark("convergence", *flags)
    assert done.returncode == 2
    assert done.stderr.strip() == line


def test_a_spent_budget_is_null_and_not_a_number():
    config = convergence.Config(ks=(4, 8), seeds=2, budget=4)
    result = convergence.run(config)
    assert all(n is None for curve in result["curves"].values() for n in curve["iterations"])
    assert result["conclusion"].startswith("Too few runs")


def test_without_noise_the_best_step_of_both_methods_needs_few_iterations():
    result = convergence.run(convergence.Config(ks=(4,), seeds=1, noise=0.0))
    for name in ("exponentiated gradient, tuned", "projected gradient, tuned"):
        assert result["curves"][name]["iterations"][0] <= 3


def test_supernet_runs_in_turn_with_its_yardstick(tmp_path, compile_little):
    program = tmp_path / "yardstick.py"
    program.write_text(
        "import json, time; print('warming up'); time.sleep(0.2); print(json.dumps({'step_s_median': 1000.0}))"
    )
    config = supernet.Config(
        cells=1, channels=2, batch_size=4, image=8, rounds=2, steps=1, yardstick=f"{sys.executable} {program}"
    )
    result = supernet.run(config)
    assert len(result["step_s"]) == 2 and all(seconds > 0 for seconds in result["step_s"])
    assert result["yardstick_s"] == [1000.0, 1000.0]
    assert result["ratio"]["min"] == pytest.approx(1000 / max(result["step_s"]))
    assert result["images_per_s"] == pytest.approx(4 / result["median"])
    assert 0 < result["gflop_per_s"] < result["peak_gflop_per_s"]
    assert min(result["peak_mb"], result["compile_peak_mb"]) > 100
    assert 5 < result["yardstick_peak_mb"] < 100
    axes = Figure().add_subplot()
    supernet.plot(result, axes)
    assert [line.get_label() for line in axes.lines] == ["gaea_jax", "yardstick"]


def test_a_yardstick_that_is_not_there_is_named():
    with pytest.raises(UsageError, match=r"cannot be run \(No such file or directory: nowhere\)"):
        supernet._yardstick("nowhere --fast")


def test_methods_are_timed_in_turn(small_step):
    only = ("nasp, weights", "darts, first order")
    result = methods.run(methods.Config(only=only, rounds=2, steps=2))
    assert tuple(result["steps"]) == only
    for step in result["steps"].values():
        assert len(step["step_s"]) == 2 and min(step["step_s"]) > 0
        assert step["temporaries_mb"] == step["large_temporaries_mb"] > 0
    # Eight cells of 14 edges, one operation an edge for 8 of them, against all eight operations.
    assert [step["evaluations"] for step in result["steps"].values()] == [8 * 8, 8 * 14 * 8]
    assert result["steps"]["darts, first order"]["ratio"] == {"min": 1, "median": 1, "max": 1}
    first, second = result["conclusion"].splitlines()
    assert first.startswith("nasp, weights: 64 operations, ")
    assert "for batches of 64); darts, first order takes" in first
    assert second.endswith("takes 1.00 times as long (1.00 to 1.00)")
    axes = Figure().add_subplot()
    methods.plot(result, axes)
    assert [label.get_text() for label in axes.get_yticklabels()] == list(only)
    with pytest.raises(UsageError, match=r"^only: enas unknown; known are nasp, weights; "):
        methods.run(methods.Config(only=("enas",)))


@pytest.mark.parametrize("name", ["nasp, weights", "nasp, architecture", "nasp"])
def test_what_methods_are_compared_by_are_steps_and_passes(name):
    """A pass moves what it is named by."""
    config = StepConfig(**methods.STEPS[name], channels=4, cells=1, batch_size=2, image=8)
    create, step = make(config)
    state = jax.eval_shape(create, jax.random.key(0))
    image = jax.ShapeDtypeStruct((2, 8, 8, 3), "float32"), jax.ShapeDtypeStruct((2,), "int32")
    after, metrics = jax.eval_shape(step, state, batches(config.order, image))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert ("loss" in metrics) == (config.passes != "arch")
    assert ("changed_edges" in metrics) == (config.method == "nasp" and config.passes != "weights")


def test_passes_are_those_of_an_alternating_step():
    for fields in ({"passes": "both", "order": "alternating"}, {"passes": "arch", "order": "joint"}):
        with pytest.raises(UsageError, match=r"^passes: must be all, or one of arch, weights of an alternating step"):
            make(StepConfig(**fields))


def test_both_loops_make_the_same_steps(small_step):
    result = loops.run(loops.Config(rounds=2, steps=2))
    assert result["difference"] < 1e-5
    assert [len(times) for times in result["step_s"].values()] == [2, 2]
    ratios = [scan / python for python, scan in zip(*result["step_s"].values(), strict=True)]
    assert result["ratio"]["min"] == min(ratios)
    axes = Figure().add_subplot()
    loops.plot(result, axes)
    assert [line.get_label() for line in axes.lines] == ['loop "python"', 'loop "scan"']


def test_seeds_together_are_the_seeds_one_by_one(small_step):
    result = seeds.run(seeds.Config(rounds=2, steps=1, seeds=4, devices=2))
    assert result["difference"] < 1e-6
    assert [len(times) for times in result["step_s"].values()] == [2, 2]
    assert min(result["compile_s"].values()) > 0
    axes = Figure().add_subplot()
    seeds.plot(result, axes)
    assert [line.get_label() for line in axes.lines] == ["together", "one by one"]


@pytest.mark.parametrize(("fields", "argument"), [({"devices": 3}, "devices"), ({"seeds": 0}, "seeds")])
def test_seeds_that_cannot_be_shared_out_are_refused(fields, argument):
    with pytest.raises(UsageError) as caught:
        seeds.run(dataclasses.replace(seeds.Config(), **fields))
    assert caught.value.argument == argument


def test_a_warm_start_compiles_nothing_again(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    result = startup.run(startup.Config(cells=1, channels=2, batch_size=8, rounds=1))
    assert 0 < result["median"]["warm"] < result["median"]["cold"]
    axes = Figure().add_subplot()
    startup.plot(result, axes)
    assert len(axes.patches) == 2


def test_a_search_that_cannot_start_is_named():
    with pytest.raises(UsageError, match=r"did not run \(status 2: error: --order"):
        startup.run(startup.Config(order="both"))


def test_what_chips_send_each_other_is_read_from_the_program():
    text = """
    %r = (f32[8,4]{1,0:T(8,128)}, s32[2]{0}) all-reduce(%a, %b), channel_id=1
    %s = bf16[] all-reduce-start(%c), channel_id=2
    %t = bf16[] all-reduce-done(%s)
    %u = f32[16] all-gather(%d), dimensions={0}
    %v = f32[16] add(%d, %all-reduce.3)
    """
    found = tpu.collectives(text)
    assert found == {
        "all-reduce": {"count": 2, "mb": pytest.approx((32 * 4 + 2 * 4 + 2) / 1e6)},
        "all-gather": {"count": 1, "mb": pytest.approx(64 / 1e6)},
    }


def test_steps_are_compiled_for_the_chips_that_are_named(monkeypatch, compile_little):
    monkeypatch.setattr(tpu, "_devices", lambda config: jax.devices()[: config.chips])
    found = {}
    for chips in (1, 4):
        config = tpu.Config(chips=chips, only=("nas_bench_201 retrain",), channels=2, batch_size=8)
        (found[chips],) = tpu.run(config)["rows"]
    assert not found[1]["collectives"] and found[4]["collectives"]["all-reduce"]["count"] > 0
    assert found[4]["gflop"] < 0.5 * found[1]["gflop"]
    assert 0 < found[4]["temporaries_mb"] < found[4]["hbm_mb"]
    result = {"rows": [{"step": "one", "error": "no"}, {**found[4], "step": "two"}], "chips": 4, "device": "TPU"}
    axes = Figure().add_subplot()
    tpu.plot(result, axes)
    assert len(axes.patches) == 1


def test_what_is_lowered_as_for_a_cpu_has_its_form_on_a_tpu():
    def text(what):
        step, *arguments = what
        return jax.jit(step).trace(*arguments).lower(lowering_platforms=("tpu",)).as_text()

    what = tpu._operation("sep_conv_3x3", tpu.Config(channels=4, batch_size=2))
    grouped = "feature_group_count = 4"
    assert grouped in text(what) and grouped not in text(tpu._as_for_cpu(what))


@pytest.mark.parametrize(
    ("config", "argument"),
    [
        (tpu.Config(topology="v0:1x1"), "topology"),
        (tpu.Config(only=("darts",)), "only"),
        (tpu.Config(lowering="gpu"), "lowering"),
    ],
)
def test_what_cannot_be_compiled_for_is_named(config, argument):
    with pytest.raises(UsageError) as caught:
        tpu.run(config)
    assert caught.value.argument == argument


def test_plain_operations_compute_what_ours_compute():
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 4))
    for operation in kernels.OPERATIONS:
        outs = []
        for module in (kernels.Plain(operation, 4), kernels.Ours(operation, 4)):
            shapes = jax.eval_shape(module.init, jax.random.key(1), x)
            leaves, form = jax.tree.flatten(shapes)
            # The same numbers in the same order, whatever the names and leading axes.
            order = sorted(range(len(leaves)), key=lambda i: (leaves[i].size, i))
            drawn = {i: jax.random.normal(jax.random.key(n), (leaves[i].size,)) for n, i in enumerate(order)}
            variables = jax.tree.unflatten(form, [drawn[i].reshape(leaves[i].shape) for i in range(len(leaves))])
            outs.append(module.apply(variables, x, mutable=["batch_stats"])[0])
        np.testing.assert_allclose(*outs, rtol=2e-4, atol=2e-5, err_msg=operation)


def test_kernels_times_every_operation_in_both_places(monkeypatch):
    monkeypatch.setattr(kernels, "OPERATIONS", ("nor_conv_1x1", "max_pool_3x3", "dil_conv_3x3"))
    result = kernels.run(kernels.Config(channels=2, batch_size=2, image=4, rounds=2, calls=1))
    assert len(result["rows"]) == 3 * 2 * 2
    for row in result["rows"]:
        assert len(row["plain_ms"]) == len(row["ours_ms"]) == 2 and min(row["plain_ms"] + row["ours_ms"]) > 0
        ratios = [plain / ours for plain, ours in zip(row["plain_ms"], row["ours_ms"], strict=True)]
        assert row["ratio"] == pytest.approx(sum(ratios) / 2)
    assert len(result["conclusion"].splitlines()) == 2 + 3 * 2
    json.dumps(result)
    axes = Figure().add_subplot()
    kernels.plot(result, axes)
    assert [text.get_text() for text in axes.get_yticklabels()] == list(kernels.OPERATIONS)


@pytest.fixture
def stored_digits(monkeypatch):
    """The digits as if they were a set on disk."""

    class Records(list):
        def __getitems__(self, keys):
            return [self[key] for key in keys]

    def stored(split):
        records = ({"image": image, "label": label} for image, label in zip(*split, strict=True))
        return StoredSplit("figures", "train", Records(records), split.image_shape)

    digits = load_dataset("digits")
    monkeypatch.setattr(data, "load_dataset", lambda name, data_dir: digits)
    monkeypatch.setattr(
        data, "open_dataset", lambda name, data_dir: dataclasses.replace(digits, train=stored(digits.train))
    )


def test_data_times_both_sources_and_ends_its_threads(stored_digits):
    result = data.run(data.Config(dataset="figures", batch_size=8, steps=3, rounds=2, work=1))
    assert result["images_per_s"].keys() == {"device", "stream"}
    assert result["busy_step_s"].keys() == {"alone", "device", "stream"}
    for found in (result["images_per_s"], result["busy_step_s"]):
        assert all(len(numbers) == 2 and min(numbers) > 0 for numbers in found.values())
    assert result["images_per_s_median"]["stream"] == pytest.approx(sum(result["images_per_s"]["stream"]) / 2)
    assert result["conclusion"].startswith("figures: ")
    json.dumps(result)
    axes = Figure().add_subplot()
    data.plot(result, axes)
    assert len(axes.lines) == 5
    end = time.monotonic() + 10
    while any(thread.name.startswith("grain") for thread in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("wrong", [{"dataset": "digits"}, {"steps": 0}, {"rounds": 0}, {"work": -1}], ids=str)
def test_data_refuses_what_it_cannot_time(wrong):
    with pytest.raises(UsageError) as error:
        data.run(data.Config(**wrong))
    assert [error.value.argument] == list(wrong)
