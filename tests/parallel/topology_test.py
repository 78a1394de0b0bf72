"""Topologies by name: what is refused and how, and what a chip has. Compile-only devices need libtpu."""

import importlib.util

import pytest

from iterpref_jax.errors import UserError
from iterpref_jax.parallel import topology
from iterpref_jax.parallel.topology import CHIPS, chip_of, open_topology

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: pip install 'iterpref_jax[plan]'"
)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v6:2x4", "did you mean 'v6e'"),
        ("tpu", "the chip must be one of v5e, v5p, v6e"),
        # A chip of the table that this compiler knows no more.
        ("v4:2x2x1", "the chip must be one of"),
        ("v6e", "write the chips along each side"),
        ("v6e:8", "write the chips along each side"),
        ("v6e:2x0", "write the chips along each side"),
        ("v5p:2x2", "a v5p slice has 3 sides, as in v5p:2x2x1"),
        ("v6e:2x2x2", "a v6e slice has 2 sides, as in v6e:2x4"),
    ],
)
def test_a_name_that_is_no_topology_is_refused_with_one_that_is(name, message):
    with pytest.raises(UserError, match=message):
        open_topology(name)


@pytest.mark.parametrize(("name", "extra"), [("v6e:2x4", "plan"), ("h100:1x8", "cuda")])
def test_a_missing_compiler_is_named_with_the_extra_that_has_it(monkeypatch, name, extra):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=rf"pip install 'iterpref_jax\[{extra}\]'"):
        open_topology(name)


def test_gpus_are_hosts_times_gpus(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda _: True)
    with pytest.raises(UserError, match="HOSTSxGPUS"):
        open_topology("h100:1x2x4")


@pytest.mark.parametrize(
    ("kind", "chip"),
    [
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H200 NVL", "h200-nvl"),
        ("cpu", None),
    ],
)
def test_a_device_kind_finds_its_data_sheet(kind, chip):
    assert chip_of(kind) == (CHIPS[chip] if chip else None)


@needs_libtpu
@pytest.mark.parametrize(
    ("name", "count"), [("v6e:2x4", 8), ("v5e:4x4", 16), ("v5p:2x2x1", 4), ("v6e:1x1", 1), ("v5p:1x2x1", 2)]
)
def test_compile_only_devices_are_of_the_kind_that_was_named(name, count):
    found = open_topology(name)
    assert len(found.devices) == count
    assert {chip_of(device.device_kind) for device in found.devices} == {found.chip}


@needs_libtpu
def test_chips_that_make_no_slice_are_refused():
    with pytest.raises(UserError, match="v6e:3x5"):
        open_topology("v6e:3x5")
