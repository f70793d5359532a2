"""Folders in the layout that LeRobot publishes ("LeRobotDataset v3.0"), written with PyArrow.

LeRobot itself needs torch. Its `io_utils.py` was read for how features become columns.
"""

import json
import sys

import numpy as np
import pandas as pd
import pytest

from qam_jax.data import sources
from qam_jax.data.demonstrations import Choice

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

_LENGTHS, _TASKS = (4, 3, 5), ("lift the cube", "drop the cube")
_FILES = (slice(0, 7), slice(7, 12))  # two episodes in the first file, one in the second


def _frames():
    """Columns of three episodes, of which the second fails; its task is the second one."""
    rng, n = np.random.default_rng(0), sum(_LENGTHS)
    episodes = np.repeat(np.arange(3), _LENGTHS)
    ends = np.append(np.diff(episodes) != 0, True)
    return {
        "observation.state": rng.normal(size=(n, 3)).astype(np.float32),
        "observation.environment_state": rng.normal(size=(n, 2)).astype(np.float32),
        "observation.gripper": rng.normal(size=n).astype(np.float32),  # of shape (1,)
        "action": rng.uniform(-1, 1, (n, 2)).astype(np.float32),
        "next.reward": (ends & (episodes != 1)).astype(np.float32),
        "next.success": ends & (episodes != 1),
        "next.done": ends,
        "timestamp": (np.arange(n) / 30).astype(np.float32),
        "frame_index": np.concatenate([np.arange(length) for length in _LENGTHS]),
        "episode_index": episodes,
        "index": np.arange(n),
        "task_index": (episodes == 1).astype(int),
    }


def _column(array, fixed):
    if isinstance(array, list) or array.ndim == 1:
        return pa.array(array)
    if fixed:  # as Hugging Face's `datasets` writes vectors
        return pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), array.shape[1])
    return pa.array(list(array))  # as pandas does


def _write(folder, frames, fixed=True, info=(), tasks="tasks.parquet"):
    """Writes a dataset; the columns may be of any lengths that the files can hold."""
    for index, rows in enumerate(_FILES):
        table = {name: _column(array[rows], fixed) for name, array in frames.items()}
        path = folder / f"data/chunk-{index:03d}/file-000.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.table(table), path)
    features = {
        name: {"dtype": str(np.asarray(array).dtype), "shape": list(np.shape(array)[1:]) or [1]}
        for name, array in _frames().items()
        if name in frames or not name.startswith("next.")
    }
    features["observation.images.top"] = {"dtype": "video", "shape": [480, 640, 3]}
    info = {
        "codebase_version": "v3.0",
        "total_frames": 12,
        "total_episodes": 3,
        "features": features,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        **dict(info),
    }
    (folder / "meta").mkdir()
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    if tasks == "tasks.parquet":
        table = pd.DataFrame({"task_index": range(2)}, index=pd.Index(_TASKS, name="task"))
        table.to_parquet(folder / "meta" / tasks)
    else:
        lines = [json.dumps({"task_index": i, "task": task}) for i, task in enumerate(_TASKS)]
        (folder / "meta" / tasks).write_text("\n".join(lines))
    return folder


def _as_npz(frames, keys=("observation.state", "observation.environment_state"), masks=None):
    """The same data in the fields of an .npz file, without the final rows of failures."""
    parts = [frames[key].reshape(12, -1) for key in keys]
    observations, ends = np.concatenate(parts, axis=1), np.copy(frames["next.done"])
    masks = 1.0 - frames["next.success"] if masks is None else masks
    following = observations[np.where(ends, np.arange(12), np.arange(12) + 1)]
    unknown = ends & (masks == 1)
    ends[:-1] |= unknown[1:]
    fields = {
        "observations": observations,
        "actions": frames["action"],
        "terminals": ends,
        "rewards": frames.get("next.reward", 0.0 - masks),
        "masks": masks,
        "next_observations": following,
    }
    return {name: array[~unknown] for name, array in fields.items()}


def _load(folder, **choice):
    return sources.load_own(f"lerobot:{folder}", None, choice=Choice(**choice))


def _assert_same(loaded, tmp_path, arrays):
    np.savez(tmp_path / "same.npz", **arrays)
    expected = sources.load_own(tmp_path / "same.npz", None)
    for name, array in vars(expected.dataset).items():
        np.testing.assert_array_equal(getattr(loaded.dataset, name), array, err_msg=name)
    assert loaded.fingerprint() == expected.fingerprint()


