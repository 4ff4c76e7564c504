import dataclasses
import pathlib

import numpy as np
import pytest

from gaea_jax.data import IMAGENET_JITTER, Augmentation, Dataset, Split
from gaea_jax.errors import UsageError
from gaea_jax.train import RetrainConfig, SearchConfig, retrain, search
from gaea_jax.train.config import Length, load_data, run_length
from gaea_jax.train.recipe import cosine

CELL = "|nor_conv_3x3~0|+|skip_connect~0|nor_conv_1x1~1|+|none~0|avg_pool_3x3~1|skip_connect~2|"
SMALL = {"channels": 4, "cells": 1, "batch_size": 8}

BOTH = [
    ("space", {"space": "darts_11"}),
    ("dataset", {"dataset": "no_such_set"}),
    ("loop", {"loop": "while"}),
    ("loop", {"stream": True, "loop": "scan"}),
    ("stream", {"stream": True}),
    ("tensorboard", {"tensorboard": True, "out": None}),
    ("dtype", {"dtype": "float16"}),
    ("steps", {"steps": 0}),
    ("steps", {"steps": -1}),
    ("epochs", {"steps": None, "epochs": 0}),
    ("steps", {"epochs": 2}),
    ("seed", {"seed": -1}),
    ("cutout", {"cutout": -4}),
    ("cutout", {"cutout": 16}),
    ("image_size", {"image_size": -1}),
    ("image_size", {"image_size": 8}),
    ("jitter", {"jitter": True}),
    ("channels", {"channels": 0}),
    ("cells", {"cells": -1}),
    ("learning_rate", {"learning_rate": 0.0}),
    ("learning_rate", {"learning_rate": float("nan")}),
    ("weight_decay", {"weight_decay": float("inf")}),
    ("report_every", {"report_every": 0}),
    ("batch_size", {"batch_size": 0}),
    ("batch_size", {"batch_size": 2000}),
    ("batch_size", {"batch_size": 12}),
]
SEARCH = [
    ("method", {"method": "enas"}),
    ("order", {"order": "weights-first"}),
    ("order", {"order": "joint", "objective": "bilevel"}),
    ("objective", {"objective": "trilevel"}),
    ("objective", {"method": "random"}),
    ("hypergradient", {"hypergradient": "guessed"}),
    ("split", {"split": pathlib.Path("absent.npz"), "objective": "bilevel"}),
    ("split", {"split": pathlib.Path("absent.npz")}),
    ("batch_size", {"batch_size": 720, "objective": "bilevel"}),
    ("derive_from", {"derive_from": "first", "objective": "bilevel"}),
    ("derive_from", {"derive_from": "best_valid"}),
    ("eval_images", {"eval_images": 0, "objective": "bilevel"}),
    ("eval_statistics", {"eval_statistics": "moving"}),
    ("temperature", {"temperature": 1.0}),
    ("temperature", {"temperature": 0.0, "method": "gdas"}),
    ("final_temperature", {"final_temperature": 1.0, "method": "darts"}),
    ("entropy_weight", {"entropy_weight": 0.1, "method": "random", "objective": "bilevel"}),
    ("arch_learning_rate", {"arch_learning_rate": 0.1, "method": "random", "objective": "bilevel"}),
    ("clip_norm", {"clip_norm": 0.0}),
    ("schedule_epochs", {"schedule_epochs": 0}),
    ("arch_learning_rate", {"arch_learning_rate": -0.1}),
    ("arch_clip_norm", {"arch_clip_norm": 0.0}),
    ("arch_warmup_epochs", {"arch_warmup_epochs": -1.0}),
    ("entropy_weight", {"entropy_weight": -1.0}),
    ("clamp", {"clamp": "hard"}),
    ("clamp", {"clamp": "release", "method": "darts"}),
    ("table", {"table": pathlib.Path("absent.npz")}),
]
RETRAIN = [
    ("preset", {"preset": "imagenet"}),
    ("genotype", {"genotype": "|nor_conv_3x3~0|"}),
    ("genotype", {"genotype": "absent/result.json"}),
    ("genotype", {"genotype": ""}),
    ("genotype", {"genotype": CELL, "space": "nas_bench_201_nozero"}),
    ("genotype", {"genotype": "DARTS_V3", "space": "darts"}),
    ("genotype", {"genotype": CELL, "space": "darts"}),
    ("schedule", {"schedule": "step"}),
    ("clip_norm", {"clip_norm": -1.0}),
    ("drop_path", {"drop_path": 1.0}),
    ("drop_path", {"drop_path": -0.1}),
    ("drop_path", {"drop_path": 0.1}),
    ("label_smoothing", {"label_smoothing": 1.0}),
    ("label_smoothing", {"label_smoothing": float("nan")}),
    ("auxiliary_weight", {"auxiliary_weight": -0.4}),
    ("auxiliary_weight", {"auxiliary_weight": 0.4}),
    ("stem", {"stem": "imagenet"}),
    ("stem", {"stem": "mnist", "genotype": "DARTS_V2", "space": "darts", "cutout": 0}),
    ("accumulate", {"accumulate": 0}),
    ("accumulate", {"accumulate": 2}),
    ("cutout", {"genotype": "DARTS_V2", "space": "darts"}),
]


