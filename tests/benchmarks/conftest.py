"""The benchmarks as modules (their folder is no package), a dataset for them, and a way to run one."""

import importlib
import json
import os
import subprocess
import sys

import pytest

from tests.support import runs

FOLDER = runs.ROOT / "benchmarks"


@pytest.fixture
def benchmark_module(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.fixture(scope="session")
def dataset_folder(tmp_path_factory):
    return runs.make_dataset(tmp_path_factory.mktemp("benchmarks"), count=24, eval_fraction=0.0)


@pytest.fixture(scope="session")
def run_benchmark(dataset_folder):
    """A function that runs a benchmark on a tiny model; returns (exit status, JSON lines, other lines)."""

    def run(script, *words):
        tiny = ["--model", "tiny", "--vocab", "512", "--data", str(dataset_folder), "--tokens", "256", *words]
        # A fast compilation: nobody looks at the times.
        flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
        ended = subprocess.run(
            [sys.executable, str(FOLDER / script), *tiny],
            env=os.environ | {"XLA_FLAGS": flags},
            capture_output=True,
            text=True,
            check=False,
        )
        said = ended.stdout.splitlines()
        assert said, ended.stderr
        lines = [json.loads(line) for line in said if line.startswith("{")]
        return ended.returncode, lines, [line for line in said if not line.startswith("{")]

    return run
