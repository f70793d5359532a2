import dataclasses
import json

import pytest

from qam_jax.agents import get_config, later_fields
from qam_jax.files import DamagedError, write_json
from qam_jax.runs.folder import check_folder, find_folder, folder_of, read_config, read_metadata
from qam_jax.runs.metrics import MetricLog, read_csv
from qam_jax.runs.settings import RunSettings, resolved


@pytest.mark.parametrize(
    ("env_name", "name"),
    [("", "no_environment"), ("my_envs:D4RL/Door-v1", "my_envs_D4RL_Door-v1")],
)
def test_the_folder_of_an_environment_is_one_folder(tmp_path, env_name, name):
    settings = RunSettings(env_name=env_name, save_dir=str(tmp_path), run_id="run")
    folder = find_folder(settings, get_config("bc"))
    assert folder == tmp_path / "default" / name / "run"
    (folder / "metadata.json").write_text("{}")
    with pytest.raises(DamagedError, match=r"metadata\.json is damaged"):  # not its checkpoints
        find_folder(settings, get_config("bc"))


def test_the_default_folder_depends_on_what_is_computed(tmp_path):
    settings, config = RunSettings(save_dir=str(tmp_path)), get_config("bc")
    folder = find_folder(settings, config)
    same = {"offline_steps": 7, "online_steps": 3, "utd_ratio": 2, "eval_envs": 3}
    assert find_folder(dataclasses.replace(settings, **same), config) == folder
    other = {
        "seed": 1,
        "sparse": True,
        "success": "last",
        "reward_bias": 1.0,
        "normalize_actions": "min_max",
        "dataset_proportion": 0.5,
        "run": "exp/other",
    }
    for change in other.items():
        assert find_folder(dataclasses.replace(settings, **dict([change])), config) != folder


@pytest.mark.parametrize(
    ("name", "digest"), [("qam", "bf6a60fc"), ("ifql", "970d8668"), ("edp", "74379050")]
)
def test_a_run_of_an_earlier_version_goes_on_where_it_is(tmp_path, name, digest):
    settings, config = RunSettings(save_dir=str(tmp_path)), get_config(name)
    folder = folder_of(settings, config)
    assert folder.name == f"{name}-seed0-{digest}"
    saved = resolved(settings, config)
    names = "num_seeds obs_keys demos success reward_scale normalize_actions offline_ratio"
    for setting in names.split():
        del saved[setting]
    for field in later_fields(name):
        saved["agent"].pop(field, None)
    folder.mkdir(parents=True)
    write_json(folder / "config.json", saved)
    check_folder(folder, settings, config)
    assert read_config(folder) == json.loads(json.dumps(resolved(settings, config)))
    config.compute_dtype = "bfloat16"
    difference = r"config: agent\.compute_dtype is 'float32' there and 'bfloat16' here\."
    with pytest.raises(ValueError, match=difference):
        check_folder(folder, settings, config)
    assert folder_of(settings, config) != folder


_METADATA = {
    "starts": [{}], "dataset_source": "", "dataset_fingerprint": "", "observation_dim": 1,
    "action_dim": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    "content",
    ["[]", "3", json.dumps({**_METADATA, "starts": []})]
    + [json.dumps({key: _METADATA[key] for key in _METADATA if key != name}) for name in _METADATA],
)
def test_metadata_that_are_none_name_the_file(content, tmp_path):
    (tmp_path / "metadata.json").write_text(content)
    with pytest.raises(DamagedError, match=r"metadata\.json is damaged \(not "):
        read_metadata(tmp_path)
    write_json(tmp_path / "metadata.json", _METADATA)
    assert read_metadata(tmp_path) == _METADATA
    (tmp_path / "metadata.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no .*metadata\.json, .* Restore it from a copy"):
        read_metadata(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "is damaged"),
        ('{"agent": 5}', "is damaged"),
        ('{"agent": {"agent_name": "sac"}}', "unknown algorithm 'sac'"),
        ('{"agent": {"agent_name": 5}}', "unknown algorithm 5"),
    ],
)
def test_a_config_that_is_none_names_the_file(content, message, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=rf"config\.json.* {message}"):
        read_config(tmp_path)


@pytest.mark.parametrize("row", ["1,a", "1,2,3", ",1"])
def test_damaged_metrics_name_the_file(row, tmp_path):
    (tmp_path / "eval.csv").write_text(f"step,success\n{row}\n")
    with pytest.raises(DamagedError, match=r"eval\.csv is damaged"):
        read_csv(tmp_path / "eval.csv")


def test_metrics_whose_file_was_moved_away_begin_a_whole_one(tmp_path):
    log = MetricLog(tmp_path, {"train": 0}, "", {})
    log.write("train", 1, {"loss": 2.0})
    (tmp_path / "train.csv").rename(tmp_path / "kept.csv")
    log.write("train", 2, {"loss": 3.0})
    log.close()
    assert read_csv(tmp_path / "train.csv") == [{"step": 2, "loss": 3}]