@pytest.mark.parametrize("fixed", [True, False])
def test_a_folder_equals_the_same_data_as_npz(tmp_path, fixed):
    frames = _frames()
    folder = _write(tmp_path / "cube", frames, fixed)
    loaded = _load(folder)
    _assert_same(loaded, tmp_path, _as_npz(frames))
    assert loaded.path == folder
    assert loaded.description == (
        f"lerobot:{folder}: 3 episodes, 2 of them with a success; observations: observation.state, "
        "observation.environment_state (left out: observation.gripper, observation.images.top)"
    )


def test_features_are_chosen(tmp_path):
    keys = ("observation.gripper", "observation.state")
    loaded = _load(_write(tmp_path / "cube", _frames()), obs_keys=keys)
    _assert_same(loaded, tmp_path, _as_npz(_frames(), keys))


def test_success_is_where_the_flag_says(tmp_path):
    frames = _frames()
    folder = _write(tmp_path / "cube", frames)
    done, rewarded = frames["next.done"], frames["next.reward"] == 1
    rules = {"last": done, "next.done": done, "reward": rewarded, "none": np.zeros(12, bool)}
    for rule, success in rules.items():
        _assert_same(_load(folder, success=rule), tmp_path, _as_npz(frames, masks=1.0 - success))


def test_recordings_without_rewards_need_a_rule(tmp_path):
    frames = {name: a for name, a in _frames().items() if name not in ("next.reward",)}
    del frames["next.success"]
    folder = _write(tmp_path / "cube", frames)
    with pytest.raises(ValueError, match=r"no 'next.success' to say where .*--success: last"):
        _load(folder)
    with pytest.raises(ValueError, match=r"needs rewards in \[0, 1\]; they are from nan"):
        _load(folder, success="reward")
    for rule, success in {"last": frames["next.done"], "none": np.zeros(12)}.items():
        _assert_same(_load(folder, success=rule), tmp_path, _as_npz(frames, masks=1.0 - success))


@pytest.mark.parametrize("tasks", ["tasks.parquet", "tasks.jsonl"])
def test_episodes_of_a_task(tmp_path, tasks):
    version = {"codebase_version": "v3.0" if tasks == "tasks.parquet" else "v2.1"}
    folder = _write(tmp_path / "cube", _frames(), info=version, tasks=tasks)
    expected = {name: array[[4, 5]] for name, array in _as_npz(_frames()).items()}
    _assert_same(_load(folder, demos="drop the cube"), tmp_path, expected)
    with pytest.raises(ValueError, match=r"no task 'drop' \(--demos\).* 'lift the cube', 'drop"):
        _load(folder, demos="drop")


def test_a_task_may_be_a_part_of_an_episode(tmp_path):
    frames = _frames()
    frames["task_index"] = np.array([0, 0, 1, 1] + [0] * 7 + [1])
    loaded = _load(_write(tmp_path / "cube", frames), demos="drop the cube", success="last")
    state = frames["observation.state"]
    dataset = loaded.dataset
    np.testing.assert_array_equal(dataset.masks[dataset.start_rows], [1, 0, 0])
    np.testing.assert_array_equal(dataset.observations[dataset.start_rows, :3], state[[2, 3, 11]])


def _with(name, change):
    frames = _frames()
    return {**frames, name: change(frames[name])}


def _without(name):
    return {key: array for key, array in _frames().items() if key != name}


def _set(row, value):
    def change(array):
        array = array.copy()
        array[row] = value
        return array

    return change


def _ragged(array):
    return [*array[:-1], array[-1][:1]]


