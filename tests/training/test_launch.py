import dataclasses

import pytest

from qam_jax.agents import get_config
from qam_jax.runs.settings import RunSettings
from qam_jax.training.launch import apply_preset, check_data_folder

_CUBE = "cube-double-play-singletask-task2-v0"
_QUADRUPLE = "cube-quadruple-play-singletask-task2-v0"


def _settings(env_name=_CUBE, **changes):
    return RunSettings(env_name=env_name, preset="paper", **changes)


def test_what_is_not_given_becomes_the_presets():
    settings, config, _ = apply_preset(_settings(), get_config("qam_e"), set())
    assert (settings.offline_steps, settings.online_steps) == (1_000_000, 500_000)
    assert (config.agent_name, config.edit_scale, config.inv_temp) == ("qam_e", 0.0, 1.0)
    assert settings.preset == "paper --online_steps=500000 --config.edit_scale=0.0"


def test_what_is_given_stays():
    given = {"online_steps": 7, "balanced_sampling": False}
    config = get_config("rlpd")
    config.bc_alpha = 0.7
    settings, after, notes = apply_preset(_settings(**given), config, {*given, "config.bc_alpha"})
    assert {name: getattr(settings, name) for name in given} == given
    assert after == config
    assert settings.preset == "paper --offline_steps=0"
    assert "  --offline_steps=0 (without it: 1000000)" in notes
    assert "  --config.bc_alpha=0.7 is given and stays; the preset has 0.1" in notes


def test_what_a_config_file_changes_is_said_not_to_be_the_papers():
    config = get_config("qam")
    config.update({"lr": 1e-3, "num_qs": 2})
    _, after, notes = apply_preset(_settings(), config, {"config.num_qs"})
    assert after.lr == 1e-3
    said = [note for note in notes if "not the paper's" in note]
    assert said == ["  not the paper's: --config holds lr=0.001, by default 0.0003"]


def test_the_large_datasets_have_to_be_there(tmp_path):
    settings = _settings(_QUADRUPLE, dataset_dir=str(tmp_path))
    folder = tmp_path / "cube-quadruple-play-100m-v0"

    def resolve(*given, **changes):
        changed = dataclasses.replace(settings, **changes)
        return apply_preset(changed, get_config("qam"), set(given)).settings

    with pytest.raises(FileNotFoundError, match=r"100 files.*--ogbench_dataset_dir= \(empty\)"):
        check_data_folder(resolve())
    for other in (resolve("ogbench_dataset_dir"), resolve("dataset", dataset="mine.npz")):
        assert other.ogbench_dataset_dir == ""
        check_data_folder(other)
    folder.mkdir()
    check_data_folder(resolve())
    assert resolve().ogbench_dataset_dir == str(folder)


def test_unknown_presets_are_refused():
    with pytest.raises(ValueError, match="no preset 'papr': give --preset=paper"):
        apply_preset(dataclasses.replace(_settings(), preset="papr"), get_config("qam"), set())
