"""The step compiled from shapes: the run's own step, its memory, and what does not fit. TPUs need libtpu."""

import dataclasses
import importlib.util
import types

import jax
import pytest

from iterpref_jax import settings
from iterpref_jax.data.packing import Caps
from iterpref_jax.errors import UserError
from iterpref_jax.models.hf_config import from_hf
from iterpref_jax.parallel.topology import open_topology
from iterpref_jax.train import compiled as module
from iterpref_jax.train.compiled import DoesNotFit, compile_step
from tests.support.runs import CONFIG
from tests.support.virtual_chips import VIRTUAL, virtual_topology

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: pip install 'iterpref_jax[plan]'"
)
CAPS = Caps(tokens=256, targets=64, terms=64, pairs=2)


def run_settings(*overrides):
    given = ["data.path=none", "model.init.vocab_size=512", "rows.rows_per_microbatch=8", *overrides]
    return settings.read_run(settings.load_config(CONFIG.removeprefix("--config="), given))


def compiled(topology, run, microbatches=1):
    return compile_step(run, from_hf(run.model.init), CAPS, microbatches=microbatches, topology=topology)


@pytest.fixture(scope="module")
def cpus():
    return virtual_topology()


@pytest.fixture(scope="module")
def memory(cpus):
    return compiled(cpus, run_settings()).memory


def test_parameters_and_moments_are_split_over_the_devices(memory):
    # Of a 2-layer Qwen2 of width 64: embedding, then a layer's projections, MLP, norms; the last norm. All have the
    # embed dim, which 8 devices split; biases have not.
    kernels = 512 * 64 + 2 * (64 * 16 * (4 + 2 + 2 + 4) + 3 * 64 * 160 + 2 * 64) + 64
    biases = 2 * 16 * (4 + 2 + 2)
    assert memory.params == 4 * (kernels // 8 + biases)
    # Two moments of every parameter, and the two counters of Adam and of its schedule.
    assert memory.opt_state == 2 * memory.params + 8
    assert memory.batch == 4 * (3 * 256 + 3 * 64 + 5 * 64 + 3 * 2), "one of 8 rows of 32-bit numbers"


def test_the_peak_holds_state_batch_and_temporaries(memory):
    assert memory.peak == memory.params + memory.opt_state + memory.batch + memory.temporaries
    assert memory.temporaries > 2 * 4 * 256 * 64, "at the least what goes into the two layers, for the backward pass"


def test_a_second_microbatch_adds_a_sum_of_gradients(cpus, memory):
    two = compiled(cpus, run_settings(), microbatches=2).memory
    assert two.peak >= memory.peak + memory.params


def test_a_step_that_needs_more_than_a_device_has_does_not_fit(cpus):
    small = dataclasses.replace(cpus, chip=dataclasses.replace(VIRTUAL, usable_bytes=2**16))
    with pytest.raises(DoesNotFit, match="65536"):
        compiled(small, run_settings())


def test_rows_that_the_mesh_does_not_split_are_refused(cpus):
    with pytest.raises(UserError, match="rows_per_microbatch is 6"):
        compiled(cpus, run_settings("rows.rows_per_microbatch=6"))


@needs_libtpu
@pytest.mark.slow
def test_the_step_compiles_for_tpus_with_the_kernel_in_it():
    step = compiled(open_topology("v6e:2x4"), run_settings("model.compute.compute_dtype=bfloat16"))
    assert "tpu_custom_call" in step.text
    assert step.memory.params > 0


@pytest.mark.parametrize(
    "message",
    [
        "Ran out of memory in memory space hbm. Used 18.00G of 15.75G hbm. Exceeded hbm capacity by 2.25G.",
        "the total memory required for HLO temporaries (18.00G) exceeds available HBM (15.75G). HLO module: jit_step.",
    ],
)
def test_the_compiler_says_how_much_a_program_needs_that_is_too_large(message, cpus):
    class Lowered:
        def compile(self, compiler_options):
            raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {message}")

    nothing = types.SimpleNamespace(all_params={}, opt_state={})
    with pytest.raises(DoesNotFit) as refused:
        module._compile(Lowered(), cpus, nothing, {})
    assert (refused.value.memory.peak, refused.value.limit) == (18 * 2**30, 15.75 * 2**30)
