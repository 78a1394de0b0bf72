"""Weights & Biases beside the files: what it gets, and that a run never depends on it."""

import importlib.util
import json
import threading

import pytest

from iterpref_jax.errors import UserError
from iterpref_jax.train import wandb_log
from iterpref_jax.train.metrics import MetricsLog, read_metrics
from iterpref_jax.train.wandb_log import LogSettings, WandbLog, sent_to_wandb

ON = LogSettings(wandb_project="tests")


class Remote:
    """Stands for a run of W&B; `broken` is what raises."""

    def __init__(self, broken=""):
        self.broken, self.got, self.finished, self.dir = broken, [], False, "folder"

    def log(self, values):
        if self.broken == "log":
            raise BrokenPipeError("the service is gone")
        self.got.append(values)

    def finish(self):
        if self.broken == "finish":
            threading.Event().wait()
        self.finished = True


def write_two(tmp_path, start):
    log = WandbLog(MetricsLog(tmp_path, resume_step=-1), start)
    log.write(1, "train", {"loss": 0.5, "mfu": None})
    log.write(1, "eval", {"loss": 0.6})
    log.close()
    return [(line["step"], line["split"]) for line in read_metrics(tmp_path / "metrics.jsonl")]


FILES = [(1, "train"), (1, "eval")]


def test_it_gets_what_tensorboard_gets_under_the_same_names(tmp_path):
    remote = Remote()
    assert write_two(tmp_path, lambda: remote) == FILES
    assert remote.got == [{"loss": 0.5, "update": 1}, {"eval/loss": 0.6, "update": 1}]
    assert remote.finished


def test_a_start_that_fails_is_said_once_and_the_files_go_on(tmp_path, capsys):
    def start():
        raise OSError("no network")

    assert write_two(tmp_path, start) == FILES
    assert (
        capsys.readouterr().err.count("W&B is left out from here on, metrics.jsonl goes on: OSError: no network") == 1
    )


def test_a_service_that_dies_is_said_once_and_the_files_go_on(tmp_path, capsys):
    assert write_two(tmp_path, lambda: Remote("log")) == FILES
    assert capsys.readouterr().err.count("the service is gone") == 1


def test_a_service_that_never_finishes_does_not_hold_the_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(wandb_log, "FINISH_S", 0.05)
    assert write_two(tmp_path, lambda: Remote("finish")) == FILES
    assert "wandb sync folder" in capsys.readouterr().err


def test_without_a_project_nothing_is_wrapped(tmp_path):
    log = MetricsLog(tmp_path, resume_step=-1)
    assert sent_to_wandb(log, LogSettings(wandb_project=""), tmp_path, {}) is log
    log.close()


def test_a_missing_package_is_an_error_that_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    LogSettings(wandb_project="").check()
    with pytest.raises(UserError, match=r"pip install 'iterpref_jax\[wandb\]'"):
        ON.check()


def test_a_resumed_run_goes_on_in_the_run_that_its_folder_began_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for step, value in ((1, 0.123456789), (2, 0.987654321)):
        log = sent_to_wandb(MetricsLog(tmp_path, resume_step=step - 1), ON, tmp_path, {"seed": 7})
        assert isinstance(log, WandbLog)
        log.write(step, "train", {"loss": value})
        log.close()
    number = json.loads((tmp_path / "wandb.json").read_text())["id"]
    # As at the end of the process: its service writes in the background.
    wandb.teardown()
    written = sorted((tmp_path / "wandb").glob(f"offline-run-*/run-{number}.wandb"))
    content = b"".join(path.read_bytes() for path in written)
    assert b"0.123456789" in content
    assert b"0.987654321" in content


def test_another_project_begins_another_run(tmp_path):
    first = wandb_log._run_id("one", tmp_path)
    assert wandb_log._run_id("one", tmp_path) == first
    assert wandb_log._run_id("two", tmp_path) != first
