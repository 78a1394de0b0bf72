"""`iterpref doctor`: what on this machine, or on all hosts of a run, would keep a run from working, and how to mend it.

On several hosts the same command runs on each of them; process 0 prints. Exit status 1: something is wrong.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from iterpref_jax import settings
from iterpref_jax.atomic import replace_text
from iterpref_jax.cli import hosts, options
from iterpref_jax.cli.stored import to_store
from iterpref_jax.doctor.examination import Examination, Subject
from iterpref_jax.doctor.finding import Finding, content, fail, has_failed, joined, table
from iterpref_jax.errors import UserError
from iterpref_jax.parallel import distributed, xla_flags
from iterpref_jax.parallel.liveness import together
from iterpref_jax.progress import say
from iterpref_jax.train import compile_cache

# What stands where a config names no dataset and no model, such as configs/base.py.
_NO_DATASET = "(none)"
_NO_MODEL = {"model_type": "qwen3"}


def main(argv: Sequence[str]) -> int:
    arguments = options.parser("doctor", __doc__)
    options.add_config(arguments)
    arguments.add_argument("--workdir", default="", metavar="DIR", help="the run's folder, one for all hosts")
    arguments.add_argument("--json", metavar="FILE", help="write the findings there as well")
    hosts.add_flags(arguments)
    chosen, config = options.parse_with_config(arguments, argv)
    compiling = settings.read_section(config, "compile")
    xla_flags.apply(compiling.xla_flags)
    examination = Examination(_subject(config, chosen.workdir))
    examination.alone()
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(together(hosts.read(chosen, config), lambda: "Look at what its host printed"))
        except UserError as error:
            return _report([[*examination.findings, fail("hosts", str(error), "")]], chosen.json)
        # Which hosts keep programs is one decision of all.
        compile_cache.enable(compiling)
        examination.together()
        everybody = distributed.gather("doctor findings", [list(vars(one).values()) for one in examination.findings])
        return _report([[Finding(*values) for values in findings] for findings in everybody], chosen.json)


def _subject(config: Any, workdir: str) -> Subject:
    has_data, has_model = bool(config.data.path), bool(config.model.path or config.model.init)
    if not has_data:
        config.data.path = _NO_DATASET
    if not has_model:
        config.model.init.update(_NO_MODEL)
    return Subject(
        settings=settings.read_run(config),
        config=to_store(config),
        workdir=workdir,
        has_data=has_data,
        has_model=has_model,
    )


def _report(everybody: list[list[Finding]], file: str | None) -> int:
    """Prints and writes what all processes found, on process 0; returns the exit status, on all."""
    found = joined(everybody)
    if distributed.is_main():
        print(table(found), flush=True)
        if file:
            replace_text(Path(file), json.dumps(content(found), indent=2) + "\n")
            say(f"findings: {file}")
    return 1 if has_failed(found) else 0
