import json
import subprocess
import sys

from tests.benchmarks.conftest import FOLDER


def test_a_form_that_is_refused_says_why_and_the_others_are_measured():
    sizes = ["--rows", "1", "--tokens", "128", "--head-dim", "64", "--repeats", "1"]
    words = [sys.executable, str(FOLDER / "kernels.py"), *sizes, "--forms", "cudnn", "xla", "cpu"]
    ended = subprocess.run(words, capture_output=True, text=True, check=True)
    refused, *measured = map(json.loads, ended.stdout.splitlines())
    assert refused["form"] == "cudnn"
    assert "cuDNN" in refused["error"]
    assert [line["form"] for line in measured] == ["xla", "cpu"]
    for line in measured:
        assert line["forward_ms"] > 0
        assert max(line["deviation"].values()) < 1e-4
