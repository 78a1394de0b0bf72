"""Where compiled programs are kept, and that a second process finds them."""

import os
import subprocess

import jax
import pytest

from iterpref_jax.parallel import distributed
from iterpref_jax.train import alike, compile_cache
from iterpref_jax.train.compile_cache import CompileSettings
from tests.support.runs import CONFIG, command, environment, make_dataset, numbers, overrides

COUNT_HITS = """
import atexit, collections, sys
import jax
events = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: events.update([name.rsplit("/", 1)[-1]]))
atexit.register(lambda: print("hits", events["cache_hits"], "misses", events["cache_misses"]))
"""


@pytest.fixture
def changes(monkeypatch):
    """What `enable` sets, without setting it for the tests that follow."""
    found = {}
    monkeypatch.setattr(jax.config, "update", found.__setitem__)
    monkeypatch.delenv(compile_cache.ENVIRONMENT, raising=False)
    return found


def test_the_users_cache_folder_is_the_default(changes, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compile_cache.enable(CompileSettings(cache="auto", xla_flags="none"))
    assert changes["jax_compilation_cache_dir"] == str(tmp_path / "iterpref" / "jax")
    assert (tmp_path / "iterpref" / "jax").is_dir()


@pytest.mark.parametrize(("cache", "variable"), [("", None), ("auto", "/elsewhere"), ("auto", "")])
def test_an_empty_setting_or_the_environment_leave_jax_as_it_is(changes, monkeypatch, cache, variable):
    if variable is not None:
        monkeypatch.setenv(compile_cache.ENVIRONMENT, variable)
    compile_cache.enable(CompileSettings(cache=cache, xla_flags="none"))
    assert changes == {}


def test_a_folder_that_cannot_be_written_is_announced_and_no_error(changes, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    compile_cache.enable(CompileSettings(cache=str(tmp_path / "file" / "cache"), xla_flags="none"))
    assert "compiled programs are not kept" in capsys.readouterr().err
    assert changes == {}


@pytest.mark.parametrize(
    ("others", "shared", "said"),
    [([True], True, ""), ([True], False, "is not one folder for all hosts"), ([False], True, "is not used by all")],
)
def test_of_several_processes_all_keep_programs_in_one_folder_or_none_does(
    changes, monkeypatch, tmp_path, capsys, others, shared, said
):
    monkeypatch.setattr(distributed, "process_count", lambda: 2)
    monkeypatch.setattr(distributed, "gather", lambda name, value: [value, *others])
    monkeypatch.setattr(alike, "is_shared", lambda folder, within_s: shared)
    compile_cache.enable(CompileSettings(cache=str(tmp_path), xla_flags="none"))
    error = capsys.readouterr().err
    assert said in error
    assert bool(said) == bool(error)
    # A lock a reader, for which JAX does not wait long, is not for many processes.
    assert changes.get("jax_compilation_cache_dir") == (None if said else str(tmp_path))
    assert "jax_compilation_cache_max_size" not in changes


@pytest.mark.slow
def test_a_second_process_compiles_nothing_and_gets_the_same_numbers(tmp_path):
    dataset = make_dataset(tmp_path)
    kept = {name: text for name, text in environment(tmp_path).items() if "CACHE" not in name}
    counts = []
    for name in ("one", "two"):
        words = overrides(dataset, **{"train.steps": 2, "compile.cache": tmp_path / "cache"})
        run = command("train", CONFIG, f"--workdir={tmp_path / name}", *words, code=COUNT_HITS)
        done = subprocess.run(run, env=kept, capture_output=True, text=True, check=True, cwd=os.getcwd())
        _, hits, _, misses = done.stdout.split()[-4:]
        counts.append((int(hits), int(misses)))
    assert numbers(tmp_path / "one") == numbers(tmp_path / "two")
    (hits_before, misses_before), (hits, misses) = counts
    assert hits_before < misses_before
    # Whatever compiles around the threshold may be kept or not.
    assert hits >= 3
    assert misses < misses_before
