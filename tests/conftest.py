"""Eight virtual CPU devices for every test, and fast compilation; set before JAX starts.

With JAX_PLATFORMS=cuda the tests of tests/ops run on a GPU, those that need one too.
"""

import os
import signal
import tempfile
import time
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests neither read nor fill the user's cache of compiled programs. All processes of one run share one of its own: a
# third of a run's time goes into programs that another test or process has compiled.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _programs = tempfile.TemporaryDirectory(prefix="iterpref-programs-", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs.name
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
# Tests compile hundreds of tiny programs and run each a few times: LLVM's optimisation costs more than it saves.
_FLAGS = {
    "--xla_force_host_platform_device_count": "8",
    "--xla_backend_optimization_level": "0",
    "--xla_llvm_disable_expensive_passes": "true",
}
if os.environ["JAX_PLATFORMS"] == "cpu":
    _given = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = " ".join(
        [_given, *(f"{name}={value}" for name, value in _FLAGS.items() if name not in _given)]
    )

# A shell's background jobs ignore Ctrl-C, and so would all that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run, and no deadline: a busy machine must not fail a test.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True)
hypothesis.settings.load_profile("suite")

# A machine of CI may be three times as slow as another, and its time is limited: what is not slow runs to the end.
SLOW_UNTIL = float(os.environ.get("ITERPREF_SLOW_UNTIL", "inf"))
LEFT_OUT = "slow, and it is later than ITERPREF_SLOW_UNTIL"

# A process may have 65,530 mappings of memory (vm.max_map_count), every compiled program has some, and LLVM crashes
# where it gets none.
MOST_MAPPINGS = 30_000


@pytest.fixture(scope="module", autouse=True)
def _few_compiled_programs():
    """Forgets compiled programs between two files of tests when there are very many."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_text().count("\n") > MOST_MAPPINGS:
        import jax

        jax.clear_caches()


def pytest_runtest_setup(item):
    if time.time() > SLOW_UNTIL and item.get_closest_marker("slow"):
        pytest.skip(LEFT_OUT)


def pytest_terminal_summary(terminalreporter):
    left_out = [one for one in terminalreporter.stats.get("skipped", ()) if LEFT_OUT in str(one.longrepr)]
    if left_out:
        terminalreporter.write_line(f"{len(left_out)} slow tests were left out: later than ITERPREF_SLOW_UNTIL")
