import ast
import concurrent.futures
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ogbench.relabel_utils import relabel_dataset

from qam_jax.data import column_cache, shards
from qam_jax.data.dataset import sample_windows
from qam_jax.data.sources import load_own
from qam_jax.envs import make_env

_ENV_NAME = "pointmaze-medium-navigate-singletask-task3-v0"
_INTERVAL = 10


@pytest.fixture(name="env", scope="module")
def _env():
    return make_env(_ENV_NAME)


def _first_numbers(source, steps):
    return [int(source.at(step).observations[0, 0]) for step in steps]


def test_files_take_turns_in_the_order_of_their_names(folder, open_folder):
    source = open_folder(folder)
    steps = [0, 9, 10, 19, 20, 29, 30, 40]
    assert _first_numbers(source, steps) == [0, 0, 100, 100, 200, 200, 0, 100]
    assert [source.next_change(step) for step in (0, 9, 10, 25)] == [10, 10, 20, 30]
    assert source.num_swaps == 4
    assert source.stall_seconds > 0
    assert "3 files" in source.description and source.path == folder
    # A run that continues begins anywhere.
    assert _first_numbers(open_folder(folder), [25, 5]) == [200, 0]


@pytest.mark.parametrize("interval", [0, _INTERVAL])
def test_one_file_never_changes(folder, open_folder, interval):
    if interval:
        for name in "bc":
            (folder / f"{name}.npz").unlink()
    source = open_folder(folder, replace_interval=interval)
    assert source.at(0) is source.at(10**6)
    assert source.next_change(0) is None
    assert source.num_swaps == 0
    assert "a.npz" in source.description


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("proportion", [1.0, 0.6])
@pytest.mark.parametrize("layout", ["compact", "next_observations"])
def test_values_equal_those_of_a_plain_load(folder, open_folder, layout, proportion, sparse, write):
    for index, name in enumerate("abc" if layout == "next_observations" else ""):
        numbers = np.arange(100 * index, 100 * index + 5 + index)
        write(
            folder / f"{name}.npz",
            100 * index,
            5 + index,
            next_observations=np.stack([numbers + 1, -numbers - 1], 1),
            terminals=(numbers % 4 == 3) | (numbers == numbers[-1]),
            masks=numbers % 4 != 3,
        )
    source = open_folder(folder, proportion=proportion, sparse=sparse)
    shapes = set()
    for step, name in zip((0, 10, 20, 30), "abca", strict=True):
        dataset = source.at(step)
        shapes.add(
            str(jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), dataset))
        )
        plain = load_own(folder / f"{name}.npz", None, sparse=sparse, proportion=proportion).dataset
        assert dataset.num_starts == plain.num_starts == plain.start_rows.size
        for field, values in vars(plain).items():
            kept = dataset[field] if values.ndim == 0 else dataset[field][: len(values)]
            np.testing.assert_array_equal(kept, values, err_msg=field)
    assert len(shapes) == 1


def test_only_real_starts_are_drawn_by_one_compiled_program(folder, open_folder):
    source = open_folder(folder)
    sample = jax.jit(lambda dataset, key: sample_windows(dataset, key, 500, 2, 1.0))
    for step, (first, rows) in {0: (0, 12), 10: (100, 20), 20: (200, 8)}.items():
        dataset = source.at(step)
        batch = sample(dataset, jax.random.PRNGKey(0))
        expected = [first + row for row in range(rows) if row % 4 != 3]
        np.testing.assert_array_equal(np.unique(batch.observations[:, 0]), expected)
        # Whoever looks at all starts finds transitions only.
        assert jnp.all(dataset.start_rows <= dataset.last_rows[dataset.start_rows])
    assert sample._cache_size() == 1


_TASKS = (
    _ENV_NAME,
    pytest.param("cube-double-play-singletask-task2-v0", marks=pytest.mark.slow),
    pytest.param("scene-play-singletask-v0", marks=pytest.mark.slow),
    "puzzle-3x3-play-singletask-v0",
)