_FAULTS = {
    "no action": (_without("action"), {}, r"chunk-000/.*KeyError.*action"),
    "no state": (_without("observation.state"), {}, r"chunk-000/.*KeyError.*observation\.state"),
    "nan": (_with("action", _set((5, 1), np.nan)), {}, r"'actions' has nan at row 5, column 1"),
    "large actions": (
        _with("action", lambda a: 90 * a), {}, r"outside \[-1, 1\].*--normalize_actions"
    ),
    "text": (
        _with("action", lambda a: [["x", "y"]] * 12), {}, r"chunk-000.* 'action' has type object"
    ),
    "ragged": (_with("action", _ragged), {}, r"chunk-001.*'action' has rows of different shapes"),
    "no value": (
        _with("action", lambda a: [*a[:-1], None]), {}, r"chunk-001.*'action' has rows of different"
    ),
    "no reward": (
        _with("next.reward", lambda a: [*map(float, a[:-1]), None]), {}, r"'rewards' has nan at row"
    ),
    "wider later": (
        _with("action", lambda a: [row if i < 7 else [*row, 0] for i, row in enumerate(a)]),
        {},
        r"'action' has rows of shape \(3,\) in data/chunk-001/.*, but \(2,\) in data/chunk-000",
    ),
    "a frame missing": (
        _with("frame_index", _set(5, 7)), {}, r"row 5 holds frame 7 of episode 1, where frame 1 is"
    ),
    "episodes torn apart": (
        _with("episode_index", _set(slice(7, 12), 0)), {}, r"row 7 holds frame 0 of episode 0"
    ),
    "dense rewards": (
        _with("next.reward", lambda a: 10 * a), {"success": "reward"}, r"they are from 0 to 10"
    ),
    "no marks": (_frames(), {"success": "timestamp"}, r"--success=timestamp names a column of"),
    "no such column": (_frames(), {"success": "next.won"}, r"no 'next.won' to say.* next.done"),
    "no such feature": (
        _frames(), {"obs_keys": ("state",)}, r"'state' is not there.* among: observation\.state"
    ),
    "images": (
        _frames(), {"obs_keys": ("observation.images.top",)}, r"images are not supported"
    ),
    "no frame of the task": (
        _with("task_index", lambda a: 0 * a), {"demos": _TASKS[1]}, r"no frame is of this task"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("frames", "choice", "message"), _FAULTS.values(), ids=_FAULTS)
def test_faults_are_named(tmp_path, frames, choice, message):
    folder = _write(tmp_path / "cube", frames, fixed=False)
    with pytest.raises(ValueError, match=f"^lerobot:{folder}.*{message}") as caught:
        _load(folder, **choice)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("info", "message"),
    [({"total_frames": 0}, "counts 0 frames"), ({"total_frames": float("inf")}, "is damaged")],
)
def test_a_count_that_makes_no_sense_is_named(tmp_path, info, message):
    folder = _write(tmp_path / "cube", _frames(), info=info)
    with pytest.raises(ValueError, match=message):
        _load(folder)


def test_images_say_nothing_of_success(tmp_path):
    folder = _write(tmp_path / "cube", _frames())
    with pytest.raises(ValueError, match=r"there is no 'observation\.images\.top' to say"):
        _load(folder, success="observation.images.top")


def test_tasks_that_are_not_there_are_named(tmp_path):
    folder = _write(tmp_path / "cube", _frames())
    (folder / "meta/tasks.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="which --demos needs"):
        _load(folder, demos="drop the cube")


def test_missing_and_damaged_files_are_named(tmp_path, monkeypatch):
    folder = tmp_path / "cube"
    with pytest.raises(FileNotFoundError, match=r"there is no .*info\.json\. Name the folder"):
        _load(folder)
    _write(folder, _frames())
    path = folder / "data/chunk-001/file-000.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"{path} is damaged or incomplete"):
        _load(folder)
    path.unlink()
    with pytest.raises(ValueError, match=r"counts 12 frames, but the files in data hold 7"):
        _load(folder)
    (folder / "data/chunk-000/file-000.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no data/chunk-\*"):
        _load(folder)
    info = folder / "meta/info.json"
    for text in ("{", "[]", "{}", info.read_text().replace('"features"', '"columns"')):
        info.write_text(text)
        with pytest.raises(ValueError, match=f"{info} is damaged or incomplete"):
            _load(folder)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r'lerobot:.*pip install -e "\.\[lerobot\]"'):
        _load(folder)


def test_other_versions_and_tasks_that_cannot_be_read_are_named(tmp_path):
    folder = _write(tmp_path / "old", _frames(), info={"codebase_version": "v1.6"})
    with pytest.raises(ValueError, match=r"it has version v1\.6 .*v2\.1, v3\.0 can be read"):
        _load(folder)
    folder = _write(tmp_path / "new", _frames())
    (folder / "meta/tasks.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"tasks\.parquet is damaged or incomplete"):
        _load(folder, demos=_TASKS[0])


@pytest.mark.slow
def test_training_from_the_command_line(tmp_path, train_on):
    folder = _write(tmp_path / "cube", _frames())
    printed, config = train_on(
        f"--dataset=lerobot:{folder}", "--success=last", "--demos=lift the cube"
    )
    assert "2 episodes, 2 of them with a success; observations: observation.st" in printed
    assert (config["success"], config["demos"]) == ("last", "lift the cube")
