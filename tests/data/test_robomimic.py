"""Files in the layout that robomimic publishes ("Dataset Structure"), written here with h5py.

robomimic itself needs torch. Its `dataset_states_to_obs.py` was read for what `dones` hold.
"""

import sys

import numpy as np
import pytest

from qam_jax.data import sources
from qam_jax.data.demonstrations import Choice

h5py = pytest.importorskip("h5py")

_LENGTHS = {"demo_0": 5, "demo_10": 3, "demo_2": 4}
_ORDER = ("demo_0", "demo_2", "demo_10")  # by their numbers
_WIDTHS = {"object": 3, "eef_pos": 2}


def _demos(done_mode=2):
    """Demonstrations of which demo_2 fails, and demo_0 succeeds one step before its end."""
    rng, demos = np.random.default_rng(0), {}
    for name, length in _LENGTHS.items():
        states = {key: rng.normal(size=(length + 1, width)) for key, width in _WIDTHS.items()}
        success = np.zeros(length, bool)
        if name != "demo_2":
            success[-2 if name == "demo_0" else -1 :] = True
        last = np.arange(length) == length - 1
        demos[name] = {
            "actions": rng.uniform(-1, 1, (length, 2)),
            "rewards": success.astype(float),
            "dones": (success & (done_mode != 1) | last & (done_mode > 0)).astype(int),
            **{f"obs/{key}": states[key][:-1] for key in _WIDTHS},
            "obs/agentview_image": np.zeros((length, 8, 8, 3), np.uint8),
            **{f"next_obs/{key}": states[key][1:] for key in _WIDTHS},
        }
    return demos


def _write(path, demos, **changes):
    """Writes demonstrations; a change names a place in the file, and None takes it away."""
    with h5py.File(path, "w") as file:
        for name, arrays in demos.items():
            for key, array in arrays.items():
                file[f"data/{name}/{key}"] = array
            file[f"data/{name}"].attrs["num_samples"] = len(arrays["actions"])
        file["data"].attrs["env_args"] = '{"env_name": "Lift", "env_type": 1, "env_kwargs": {}}'
        file["mask/train"] = np.array(["demo_0", "demo_10"], "S")
        file["mask/valid"] = np.array(["demo_2"], "S")
        for place, value in changes.items():
            if place in file:
                del file[place]
            if value is not None:
                file[place] = value
    return path


def _as_npz(demos, names=_ORDER, keys=("eef_pos", "object"), masks=None):
    """The same data in the fields of an .npz file."""
    chosen = [demos[name] for name in names]

    def observations(group):
        rows = [np.concatenate([d[f"{group}/{key}"] for key in keys], axis=1) for d in chosen]
        return np.concatenate(rows)

    rewards = np.concatenate([demo["rewards"] for demo in chosen])
    return {
        "observations": observations("obs"),
        "actions": np.concatenate([demo["actions"] for demo in chosen]),
        "terminals": np.concatenate([np.arange(n := len(d["dones"])) == n - 1 for d in chosen]),
        "rewards": rewards,
        "masks": 1 - rewards if masks is None else masks,
        "next_observations": observations("next_obs"),
    }


def _load(path, **choice):
    return sources.load_own(f"robomimic:{path}", None, choice=Choice(**choice))


def _assert_same(loaded, tmp_path, arrays):
    np.savez(tmp_path / "same.npz", **arrays)
    expected = sources.load_own(tmp_path / "same.npz", None)
    for name, array in vars(expected.dataset).items():
        np.testing.assert_array_equal(getattr(loaded.dataset, name), array, err_msg=name)
    assert loaded.fingerprint() == expected.fingerprint()


@pytest.mark.parametrize("done_mode", [0, 1, 2])
def test_a_file_equals_the_same_data_as_npz(tmp_path, done_mode):
    demos = _demos(done_mode)
    path = _write(tmp_path / "low_dim.hdf5", demos)
    loaded = _load(path)
    _assert_same(loaded, tmp_path, _as_npz(demos))
    assert loaded.path == path
    assert loaded.description == (
        f"robomimic:{path}: 3 episodes, 2 of them with a success; observations: eef_pos, object "
        "(left out: agentview_image)"
    )


