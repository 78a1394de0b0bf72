"""What the doctor says of a GPU that this machine does not have."""

import types

import pytest

from iterpref_jax.doctor import devices

SHARE = "XLA_PYTHON_CLIENT_MEM_FRACTION"


@pytest.mark.parametrize(
    ("kind", "limit_gb", "share", "said"),
    [
        ("NVIDIA H100 80GB HBM3", 60, "", ["JAX takes 55.9 of 74.5 GiB of a GPU"]),
        ("NVIDIA H100 PCIe", 60, "", ["JAX takes 55.9 of 74.5 GiB of a GPU"]),
        ("NVIDIA H100 80GB HBM3", 40, "0.5", ["JAX takes 37.3 of 74.5 GiB of a GPU"]),
        ("NVIDIA H100 80GB HBM3", 73, "0.92", []),
        # The name of a chip with 80 GB.
        ("NVIDIA A100-SXM4-40GB", 36, "0.92", []),
    ],
)
def test_a_gpu_of_which_jax_takes_a_part_is_said(monkeypatch, kind, limit_gb, share, said):
    monkeypatch.delenv(SHARE, raising=False)
    if share:
        monkeypatch.setenv(SHARE, share)
    stats = {"bytes_limit": limit_gb * 10**9}
    device = types.SimpleNamespace(device_kind=kind, platform="gpu", memory_stats=lambda: stats)
    assert [finding.text for finding in devices._share(device)] == said