def _states(env, rows=40):
    """Rows of OGBench's own fields, some of which reach a part of the goal."""
    env.reset()
    simulator, rng = env.unwrapped, np.random.default_rng(0)
    is_maze = hasattr(simulator, "cur_goal_xy")
    qpos = np.tile((simulator.data if is_maze else simulator._data).qpos, (rows, 1))
    if is_maze:
        qpos[::3, :2] = simulator.cur_goal_xy
    elif simulator._data.mocap_pos.size:
        qpos[::3, 14:17] = simulator._data.mocap_pos[0]
    return {
        "observations": rng.normal(size=(rows, *env.observation_space.shape)),
        "actions": rng.uniform(-1, 1, size=(rows, *env.action_space.shape)),
        "terminals": np.arange(rows) % 10 == 9,
        "qpos": qpos,
        "button_states": rng.integers(0, 2, size=(rows, getattr(simulator, "_num_buttons", 1))),
    }


@pytest.mark.parametrize("env_name", _TASKS)
def test_rewards_of_a_task_equal_those_of_ogbench(tmp_path, open_folder, env_name):
    env = make_env(env_name)
    data = _states(env)
    np.savez(tmp_path / "a.npz", **data)
    dataset = open_folder(tmp_path, env).at(0)
    relabel_dataset(env.spec.id, env.unwrapped, data)
    assert 1 < len(np.unique(data["rewards"]))
    rows = dataset.start_rows
    np.testing.assert_array_equal(dataset.rewards[rows], data["rewards"][rows])
    np.testing.assert_array_equal(dataset.masks[rows], data["masks"][rows])


def test_rewards_are_kept_for_each_task(tmp_path, open_folder, env, monkeypatch):
    np.savez(tmp_path / "a.npz", **_states(env))
    first = open_folder(tmp_path, env).at(0)
    monkeypatch.setattr(column_cache, "load_npz", None)  # the columns are made only once
    other = open_folder(tmp_path, make_env(_ENV_NAME.replace("task3", "task1"))).at(0)
    assert not np.array_equal(first.rewards, other.rewards)
    monkeypatch.setattr(column_cache, "relabel_dataset", None)
    again = open_folder(tmp_path, env).at(0)
    np.testing.assert_array_equal(first.rewards, again.rewards)


def test_rewards_of_the_file_are_taken_where_it_has_some(tmp_path, open_folder, env, write):
    data = _states(env)
    np.savez(tmp_path / "a.npz", **data, rewards=np.arange(40))
    for each in (env, None):
        assert open_folder(tmp_path, each).at(0).rewards[7] == 7
    np.savez(tmp_path / "a.npz", **data)
    with pytest.raises(ValueError, match=r"a\.npz: there are no 'rewards'.*'qpos' and one of"):
        open_folder(tmp_path, None)
    write(tmp_path / "a.npz", rewards=None)
    with pytest.raises(ValueError, match=r"no 'rewards'.*There are: actions, obs.*check --env_n"):
        open_folder(tmp_path, env)


# -------------------------------------------------------------------------- wrong from the start


def test_files_that_differ_are_named_before_anything_is_read(
    folder, open_folder, monkeypatch, write
):
    monkeypatch.setattr(column_cache, "load_npz", None)
    write(folder / "b.npz", observations=np.zeros((12, 3)))
    with pytest.raises(ValueError, match=r"b\.npz does not belong with .*a\.npz.*\[N, 3\].*\[N, 2"):
        open_folder(folder)
    write(folder / "b.npz", masks=np.ones(12))
    with pytest.raises(ValueError, match=r"b\.npz has 'masks' of shape \[N\], but a\.npz has no"):
        open_folder(folder)
    open_folder(folder, replace_interval=0)  # which uses the first alone


def test_the_files_of_another_environment_are_refused(tmp_path, open_folder, env, write):
    write(tmp_path / "a.npz", observations=np.zeros((12, 28)))
    with pytest.raises(ValueError, match=r"a\.npz: its observations have 28 dimensions.*have 2"):
        open_folder(tmp_path, env)


