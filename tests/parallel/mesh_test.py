"""Which device lies where: sizes that do not fit, hosts of GPUs, slices of TPUs."""

import dataclasses
import importlib.util

import jax
import numpy as np
import pytest

from iterpref_jax.errors import UserError
from iterpref_jax.parallel.mesh import AXES, arranged, make_mesh, slice_of
from tests.support.meshes import mesh_settings

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: pip install 'iterpref_jax[plan]'"
)


@dataclasses.dataclass(frozen=True)
class Gpu:
    """As much of a device as an arrangement looks at."""

    id: int
    process_index: int
    slice_index: int
    platform: str = "gpu"


def gpus(hosts, a_host, *, processes_a_host=1, slices=True):
    """GPUs as JAX lists them, but for the order: those of the last host first."""
    a_process = a_host // processes_a_host
    return [
        Gpu(i, process_index=i // a_process, slice_index=i // a_host if slices else 0)
        for i in reversed(range(hosts * a_host))
    ]


def sizes(**given):
    return dataclasses.asdict(mesh_settings(**given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(fsdp=3), "needs 3 devices, but there are 8"),
        (dict(fsdp=-1, sequence=3), "needs a multiple of 3 devices, but there are 8"),
        (dict(fsdp=-1, tensor=-1), "-1 on at most one axis"),
        (dict(expert=0), "must be 1 or more"),
    ],
)
def test_sizes_that_do_not_fit_the_devices_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        make_mesh(mesh_settings(**given))


def test_minus_one_takes_the_devices_that_are_left():
    assert dict(make_mesh(mesh_settings(fsdp=-1, expert=2, sequence=2)).shape) == dict(
        data=1, fsdp=2, expert=2, sequence=2, tensor=1
    )


def test_neighbours_on_the_innermost_axis_are_neighbours_among_the_devices():
    found = make_mesh(mesh_settings(data=2, sequence=2, tensor=2)).devices
    assert found.reshape(-1).tolist() == jax.devices()


def test_data_and_fsdp_may_span_hosts_of_gpus():
    found = arranged(sizes(data=2, fsdp=4, tensor=4), gpus(4, 8))
    assert [gpu.id for gpu in found.reshape(-1)] == list(range(32))
    # Every group of a tensor axis is on one host.
    of_host = np.vectorize(slice_of)(found).reshape(-1, 4)
    assert (of_host == of_host[:, :1]).all()


@pytest.mark.parametrize("axis", ["expert", "sequence", "tensor"])
@pytest.mark.parametrize("processes_a_host", [1, 8])
def test_an_axis_of_activations_across_hosts_of_gpus_is_refused(axis, processes_a_host):
    devices = gpus(2, 8, processes_a_host=processes_a_host)
    with pytest.raises(UserError, match=r"is 16, but the hosts have 8 GPUs"):
        arranged(sizes(**{axis: 16}), devices)


def test_a_process_with_several_gpus_is_a_host_where_there_is_one_slice_only():
    with pytest.raises(UserError, match="the hosts have 8 GPUs"):
        arranged(sizes(tensor=16), gpus(2, 8, slices=False))


def test_the_gpus_of_one_host_may_be_shared_as_one_likes():
    for processes in (1, 8):
        assert arranged(sizes(tensor=8), gpus(1, 8, processes_a_host=processes)).shape[-1] == 8


@needs_libtpu
@pytest.mark.slow
def test_whole_replicas_lie_in_different_slices_of_tpus():
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4", num_slices=2).devices
    found = arranged(sizes(data=4, fsdp=2, tensor=2), list(devices))
    of_slice = np.vectorize(slice_of)(found)
    assert found.shape == (4, 2, 1, 1, 2)
    for place, expected in enumerate((0, 0, 1, 1)):
        assert (of_slice[place] == expected).all()
    with pytest.raises(UserError, match=r"mesh\.data is 1, but the devices are 2 slices.* multiple of 2"):
        arranged(sizes(fsdp=16), list(devices))


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("given", [dict(fsdp=8, tensor=2), dict(fsdp=2, expert=2, sequence=2, tensor=2), dict(data=16)])
@pytest.mark.parametrize("chips", ["v6e:4x4", "v5p:2x2x4"])
def test_axes_need_not_follow_the_sides_of_a_torus(chips, given):
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(platform="tpu", topology_name=chips).devices
    found = arranged(sizes(**given), list(devices))
    assert found.shape == tuple(sizes(**given)[axis] for axis in AXES)
    assert len(set(found.reshape(-1))) == 16