@pytest.mark.parametrize(
    ("run", "argument", "fields"),
    [
        *[(search, *case) for case in BOTH + SEARCH],
        *[(retrain, *case) for case in BOTH + RETRAIN],
    ],
)
def test_a_wrong_field_is_named_before_anything_is_written(tmp_path, run, argument, fields):
    fields = {"steps": 2, "out": tmp_path / "out", **SMALL, **fields}
    config = SearchConfig(**fields) if run is search else RetrainConfig(**{"genotype": CELL, **fields})
    with pytest.raises(UsageError) as caught:  # on 8 devices
        run(config)
    assert caught.value.argument == argument
    assert list(tmp_path.iterdir()) == []


def test_a_table_of_another_space_is_refused(tmp_path, arrays):
    table = tmp_path / "other.npz"
    np.savez(table, allow_pickle=False, **{**arrays, "op_names": np.array(["none", "skip", "a", "b", "c"])})
    with pytest.raises(UsageError, match="is of another space") as caught:
        search(SearchConfig(steps=2, table=table, out=tmp_path / "out", **SMALL))
    assert caught.value.argument == "table"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (SearchConfig(resume=True), "resume: needs the folder of the run to continue, --out"),
        (SearchConfig(batch_size=12), "batch_size: must be a multiple of the 8 devices, not 12"),
        (SearchConfig(steps=-5), "steps: must be more than 0, not -5"),
        (SearchConfig(seed=-5), "seed: must be 0 or more, not -5"),
        (SearchConfig(epochs=1, steps=1), "steps: cannot be given together with a number of epochs"),
        (
            SearchConfig(method="x"),
            "method: 'x' is unknown; known are darts, entrannas, entrannas_dst, gaea, "
            "gaea_entrannas, gaea_entrannas_dst, gaea_gdas, gaea_pc_darts, gdas, nasp, pc_darts, random",
        ),
        (SearchConfig(order="x"), "order: 'x' is unknown; known are joint, alternating"),
        (SearchConfig(objective="x"), "objective: 'x' is unknown; known are single-level, bilevel, bilevel-unrolled"),
        (SearchConfig(dtype="x"), "dtype: 'x' is unknown; known are float32, bfloat16"),
        (SearchConfig(clamp="x"), "clamp: 'x' is unknown; known are shift-invariant, release"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_sentence_says_what_is_accepted(config, sentence):
    with pytest.raises(UsageError) as caught:
        search(config)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"preset": "x"},
            "preset: 'x' is unknown; known are nas_bench_201, nas_bench_201_short, nas_bench_101, darts_cifar10, "
            "darts_imagenet",
        ),
        ({"schedule": "x"}, "schedule: 'x' is unknown; known are cosine, warmup_linear"),
        ({"drop_path": 1.0}, "drop_path: must be less than 1, not 1.0"),
        ({"batch_size": 32, "accumulate": 3}, "accumulate: must divide the 4 images of a batch on a device, not 3"),
        ({"preset": "darts_imagenet"}, "image_size: applies to images that stay on disk; it needs --stream, or 0"),
        ({"jitter": True}, "jitter: needs images of 3 channels; those of 'digits' have 1"),
    ],
)
def test_the_sentence_of_a_training_says_what_is_accepted(fields, sentence):
    with pytest.raises(UsageError) as caught:  # on 8 devices
        retrain(RetrainConfig(genotype=CELL, **{**SMALL, **fields}))
    assert str(caught.value) == sentence


