import dataclasses
import json
import os
import pathlib
import sys

import pytest

from gaea_jax.checkpoint import CheckpointError
from gaea_jax.errors import UsageError
from gaea_jax.train import SearchConfig
from gaea_jax.train.config import open_folder
from gaea_jax.train.folder import RunFolder

CONFIG = {"channels": 16, "out": "here"}
IDENTITY = {"--channels": 16, "--rates": (1, 2)}


def test_a_new_folder_holds_its_configuration(tmp_path):
    folder = RunFolder.create(tmp_path / "a" / "b", CONFIG, IDENTITY)
    (file,) = folder.path.iterdir()
    assert file.name == "config.json"
    assert json.loads(file.read_text()) == {**CONFIG, "identity": {"--channels": 16, "--rates": [1, 2]}}
    assert folder.records() == []


def test_an_empty_folder_is_taken_and_a_used_one_left_as_it_is(tmp_path):
    RunFolder.create(tmp_path, CONFIG, IDENTITY)
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(UsageError, match="holds another run; name a new folder, or continue a run with --resume") as e:
        RunFolder.create(tmp_path, {}, {})
    assert e.value.argument == "out"
    assert (tmp_path / "config.json").read_text() == before


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match=r"out: .* holds other files"):
        RunFolder.create(tmp_path, CONFIG, IDENTITY)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_path_at_or_below_a_file_is_refused(tmp_path, name):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UsageError, match=r"out: .* cannot be made or written to"):
        RunFolder.create(tmp_path / name, CONFIG, IDENTITY)
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("name", ["", "new"])
def test_an_unwritable_folder_is_refused(tmp_path, name):
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match=r"out: .* cannot be made or written to \(Permission denied\)"):
        RunFolder.create(tmp_path / name, CONFIG, IDENTITY)


def test_reopening_finds_the_reports(tmp_path):
    RunFolder.create(tmp_path, CONFIG, IDENTITY).log.append({"step": 1, "loss": 2.0})
    assert RunFolder.reopen(tmp_path, IDENTITY).records() == [{"step": 1, "loss": 2.0}]


def test_reopening_under_another_configuration_names_the_flags_and_both_values(tmp_path):
    RunFolder.create(tmp_path, CONFIG, {**IDENTITY, "--old": 1})
    with pytest.raises(CheckpointError) as caught:
        RunFolder.reopen(tmp_path, {**IDENTITY, "--channels": 8, "--new": None, "--seed": 3})
    sentence = caught.value.sentence
    assert "holds a run of another configuration" in sentence
    assert sentence.endswith(
        ": --channels was 16, now 8; --new was absent, now None; --old was 1, now absent; --seed was absent, now 3"
    )


@pytest.mark.parametrize("content", [None, "{", "[]", '{"channels": 16}'])
def test_reopening_where_there_is_no_run_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"resume: there is no run to continue in .*; leave out --resume"):
        RunFolder.reopen(tmp_path, IDENTITY)


def test_a_json_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    folder = RunFolder.create(tmp_path, CONFIG, IDENTITY)
    folder.write_json("result.json", {"steps": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.write_json("result.json", {"steps": float("nan")})

    def full_disk(self: pathlib.Path, text: str) -> None:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space left"):
        folder.write_json("result.json", {"steps": 2})
    assert json.loads((tmp_path / "result.json").read_text()) == {"steps": 1}
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "result.json"}


def test_tensorboard_is_written_where_asked_for_even_from_a_resume_on(tmp_path):
    config = SearchConfig(out=tmp_path / "run")
    open_folder(config).log.append({"step": 1})
    assert not (config.out / "tensorboard").exists()
    again = open_folder(dataclasses.replace(config, resume=True, tensorboard=True))
    again.log.rewind(1)
    (file,) = (config.out / "tensorboard").iterdir()
    assert "tfevents" in file.name and b"brain.Event:2" in file.read_bytes()
    assert again.records() == [{"step": 1}]

    new = open_folder(SearchConfig(out=tmp_path / "new", tensorboard=True))
    assert json.loads((new.path / "config.json").read_text())["tensorboard"] is True
    new.log.append({"step": 1})
    assert len(list((new.path / "tensorboard").iterdir())) == 1


def test_tensorboard_without_a_folder_or_its_package_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"tensorboard: needs the folder of the run, --out"):
        open_folder(SearchConfig(tensorboard=True))
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UsageError, match=r"tensorboard: needs the package tensorboardX"):
        open_folder(SearchConfig(out=tmp_path / "run", tensorboard=True))
    assert list(tmp_path.iterdir()) == []
    open_folder(SearchConfig(out=tmp_path / "run"))
