"""Versions that do not go together are found; this environment's do."""

import pytest

from iterpref_jax.doctor import software
from iterpref_jax.doctor.finding import FAIL, OK


def problems(**found):
    return [one for one in software.check_versions(software.versions() | found) if one.status != OK]


def test_this_environment_is_well():
    first, *others = software.check_versions(software.versions())
    assert first.status == OK
    assert "jax " in first.text
    assert not [one for one in others if one.status == FAIL]


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ({"jax": "0.11.0", "jaxlib": "0.10.2", "flax": "0.12.8"}, "jax 0.11.0 with jaxlib 0.10.2"),
        ({"jax": "0.11.1", "jaxlib": "0.11.1", "flax": "0.12.8"}, "flax 0.12.8 breaks with jax 0.11.1"),
        ({"jax-cuda12-plugin": "0.9.0"}, "jax-cuda12-plugin 0.9.0 with jaxlib"),
    ],
)
def test_versions_that_do_not_go_together_are_named_with_what_to_install(found, text):
    [problem] = [one for one in problems(**found) if text in one.text]
    assert problem.status == FAIL
    assert "pip install" in problem.advice


def test_a_requirement_that_is_not_met_is_named(monkeypatch):
    monkeypatch.setattr(
        software.importlib.metadata, "requires", lambda name: ["numpy>=99", 'absent>=1; extra == "dev"']
    )
    [problem] = problems()
    assert (problem.status, problem.advice) == (FAIL, "install it: pip install 'numpy>=99'")


def test_a_flag_that_xla_does_not_know_is_found_without_ending_this_process(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_none=1")
    [finding] = software.check_flags()
    assert finding.status == FAIL
    assert "--xla_cpu_none=1" in finding.text
