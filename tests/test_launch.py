import dataclasses
import logging

import pytest

from qam_jax.agents import get_config
from qam_jax.launch import apply_preset
from qam_jax.training.settings import RunSettings

_CUBE = "cube-double-play-singletask-task2-v0"
_QUADRUPLE = "cube-quadruple-play-singletask-task2-v0"


def _settings(env_name=_CUBE, **changes):
    return RunSettings(env_name=env_name, preset="paper", **changes)


def test_what_is_not_given_becomes_the_presets():
    settings, config = apply_preset(_settings(), get_config("qam_e"), set())
    assert (settings.offline_steps, settings.online_steps) == (1_000_000, 500_000)
    assert (config.agent_name, config.edit_scale, config.inv_temp) == ("qam_e", 0.0, 1.0)
    assert settings.preset == "paper --online_steps=500000 --config.edit_scale=0.0"


def test_what_is_given_stays(caplog):
    given = {"online_steps": 7, "balanced_sampling": False}
    config = get_config("rlpd")
    config.bc_alpha = 0.7
    with caplog.at_level(logging.INFO, "qam_jax"):
        settings, after = apply_preset(_settings(**given), config, {*given, "config.bc_alpha"})
    assert {name: getattr(settings, name) for name in given} == given
    assert after == config
    assert settings.preset == "paper --offline_steps=0"
    assert "--offline_steps=0 (without it: 1000000)" in caplog.text
    assert "--config.bc_alpha=0.7 is given and stays; the preset has 0.1" in caplog.text


def test_the_large_datasets_have_to_be_there(tmp_path):
    settings, config = _settings(_QUADRUPLE, dataset_dir=str(tmp_path)), get_config("qam")
    with pytest.raises(FileNotFoundError, match=r"100 files.*--ogbench_dataset_dir= \(empty\)"):
        apply_preset(settings, config, set())
    small, _ = apply_preset(settings, config, {"ogbench_dataset_dir"})
    assert small.ogbench_dataset_dir == ""
    own, _ = apply_preset(dataclasses.replace(settings, dataset="mine.npz"), config, {"dataset"})
    assert own.ogbench_dataset_dir == ""
    folder = tmp_path / "cube-quadruple-play-100m-v0"
    folder.mkdir()
    large, _ = apply_preset(settings, config, set())
    assert large.ogbench_dataset_dir == str(folder)


def test_unknown_presets_are_refused():
    with pytest.raises(ValueError, match="no preset 'papr': give --preset=paper"):
        apply_preset(dataclasses.replace(_settings(), preset="papr"), get_config("qam"), set())