def test_observations_and_demonstrations_are_chosen(tmp_path):
    demos = _demos()
    path = _write(tmp_path / "low_dim.hdf5", demos)
    loaded = _load(path, obs_keys=("object", "eef_pos"), demos="train")
    expected = _as_npz(demos, ("demo_0", "demo_10"), ("object", "eef_pos"))
    _assert_same(loaded, tmp_path, expected)
    _assert_same(_load(path, demos="valid"), tmp_path, _as_npz(demos, ("demo_2",)))


def test_success_is_where_the_flag_says(tmp_path):
    demos = _demos(done_mode=2)
    path = _write(tmp_path / "low_dim.hdf5", demos)
    ends = np.array([0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 1])
    dones = np.array([0, 0, 0, 1, 1, 0, 0, 0, 1, 0, 0, 1])  # the last step of demo_2, too
    for rule, success in {"last": ends, "none": 0 * ends, "dones": dones}.items():
        _assert_same(_load(path, success=rule), tmp_path, _as_npz(demos, masks=1 - success))


def test_rewards_are_made_where_there_are_none(tmp_path):
    demos = _demos()
    path = _write(tmp_path / "low_dim.hdf5", demos, **{f"data/{d}/rewards": None for d in demos})
    expected = _as_npz(demos, masks=np.array([1, 1, 1, 1, 0, 1, 1, 1, 0, 1, 1, 0]))
    expected["rewards"] = -expected["masks"]
    _assert_same(_load(path, success="last"), tmp_path, expected)


def test_without_next_obs_only_a_success_keeps_the_last_row(tmp_path):
    demos = _demos()
    changes = {f"data/{name}/next_obs": None for name in demos}
    loaded = _load(_write(tmp_path / "low_dim.hdf5", demos, **changes))
    expected = _as_npz(demos)
    observations, rows = expected["observations"], np.arange(12)
    following = np.where(expected["terminals"], rows, rows + 1)  # of a success it does not matter
    expected["next_observations"] = observations[following]
    expected["terminals"][7] = True  # demo_2 fails: its last row is the final observation
    expected = {name: np.delete(array, 8, axis=0) for name, array in expected.items()}
    _assert_same(loaded, tmp_path, expected)


def _changed(place, change):
    """A change of one array of the file."""
    group, _, name = place.removeprefix("data/").partition("/")
    return {place: change(_demos()[group][name])}


