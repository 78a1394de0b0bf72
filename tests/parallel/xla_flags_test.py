"""XLA's flags: known to the installed compilers, set before they are read, and never over what the user set."""

import importlib.util
import os
import subprocess
import sys

import pytest

from iterpref_jax.errors import UserError
from iterpref_jax.parallel import xla_flags
from iterpref_jax.parallel.xla_flags import FLAGS, LIBTPU_INIT_ARGS, VARIABLES, XLA_FLAGS


@pytest.fixture
def all_installed(monkeypatch):
    monkeypatch.setattr(xla_flags, "installed", lambda: tuple(VARIABLES))


def run(code, **environment):
    values = {name: value for name, value in os.environ.items() if name not in VARIABLES.values()} | environment
    return subprocess.run([sys.executable, "-c", code], env=values, capture_output=True, text=True, check=False)


def test_every_flag_stands_once_and_says_why():
    assert len({flag.name for flag in FLAGS}) == len(FLAGS)
    assert all(flag.why and flag.name.startswith(f"xla_{flag.accelerator}_") for flag in FLAGS)


def test_the_installed_xla_knows_every_flag_of_gpus():
    """The CPU's compiler reads the same variable, and ends the process at a flag that it does not know."""
    words = " ".join(flag.word for flag in FLAGS if flag.accelerator == "gpu")
    code = "import jax; jax.devices('cpu')"
    assert run(code, JAX_PLATFORMS="cpu", **{XLA_FLAGS: words}).returncode == 0
    assert "Unknown flag" in run(code, JAX_PLATFORMS="cpu", **{XLA_FLAGS: f"{words} --xla_gpu_none=true"}).stderr


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: iterpref_jax[plan]")
def test_the_installed_libtpu_knows_every_flag_of_tpus():
    code = (
        "import jax, jax.numpy as jnp\n"
        "from iterpref_jax.parallel.topology import open_topology\n"
        "device = open_topology('v5e:2x2').devices[0]\n"
        "shape = jax.ShapeDtypeStruct((8, 128), jnp.float32, sharding=jax.sharding.SingleDeviceSharding(device))\n"
        "jax.jit(lambda x: x + 1).lower(shape).compile()\n"
    )
    words = " ".join(flag.word for flag in FLAGS if flag.accelerator == "tpu")
    ended = run(code, JAX_PLATFORMS="cpu", **{LIBTPU_INIT_ARGS: words})
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert run(code, JAX_PLATFORMS="cpu", **{LIBTPU_INIT_ARGS: f"{words} --xla_tpu_none=true"}).returncode != 0


def test_flags_go_into_the_variable_of_their_accelerator(all_installed):
    environment = {}
    settings = xla_flags.apply("auto", environment)
    assert [setting.origin for setting in settings] == ["iterpref"] * len(FLAGS)
    for accelerator, variable in VARIABLES.items():
        assert environment[variable].split() == [flag.word for flag in FLAGS if flag.accelerator == accelerator]


@pytest.mark.parametrize("given", ["{}=false", "{}", "--xla_other=1 {}=false --xla_more=2"])
def test_a_flag_that_the_user_has_set_stays_and_the_others_are_added(given, all_installed):
    first, *others = [flag for flag in FLAGS if flag.accelerator == "gpu"]
    environment = {XLA_FLAGS: given.format(f"--{first.name}")}
    own = xla_flags.apply("auto", environment)[0]
    assert (own.origin, own.value) == ("environment", "false" if "false" in given else "true")
    assert environment[XLA_FLAGS] == " ".join([given.format(f"--{first.name}"), *(flag.word for flag in others)])


def test_setting_them_twice_changes_nothing(all_installed):
    environment = {}
    xla_flags.apply("auto", environment)
    before = dict(environment)
    xla_flags.apply("auto", environment)
    assert environment == before


def test_none_leaves_the_environment_alone(all_installed):
    environment = {XLA_FLAGS: "--xla_other=1"}
    assert xla_flags.apply("none", environment) == []
    assert environment == {XLA_FLAGS: "--xla_other=1"}


def test_without_an_accelerators_compiler_nothing_is_set(monkeypatch):
    monkeypatch.setattr(xla_flags, "installed", lambda: ())
    environment = {}
    assert xla_flags.apply("auto", environment) == []
    assert environment == {}


def test_flags_typed_into_the_setting_are_refused_with_where_they_belong():
    with pytest.raises(UserError, match=r"compile\.xla_flags must be .* go into the environment variables XLA_FLAGS"):
        xla_flags.check("--xla_gpu_graph_level=0")


def test_they_are_set_early_enough_although_jax_and_all_of_ours_is_imported_by_then():
    """A flag that XLA does not know ends the process when it reads it: after `enable`, when devices are opened."""
    code = (
        "import iterpref_jax.train.loop\n"
        "from iterpref_jax.parallel import xla_flags\n"
        "from iterpref_jax.train import compile_cache\n"
        "xla_flags.installed = lambda: ('gpu',)\n"
        "xla_flags.FLAGS = (xla_flags.Flag('gpu', 'xla_gpu_none', 'true', 'a test'),)\n"
        "compile_cache.enable(compile_cache.CompileSettings(cache='', xla_flags='auto'))\n"
        "print('set', flush=True)\n"
        "import jax; jax.devices()\n"
    )
    ended = run(code, JAX_PLATFORMS="cpu")
    assert ended.stdout == "set\n"
    assert "Unknown flag" in ended.stderr
    assert ended.returncode != 0
