"""Runs launchers with commands of the cloud replaced by ones that only write down what they were asked."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
CLOUD = ("gcloud", "kubectl", "docker", "xpk", "sky", "sbatch", "srun", "scancel", "scontrol", "tar")
WORDS = ["--config=configs/base.py", "--workdir=gs://bucket/run", '--config.model.path=it\'s a "model" & $HOME']


def fake(folder: Path, name: str, body: str = "") -> None:
    """Puts a command into a folder: it appends its words, one a line, to the folder's `calls`, then runs `body`.

    Under a lock: launchers run commands at the same time, and bash writes line by line.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = f"(flock 9; printf '%s\\n' {name} \"$@\" --- >&9) 9>> {folder}/calls"
    (folder / name).write_text(f"#!/usr/bin/env bash\n{written}\n{body}\n")
    (folder / name).chmod(0o755)


def calls(folder: Path) -> list[list[str]]:
    """Returns the commands that were run, each as its words."""
    file = folder / "calls"
    parts = file.read_text().split("---\n")[:-1] if file.exists() else []
    return [part.removesuffix("\n").split("\n") for part in parts]


def environment(folder: Path, **values: str) -> dict[str, str]:
    """Returns an environment in which `folder` goes first, with every command of the cloud in it."""
    for name in CLOUD:
        if not (folder / name).exists():
            fake(folder, name)
    # What the launchers read themselves is for the test to say, not for the shell that runs the tests.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "XLA_"))}
    kept.pop("PYTHON", None)
    return kept | {"PATH": f"{folder}:{os.environ['PATH']}", "TMPDIR": "/tmp"} | values


def launch(folder: Path, script: str, *words: str, **values: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(LAUNCH / script), *words],
        env=environment(folder, **values), capture_output=True, text=True, cwd=ROOT, check=False, timeout=60,
    )  # fmt: skip


def tool(name: str) -> str | None:
    """Returns a program of the dev extra: beside Python, or on the path."""
    return shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
