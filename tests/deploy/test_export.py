import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from jax import export

from qam_jax.agents import algorithm_names
from qam_jax.deploy import export as module
from qam_jax.deploy.export import export_policy
from qam_jax.deploy.policy import load_policy
from qam_jax.files import DamagedError

_OBSERVATIONS = np.random.default_rng(0).normal([1, 2, 3], [1, 2, 0.5], (3, 3)).astype(np.float32)


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


@pytest.mark.slow
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


def test_an_export_is_replaced_only_when_asked(qam_run, exported, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(exported[0], out)
    with pytest.raises(FileExistsError, match="add --overwrite, or give another --out"):
        export_policy(qam_run, out, ["safetensors"])
    with pytest.raises(FileExistsError, match="is no export"):
        export_policy(qam_run, qam_run, ["safetensors"], overwrite=True)
    wrong = {"safetensors": lambda *_: ({}, float("nan"))}
    with monkeypatch.context() as patched:
        patched.setattr(module, "FORMATS", wrong)
        with pytest.raises(ValueError, match="safetensors export differs from the checkpoint by n"):
            export_policy(qam_run, out, ["safetensors"], overwrite=True)
    assert _facts(out) == _facts(exported[0])  # as it was
    export_policy(qam_run, out, ["safetensors"], overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == ["policy.json", "policy.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(FileNotFoundError, match="Parameters alone do not act"):
        load_policy(out)


def test_a_link_leads_to_the_export_before_and_after(qam_run, tmp_path):
    (tmp_path / "link").symlink_to("out")
    for overwrite in (False, True):
        export_policy(qam_run, tmp_path / "link", ["safetensors"], overwrite=overwrite)
        assert (tmp_path / "link").is_symlink()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "out"]
        assert (tmp_path / "out" / "policy.safetensors").exists()


def test_requests_that_make_no_sense(qam_run, exported, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="is an export, not a run: give the folder of its run"):
        export_policy(exported[0], tmp_path / "out")
    for formats in ([], ["onnx", "pickle"]):
        with pytest.raises(ValueError, match="expected some of stablehlo, onnx, safetensors"):
            export_policy(qam_run, tmp_path / "out", formats)
    with pytest.raises(ValueError, match="the tolerance must be a number of at least 0, got nan"):
        export_policy(qam_run, tmp_path / "out", tolerance=float("nan"))
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r'needs onnx: pip install "qam_jax\[export\]"'):
        export_policy(qam_run, tmp_path / "out", ["onnx"])
    assert not list(tmp_path.iterdir())


def test_what_is_wrong_with_an_export_is_said(exported, tmp_path):
    with pytest.raises(FileNotFoundError, match="is of step 4, not 2"):
        load_policy(exported[0], step=2)
    shutil.copytree(exported[0], tmp_path / "out")
    for name in ("policy.stablehlo", "policy.onnx"):
        (tmp_path / "out" / name).write_bytes(b"no program")
        with pytest.raises(DamagedError, match=f"{name} is damaged .* Export the run again"):
            load_policy(tmp_path / "out" / name)


_PAGE = Path(__file__).parents[2] / "docs" / "deploy.md"
_ROW = re.compile(r"^\| (`\w+`(?:, `\w+`)*) \| (\w+) \| (\w+) \| (.*) \|$", re.MULTILINE)


def _documented():
    """Of each method: whether it is exported as StableHLO and ONNX, and the inputs for noise."""
    rows = _ROW.findall(_PAGE.read_text(encoding="utf-8"))
    return {
        name: (program, model, re.findall("noise_[0-9]", inputs))
        for names, program, model, inputs in rows
        for name in re.findall(r"\w+", names)
    }


def test_the_page_names_every_method():
    assert sorted(_documented()) == sorted(algorithm_names())


@pytest.mark.slow
@pytest.mark.parametrize("name", algorithm_names())
def test_every_method_is_exported_as_the_page_says(name, save_run, tmp_path):
    differences = export_policy(save_run(name, best_of_n=3), tmp_path / "out")
    assert max(differences.values()) < 3e-5  # rounding: by the processor, up to 1.1e-5
    inputs = _facts(tmp_path / "out")["formats"]["onnx"]["inputs"]
    assert _documented()[name] == ("yes", "yes", sorted(inputs.keys() - {"observations"}))