def test_images_are_streamed_at_the_size_and_with_the_jitter_that_are_asked_for(monkeypatch):
    split = Split(np.zeros((2, 24, 24, 3), np.uint8), np.zeros(2, np.int32))
    colours = (0.5, 0.5, 0.5)
    asked = []

    def opened(name, data_dir, image_size):
        asked.append((name, data_dir, image_size))
        return Dataset(name, split, split, 2, colours, colours, Augmentation(flip=True, pad=0))

    monkeypatch.setattr("gaea_jax.train.config.open_dataset", opened)
    config = RetrainConfig(genotype="", dataset="imagenet2012", stream=True, image_size=24, jitter=True, cutout=2)
    assert load_data(config, test=True).augmentation == Augmentation(flip=True, pad=0, cutout=2, jitter=IMAGENET_JITTER)
    stored = dataclasses.replace(config, image_size=0, jitter=False)
    assert load_data(stored, test=True).augmentation == Augmentation(flip=True, pad=0, cutout=2)
    assert load_data(SearchConfig(stream=True), test=True).augmentation == Augmentation(flip=True, pad=0)
    assert asked == [("imagenet2012", None, 24), ("imagenet2012", None, None), ("digits", None, None)]


def test_a_folder_in_use_is_refused_and_a_run_to_resume_is_looked_for(tmp_path):
    (tmp_path / "notes.txt").touch()
    config = SearchConfig(steps=2, out=tmp_path, **SMALL)
    for resume, argument in ((False, "out"), (True, "resume")):
        with pytest.raises(UsageError) as caught:
            search(dataclasses.replace(config, resume=resume))
        assert caught.value.argument == argument
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_epoch_counts_a_last_batch_that_is_not_full():
    assert run_length(SearchConfig(epochs=25), 50_000, 64) == Length(25 * 782, 782, 25, 782, 391)
    assert run_length(RetrainConfig(genotype="", epochs=200), 50_000, 256) == Length(39_200, 196, 200, 196, 784)


def test_steps_alone_make_stairs_of_a_step_each():
    assert run_length(SearchConfig(steps=120, report_every=7), 50_000, 64) == Length(120, 782, 120, 1, 7)
    assert run_length(SearchConfig(steps=10), 50_000, 64).report_every == 1


def test_a_schedule_of_50_epochs_over_25_ends_half_way_as_in_the_released_code():
    length = run_length(SearchConfig(epochs=25, schedule_epochs=50), 50_000, 64, 50)
    assert length.until == 25 * 782
    schedule = cosine(0.025, 0.001, length.periods, length.period)
    np.testing.assert_allclose(float(schedule(length.until - 1)), 0.013753, rtol=1e-4)
    own = run_length(SearchConfig(epochs=25), 50_000, 64)
    np.testing.assert_allclose(float(cosine(0.025, 0.001, own.periods, own.period)(own.until - 1)), 0.001095, rtol=1e-3)


def test_what_decides_the_numbers_of_a_run_is_its_identity():
    config = SearchConfig(out=pathlib.Path("a"), table=pathlib.Path("t"), seed=3)
    elsewhere = dataclasses.replace(config, out=pathlib.Path("b"), table=None, report_every=3, resume=True)
    assert elsewhere.identity() == config.identity()
    assert config.identity()["--seed"] == 3
    assert config.fields()["out"] == "a"
    for field in ("seed", "channels", "order", "arch_learning_rate", "loop", "cutout"):
        assert f"--{field.replace('_', '-')}" in config.identity()
