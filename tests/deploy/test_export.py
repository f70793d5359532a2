import json
import subprocess
import sys

import numpy as np
import pytest
from jax import export

from qam_jax.deploy.export import export_policy
from qam_jax.deploy.policy import load_policy

_OBSERVATIONS = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)


@pytest.fixture(name="exported", scope="session")
def _exported(qam_run, tmp_path_factory):
    """Folder of an export, and its differences from the checkpoint."""
    out = tmp_path_factory.mktemp("exports") / "qam"
    return out, export_policy(qam_run, out)


def _facts(folder):
    return json.loads((folder / "policy.json").read_text())


def test_every_format_agrees_with_the_checkpoint(exported):
    out, differences = exported
    assert list(differences) == ["stablehlo", "onnx", "safetensors"]
    assert differences["safetensors"] == 0
    assert max(differences.values()) < 1e-5
    assert sorted(path.name for path in out.iterdir()) == [
        "policy.json", "policy.onnx", "policy.safetensors", "policy.stablehlo",
    ]  # fmt: skip
    assert [path.name for path in out.parent.iterdir()] == ["qam"]


def test_an_exported_policy_acts_as_the_run_does(exported, qam_run):
    loaded, saved = load_policy(exported[0], seed=3), load_policy(qam_run, seed=3)
    for policy in (loaded, saved):
        policy.reset()
    for observation in _OBSERVATIONS:
        np.testing.assert_allclose(loaded.act(observation), saved.act(observation), atol=1e-5)
    assert {**saved.metadata, "formats": loaded.metadata["formats"]} == loaded.metadata


def test_an_onnx_policy_draws_its_own_noise(exported):
    first, same, other = (load_policy(exported[0] / "policy.onnx", seed=s) for s in (0, 0, 1))
    actions = [policy.act_chunk(_OBSERVATIONS[0]) for policy in (first, same, other)]
    assert actions[0].shape == (2, 2)
    np.testing.assert_array_equal(actions[0], actions[1])
    assert not np.array_equal(actions[0], actions[2])
    assert not np.array_equal(actions[0], first.act_chunk(_OBSERVATIONS[0]))


_LOADER = """
import numpy as np
from jax import export
program = export.deserialize(bytearray(open("policy.stablehlo", "rb").read()))
observations = np.zeros((1, 3), np.float32)
keys = np.array([[0, 1]], np.uint32)  # any two numbers, others for each decision
actions = program.call(observations, keys)[0]  # [H, A]
"""
_ABSENT = "import sys\nsys.modules.update(dict.fromkeys(['qam_jax', 'flax', 'optax']))"


def test_a_program_needs_no_package_but_jax(exported):
    code = f"{_ABSENT}{_LOADER}print(actions.tolist())"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=exported[0], capture_output=True, text=True, check=True)
    program = export.deserialize(bytearray((exported[0] / "policy.stablehlo").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    expected = program.call(np.zeros((1, 3), np.float32), np.array([[0, 1]], np.uint32))[0]
    np.testing.assert_allclose(json.loads(result.stdout), expected, atol=1e-5)


def test_the_json_says_what_the_files_are(exported, qam_run):
    formats = _facts(exported[0])["formats"]
    assert formats["onnx"]["inputs"]["noise_0"] == {
        "shape": ["batch", 3, 4], "dtype": "float32",
        "distribution": "normal, mean 0, standard deviation 1, independent",
    }  # fmt: skip
    assert formats["onnx"]["inputs"].keys() == {"observations", "noise_0"}
    assert formats["stablehlo"]["inputs"]["keys"]["shape"] == ["batch", 2]
    parameters = formats["safetensors"]["parameters"]
    name = "params/flow/MLP_0/Dense_0/kernel"
    assert parameters[name] == {"shape": [3 + 4 + 1, 8], "dtype": "float32"}
    assert _facts(exported[0])["agent"]["best_of_n"] == 3
