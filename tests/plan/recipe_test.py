"""The 7B recipe planned for real chips; needs the TPU's compiler."""

import importlib.util
import json

import pytest

from iterpref_jax.cli import plan as command
from tests.support.runs import ROOT

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: pip install 'iterpref_jax[plan]'"
)


@needs_libtpu
@pytest.mark.slow
def test_the_7b_recipe_is_planned_for_eight_v6e(tmp_path):
    recipe = f"--config={ROOT}/configs/target_rpo_qwen2_5_coder_7b.py"
    command.main([recipe, "--topology=v6e:2x4", f"--json={tmp_path}/plan.json"])
    found = json.loads((tmp_path / "plan.json").read_text())
    # 7,615,616,512 float32 parameters over eight chips; biases, which are few, lie on all of them.
    assert found["memory"]["params"] == pytest.approx(4 * 7_615_616_512 / 8, rel=1e-3)
    assert found["memory"]["optimizer"] == pytest.approx(2 * found["memory"]["params"], rel=1e-6)
    assert found["fits"]
    gathered = sum(total["size"] for total in found["collectives"] if total["kind"] != "all-reduce")
    # In bfloat16, at least: every layer's weights twice a microbatch, and their gradients once.
    layers = 2 * 28 * 233_046_528 * found["microbatches"]
    assert gathered > 3 * layers
