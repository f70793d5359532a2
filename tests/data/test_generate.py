"""Tests of `qam_jax.data.generate` and of its command, `experiments/generate_dataset.py`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import ogbench
import pytest

from qam_jax.data import generate

_ROOT = Path(__file__).parents[2]
_PUBLISHED = {  # environment -> kind -> (episodes, length)
    **{
        f"pointmaze-{size}": {"navigate": (1000, 1001), "stitch": (5000, 201)}
        for size in ("medium", "large", "teleport")
    },
    "pointmaze-giant": {"navigate": (500, 2001), "stitch": (5000, 201)},
    **{
        base: {"play": (num_episodes, 1001), "noisy": (num_episodes, 1001)}
        for base, num_episodes in (
            ("cube-single", 1000),
            ("cube-double", 1000),
            ("cube-triple", 3000),
            ("cube-quadruple", 5000),
            ("scene", 1000),
            ("puzzle-3x3", 1000),
            ("puzzle-4x4", 1000),
            ("puzzle-4x5", 3000),
            ("puzzle-4x6", 5000),
        )
    },
}


def test_recipes_are_as_published():
    expected = {
        f"{base}-{kind}-v0": (f"{base}-v0", kind, *size)
        for base, kinds in _PUBLISHED.items()
        for kind, size in kinds.items()
    }
    names = [name for name in generate.generatable_names() if not name.startswith("metaworld-")]
    recipes = {name: generate.get_recipe(name) for name in names}
    assert {name: recipe[1:5] for name, recipe in recipes.items()} == expected
    for name, recipe in recipes.items():
        assert recipe.name == name
        assert recipe.noise == (0.5 if name.startswith("pointmaze") else 0.1)
        p_random = {"puzzle": 0.2}.get(name.split("-")[0], 0.1) if recipe.kind == "noisy" else 0.0
        assert recipe.p_random_action == p_random
    assert generate.get_recipe("cube-single-play-v0").p_stack == (0.0, 0.0)
    assert generate.get_recipe("cube-double-play-v0").p_stack == (0.0, 0.25)
    assert generate.get_recipe("cube-triple-noisy-v0").p_stack == (0.05, 0.35)
    assert generate.get_recipe("cube-quadruple-play-v0").p_stack == (0.1, 0.5)
    assert generate.get_recipe("scene-play-v0").p_stack == (0.5, 0.5)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("antmaze-medium-navigate-v0", "trained expert policies"),
        ("humanoidmaze-giant-stitch-v0", "trained expert policies"),
        ("antsoccer-arena-navigate-v0", "trained expert policies"),
        ("visual-antmaze-medium-navigate-v0", "images"),
        ("powderworld-easy-play-v0", "not supported"),
    ],
)
def test_names_that_cannot_be_made(name, reason, tmp_path):
    with pytest.raises(ValueError, match=rf"{name}.*{reason}.*--data_source=download") as error:
        generate.generate_dataset(name, tmp_path / "new")
    assert f"{name}-val.npz" in str(error.value)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["cube-single-play", "pointmaze-medium-explore-v0", ""])
def test_unknown_names_list_those_that_exist(name):
    with pytest.raises(ValueError, match=r"unknown dataset .*pointmaze-medium-navigate-v0.*4x6"):
        generate.get_recipe(name)


@pytest.mark.parametrize(
    "argument", [{"num_episodes": 0}, {"seed": -1}, {"num_processes": 0}], ids=str
)
def test_bad_numbers(argument, tmp_path):
    with pytest.raises(ValueError, match=f"{next(iter(argument))} must be at least"):
        generate.generate_dataset("pointmaze-medium-stitch-v0", tmp_path, **argument)


@pytest.fixture(scope="module")
def stitch_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stitch")
    path = generate.generate_dataset(
        "pointmaze-medium-stitch-v0", folder, num_episodes=11, num_processes=1, progress=False
    )
    assert path == folder / "pointmaze-medium-stitch-v0.npz"
    return folder


@pytest.mark.slow
def test_number_of_processes_changes_nothing(stitch_dir, tmp_path):
    generate.generate_dataset(
        "pointmaze-medium-stitch-v0", tmp_path, num_episodes=11, num_processes=2, progress=False
    )
    names = sorted(path.name for path in stitch_dir.iterdir())
    assert names == ["pointmaze-medium-stitch-v0-val.npz", "pointmaze-medium-stitch-v0.npz"]
    for name in names:
        assert (tmp_path / name).read_bytes() == (stitch_dir / name).read_bytes()


def test_file_content(stitch_dir):
    with np.load(stitch_dir / "pointmaze-medium-stitch-v0.npz") as file:  # without pickle
        data = dict(file)
    assert data.pop("terminals").nonzero()[0].tolist() == list(range(200, 11 * 201, 201))
    generator = json.loads(data.pop("generator").item())
    assert generator["recipe"]["name"] == "pointmaze-medium-stitch-v0"
    assert generator["recipe"]["num_episodes"] == 11 and generator["recipe"]["noise"] == 0.5
    assert generator["seed"] == 0
    assert sorted(generator["versions"]) == ["mujoco", "numpy", "ogbench"]
    assert data.keys() == {"observations", "actions", "qpos", "qvel"}
    for values in data.values():
        assert values.shape == (11 * 201, 2) and values.dtype == np.float32
        assert np.all(np.isfinite(values))
    with np.load(stitch_dir / "pointmaze-medium-stitch-v0-val.npz") as file:
        assert file["actions"].shape == (201, 2)  # a tenth of the episodes, and at least one
        assert not np.array_equal(file["actions"], data["actions"][:201])


def test_ogbench_loads_a_maze(stitch_dir):
    env, train, val = ogbench.make_env_and_datasets(
        "pointmaze-medium-stitch-singletask-task1-v0",
        dataset_dir=str(stitch_dir),
        compact_dataset=True,
    )
    env.close()
    assert train["rewards"].shape == (11 * 201,) and val["masks"].shape == (201,)
    assert train["valids"].sum() == 11 * 200
    _, train, _ = ogbench.make_env_and_datasets(
        "pointmaze-medium-stitch-v0", dataset_dir=str(stitch_dir)
    )
    free = ~np.any(train["observations"] == train["next_observations"], axis=1)
    moves = (train["next_observations"] - train["observations"])[free]
    assert np.sum(moves * train["actions"][free], axis=1).mean() > 0.1


@pytest.mark.slow
def test_ogbench_loads_a_manipulation_task(tmp_path):
    recipe = generate.get_recipe("scene-noisy-v0")._replace(num_episodes=1, episode_length=20)
    path = generate._generate(recipe, tmp_path, seed=1, num_processes=1, progress=False)
    dataset = ogbench.load_dataset(path, compact_dataset=True, add_info=True)
    assert dataset["button_states"].shape == (20, 2)
    assert dataset["button_states"].dtype == np.int64
    assert dataset["observations"].shape == (20, 40)
    _, train, val = ogbench.make_env_and_datasets(
        "scene-noisy-singletask-task2-v0", dataset_dir=str(tmp_path)
    )
    assert train["rewards"].shape == val["rewards"].shape == (19,)


def _assert_fails(recipe, folder, message):
    with pytest.raises(ChildProcessError, match=message):
        generate._generate(recipe, folder, seed=7, num_processes=1, progress=False)
    assert list(folder.iterdir()) == []


def test_failing_episode_leaves_no_file(tmp_path):
    recipe = generate.get_recipe("cube-single-play-v0")._replace(env_id="no-such-cube-v0")
    _assert_fails(
        recipe, tmp_path, r"episode 0 of 'cube-single-play-v0' failed \(seed 7\).*no-such"
    )


class _KillsItsReader:
    def __reduce__(self):
        return os._exit, (3,)


def test_dying_worker_leaves_no_file(tmp_path):
    recipe = generate.get_recipe("cube-single-play-v0")._replace(env_id=_KillsItsReader())
    _assert_fails(recipe, tmp_path, r"a worker process died.* 'cube-s.*\(seed 7\)")


def test_interruption_leaves_no_file(tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "_collect", interrupt)
    with pytest.raises(KeyboardInterrupt):
        generate.generate_dataset("cube-single-play-v0", tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_folder_is_found_before_simulating(tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "_collect", lambda *args: pytest.fail("simulated"))
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write to the folder .*file"):
        generate.generate_dataset("cube-single-play-v0", tmp_path / "file", progress=False)


def _command(*arguments):
    return subprocess.run(
        [sys.executable, _ROOT / "experiments" / "generate_dataset.py", *arguments],
        env=os.environ | {"PYTHONPATH": str(_ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_command_lists_names():
    result = _command("--list")
    assert result.returncode == 0
    assert result.stdout.split() == generate.generatable_names()


def test_command_reports_errors_in_one_message(tmp_path):
    name = "antmaze-medium-navigate-singletask-v0"
    result = _command(f"--dataset={name}", f"--dataset_dir={tmp_path}")
    assert result.returncode == 1
    assert "'antmaze-medium-navigate-v0' cannot be generated" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_command_keeps_existing_files_and_replaces_them_on_request(tmp_path):
    path = tmp_path / "pointmaze-medium-stitch-v0.npz"
    path.write_bytes(b"mine")
    arguments = [
        "--dataset=pointmaze-medium-stitch-singletask-task3-v0",
        f"--dataset_dir={tmp_path}",
        "--num_episodes=1",
        "--num_processes=1",
    ]
    result = _command(*arguments)
    assert result.returncode == 0 and "--overwrite" in result.stdout
    assert path.read_bytes() == b"mine"
    result = _command(*arguments, "--overwrite")
    assert result.returncode == 0, result.stderr
    assert np.load(path)["actions"].shape == (201, 2)