_NAN = _changed("data/demo_2/obs/object", lambda a: np.where(np.arange(len(a)) == 1, np.nan, a.T).T)
_FAULTS = {
    "no data": ({"data": None}, {}, r"/data is missing; there are: mask\. Expected what robomimic"),
    "no obs": ({"data/demo_0/obs": None}, {}, r"/data/demo_0/obs is missing; there are: actions"),
    "no actions": ({"data/demo_2/actions": None}, {}, r"demo_2: /data/demo_2/actions is missing"),
    "no rewards": ({"data/demo_0/rewards": None}, {}, r"/data/demo_0/rewards is missing"),
    "no key in one": ({"data/demo_2/obs/object": None}, {}, r"demo_2/obs/object is missing"),
    "shorter obs": (
        _changed("data/demo_2/obs/object", lambda a: a[:-1]),
        {},
        r"/data/demo_2: 'obs/object' has 3 rows, but 'actions' has 4",
    ),
    "shorter rewards": (
        _changed("data/demo_2/rewards", lambda a: a[:-1]),
        {},
        r"/data/demo_2: 'rewards' has 3 rows but 'observations' has 4",
    ),
    "cut actions": (
        _changed("data/demo_2/actions", lambda a: a[:-1]),
        {},
        r"/data/demo_2: 'obs/eef_pos' has 4 rows, but 'actions' has 3",
    ),
    "empty": (
        _changed("data/demo_2/actions", lambda a: a[:0]), {}, r"demo_2: 'actions' is empty"
    ),
    "wider in one": (
        _changed("data/demo_2/actions", lambda a: a[:, :1]),
        {},
        r"'actions' has rows of shape \(1,\) in demo_2, but \(2,\) in demo_0",
    ),
    "nan": (_NAN, {}, r"/data/demo_2: 'observations' has nan at row 1, column 2.*not finite"),
    "large actions": (
        _changed("data/demo_2/actions", lambda a: 3 + a),
        {},
        r"/data/demo_2: 'actions' has .* outside \[-1, 1\].*--normalize_actions",
    ),
    "text": (
        {"data/demo_2/actions": np.array(["a"] * 4, "S")}, {}, r"'actions' has type \|S1, expected"
    ),
    "flat actions": (
        _changed("data/demo_0/actions", lambda a: a[:, 0]), {}, r"'actions' has shape \(5,\), exp"
    ),
    "shuffled": (
        _changed("data/demo_2/next_obs/object", lambda a: a[::-1]),
        {},
        r"/data/demo_2: 'next_observations' at row 0 differs from 'observations' at row 1",
    ),
    "dense rewards": (
        _changed("data/demo_2/rewards", lambda a: a + 7),
        {},
        r"rewards in \[0, 1\]; they are from 7 to 7\. Say what a success is: --success=<column",
    ),
    "no such key": ({}, {"obs_keys": ("eef",)}, r"'eef' is not there, or .* among: eef_pos, obj"),
    "images": ({}, {"obs_keys": ("agentview_image",)}, r"images are not supported.*--obs_keys"),
    "no such mask": ({}, {"demos": "test"}, r"/mask/test is missing; there are: train, valid"),
    "no mask": ({"mask": None}, {"demos": "train"}, r"/mask is missing; there are: data"),
    "wrong mask": (
        {"mask/train": np.array(["demo_7"], "S")}, {"demos": "train"}, r"/data/demo_7 is missing"
    ),
    "empty mask": (
        {"mask/train": np.array([], "S")}, {"demos": "train"}, r"there is no demonstration"
    ),
    "no such column": ({}, {"success": "done"}, r"/data/demo_0/done is missing.* dones"),
    "no marks": (
        {}, {"success": "actions"}, r"--success=actions names a column of shape \(5, 2\).*0 or 1"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "choice", "message"), _FAULTS.values(), ids=_FAULTS)
def test_faults_are_named(tmp_path, changes, choice, message):
    path = _write(tmp_path / "low_dim.hdf5", _demos(), **changes)
    with pytest.raises(ValueError, match=f"^robomimic:{path}.*{message}") as caught:
        _load(path, **choice)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    path = tmp_path / "low_dim.hdf5"
    with pytest.raises(FileNotFoundError, match=f"robomimic:{path}: there is no such file"):
        _load(path)
    whole = _write(path, _demos()).read_bytes()
    for bytes_left in (whole[:100], whole[: len(whole) // 2], b"PK" + whole):
        path.write_bytes(bytes_left)
        with pytest.raises(ValueError, match=f"{path}: this is not an HDF5 file, or it is damaged"):
            _load(path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r'robomimic:.*pip install -e "\.\[robomimic\]"'):
        _load(path)


@pytest.mark.slow
def test_training_from_the_command_line(tmp_path, train_on):
    path = _write(tmp_path / "low_dim.hdf5", _demos())
    printed, config = train_on(
        f"--dataset=robomimic:{path}", "--obs_keys=object,eef_pos", "--demos=train"
    )
    assert "2 of them with a success; observations: object, eef_pos (left out" in printed
    assert (config["obs_keys"], config["demos"]) == ("object,eef_pos", "train")


def test_actions_that_will_be_normalised_may_have_any_range(tmp_path):
    demos = _demos()
    for demo in demos.values():
        demo["actions"] = 40 * demo["actions"]
    path = _write(tmp_path / "low_dim.hdf5", demos)
    with pytest.raises(ValueError, match="give --normalize_actions"):
        _load(path)
    loaded = _load(path, any_actions=True)
    assert abs(np.asarray(loaded.dataset.actions)).max() > 1