def test_arguments_and_folders_that_make_no_sense(folder, open_folder, tmp_path, write):
    with pytest.raises(ValueError, match="0 \\(never\\) or a number of updates, got -1"):
        open_folder(folder, replace_interval=-1)
    with pytest.raises(ValueError, match="above 0 and at most 1, got 2"):
        open_folder(folder, proportion=2)
    with pytest.raises(ValueError, match=r"c\.npz: no transition is left of 6 with.* of 0\.15"):
        open_folder(folder, proportion=0.15)
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        open_folder(tmp_path / "absent")
    write(folder / "b.npz", terminals=None)
    with pytest.raises(ValueError, match=r"b\.npz: the field 'terminals' is missing"):
        open_folder(folder)


# --------------------------------------------------------------------------------- while it runs


def test_the_next_file_is_read_while_one_trains(folder, open_folder, monkeypatch):
    read = shards.Shards._read
    threads = []

    def note(self, index):
        threads.append((index, threading.current_thread()))
        return read(self, index)

    monkeypatch.setattr(shards.Shards, "_read", note)
    source = open_folder(folder)
    for step in (0, 10, 20):
        source.at(step)
    source.close()
    assert [index for index, _ in threads] == [0, 1, 2, 0]
    main = threading.main_thread()
    assert [thread is main for _, thread in threads] == [True, False, False, False]
    assert not any(thread is not main and thread.is_alive() for _, thread in threads)
    source.close()


def test_the_thread_keeps_clear_of_what_threads_cannot_share(folder, open_folder, monkeypatch):
    sources = [open_folder(folder) for _ in range(2)]
    monkeypatch.setattr(ast, "literal_eval", None)  # NumPy parses headers with it
    for source in sources:  # the second one finds the columns of the first
        assert _first_numbers(source, (0, 10, 20)) == [0, 100, 200]
        source.close()


def _step_past(source):
    """Trains on the first file until the second one was read, or could not be."""
    source.at(0)
    concurrent.futures.wait([source._next])


def test_a_file_that_is_gone_is_named_and_can_come_back(folder, open_folder):
    source = open_folder(folder)
    (folder / "b.npz").rename(folder.parent / "b.npz")
    _step_past(source)
    with pytest.raises(FileNotFoundError, match=r"b\.npz: this file.* is gone.*same command"):
        source.at(10)
    shutil.copy(folder.parent / "b.npz", folder)  # at another time, so another version
    assert _first_numbers(source, [10]) == [100]


def test_a_file_that_was_converted_is_not_needed_any_more(folder, open_folder):
    first = open_folder(folder)
    _first_numbers(first, (0, 10, 20))
    source = open_folder(folder)
    (folder / "b.npz").unlink()
    assert _first_numbers(source, (0, 10, 20)) == [0, 100, 200]


def test_a_file_that_changes_under_a_run_is_refused(folder, open_folder, write):
    source = open_folder(folder)
    write(folder / "b.npz", 500, 20)
    source.at(0)
    with pytest.raises(ValueError, match=r"b\.npz has changed since this run began\. Put the ear"):
        source.at(10)


def test_a_damaged_file_is_named(folder, open_folder):
    source = open_folder(folder)
    content = bytearray((folder / "b.npz").read_bytes())
    content[200] ^= 0xFF  # in the middle of the observations
    (folder / "b.npz").write_bytes(content)
    source.at(0)
    with pytest.raises(ValueError, match=r"b\.npz: this is not an \.npz file, or it is damaged"):
        source.at(10)
    (folder / "a.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"a\.npz: this is not an \.npz file, or it is damaged"):
        open_folder(folder)


def test_a_file_that_breaks_a_rule_is_named(folder, open_folder, write):
    write(folder / "b.npz", actions=np.full((12, 2), 3.0))
    source = open_folder(folder)
    source.at(0)
    with pytest.raises(ValueError, match=r"b\.npz: 'actions' has 3 at row 0"):
        source.at(10)
    assert not (folder / ".columns" / "b").exists()
