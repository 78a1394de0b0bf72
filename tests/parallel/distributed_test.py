"""Where a process finds the others: flags, environment, cluster; and what is refused before any of it starts."""

import dataclasses

import pytest

from iterpref_jax.errors import UserError
from iterpref_jax.parallel import distributed
from iterpref_jax.parallel.host_settings import DistributedSettings, HostsSettings

HOSTS = HostsSettings(start_timeout_s=5, vanished_after_s=5)
VARIABLES = """JAX_COORDINATOR_ADDRESS JAX_NUM_PROCESSES JAX_PROCESS_ID JAX_LOCAL_DEVICE_IDS KUBERNETES_SERVICE_HOST
    JOB_COMPLETION_INDEX TPU_WORKER_HOSTNAMES SLURM_JOB_ID OMPI_MCA_orte_hnp_uri""".split()
SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_NODELIST": "node[3-4]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def given(coordinator=None, processes=None, process=None):
    return DistributedSettings(coordinator=coordinator, processes=processes, process=process, hosts=HOSTS)


def place(**flags):
    return distributed._place(given(**flags))


def test_a_process_without_flags_or_cluster_is_alone():
    assert place() is None
    assert (distributed.process_count(), distributed.process_index(), distributed.is_main()) == (1, 0, True)
    assert distributed.gather("x", {"a": 1}) == [{"a": 1}]


def test_flags_win_over_the_environment(environment):
    environment.setenv("JAX_COORDINATOR_ADDRESS", "elsewhere:1")
    environment.setenv("JAX_NUM_PROCESSES", "8")
    environment.setenv("JAX_PROCESS_ID", "7")
    assert place(coordinator="10.0.0.1:8476", processes=4, process=2) == distributed._Place("10.0.0.1:8476", 4, 2, None)
    assert place() == distributed._Place("elsewhere:1", 8, 7, None)


def test_processes_1_never_looks_for_others(environment):
    for name, value in SLURM.items():
        environment.setenv(name, value)
    assert place(processes=1) is None


def test_slurm_is_found_and_gives_a_process_one_device_unless_it_has_the_node_alone(environment):
    for name, value in SLURM.items():
        environment.setenv(name, value)
    found = place()
    assert found is not None
    assert found.coordinator.startswith("node3:")
    assert (found.processes, found.process, found.devices) == (2, 1, [0])
    environment.setenv("SLURM_STEP_TASKS_PER_NODE", "1(x2)")
    assert place() == dataclasses.replace(found, devices=None)


def test_a_pod_that_is_not_one_of_several_is_alone(environment):
    environment.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert place() is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"coordinator": "a:1"}, "--processes, --process missing: give all of"),
        ({"processes": 2, "process": 0}, "--coordinator missing"),
        ({"coordinator": "a", "processes": 2, "process": 0}, "--coordinator=a: expected HOST:PORT"),
        ({"coordinator": "a:1", "processes": 2, "process": 2}, "--process=2: with --processes=2 it is 0 to 1"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        given(**flags)


def test_an_incomplete_environment_is_refused(environment):
    environment.setenv("JAX_NUM_PROCESSES", "2")
    with pytest.raises(UserError, match="JAX_NUM_PROCESSES, but not JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID"):
        place()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("10.0.0.1", "2", "0"), "JAX_COORDINATOR_ADDRESS, .* expected HOST:PORT of process 0"),
        (("10.0.0.1:1", "2", "5"), "with --processes=2 it is 0 to 1"),
        (("10.0.0.1:1", "two", "0"), "JAX_NUM_PROCESSES='two' is no whole number"),
    ],
)
def test_an_environment_that_does_not_fit_is_refused(environment, values, message):
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    for name, value in zip(names, values, strict=True):
        environment.setenv(name, value)
    with pytest.raises(UserError, match=message):
        place()


def test_numbers_of_devices_that_are_none_are_refused(environment):
    environment.setenv("JAX_LOCAL_DEVICE_IDS", "0,a")
    with pytest.raises(UserError, match="JAX_LOCAL_DEVICE_IDS='0,a': expected numbers"):
        place(coordinator="a:1", processes=2, process=0)
