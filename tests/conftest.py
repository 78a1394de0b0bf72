"""Eight virtual CPU devices for every test, and fast compilation; set before JAX starts.

With JAX_PLATFORMS=cuda the tests of tests/ops run on a GPU, those that need one too.
"""

import os

import hypothesis

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests neither read nor fill the user's cache of compiled programs.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", "")
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

# The same examples in every run, and no deadline: a busy machine must not fail a test.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True)
hypothesis.settings.load_profile("suite")
