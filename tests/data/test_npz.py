import os
import zipfile

import numpy as np
import pytest

from qam_jax.data import checks, npz
from qam_jax.data.checks import FIELDS, check_transitions
from qam_jax.data.npz import load_npz, read_headers


def _transitions(num_rows: int = 12, episode_length: int = 4, **changes) -> dict:
    """A sound dataset with all documented fields; a change to None leaves a field out."""
    rng = np.random.default_rng(0)
    states = rng.normal(size=(num_rows + 1, 3)).astype(np.float32)
    fields = {
        "observations": states[:-1],
        "actions": rng.uniform(-1, 1, size=(num_rows, 2)).astype(np.float32),
        "terminals": (np.arange(num_rows) % episode_length == episode_length - 1).astype(float),
        "rewards": rng.normal(size=num_rows).astype(np.float32),
        "masks": np.ones(num_rows, np.float32),
        "next_observations": states[1:],
    }
    return {name: array for name, array in (fields | changes).items() if array is not None}


def _changed(array: np.ndarray, place, value) -> np.ndarray:
    array = np.array(array, copy=True)
    array[place] = value
    return array


GOOD = _transitions()
COMPACT = {"next_observations": None}  # OGBench's layout


def test_sound_data_pass_in_both_layouts():
    check_transitions(_transitions(), source="here")
    check_transitions(_transitions(**COMPACT), source="here")
    check_transitions(_transitions(terminals=GOOD["terminals"] == 1, masks=None), source="here")


def test_what_is_not_documented_is_not_looked_at():
    check_transitions(GOOD | {"qpos": np.array([np.nan]), "note": np.array("x")}, source="here")


_NAN, _INF = np.nan, np.inf
_FAULTS = {  # what is wrong: the change to sound data, what the message has to say
    "missing": ({"actions": None}, ["'actions' is missing", "masks, next_observations, obs"]),
    "images": (
        {"observations": np.zeros((12, 8, 8, 3))},
        ["'observations' has shape (12, 8, 8, 3)", "expected [N, O]", "images are not supported"],
    ),
    "flat actions": ({"actions": np.zeros(12)}, ["'actions'", "(12,)", "[N, A]", "reshape"]),
    "column of rewards": ({"rewards": np.zeros((12, 1))}, ["'rewards'", "(12, 1)", "[N]"]),
    "lengths": ({"actions": np.zeros((11, 2))}, ["'actions' has 11 rows", "'observations' has 12"]),
    "widths": (
        {"next_observations": np.zeros((12, 4))},
        ["'next_observations' has 4 columns", "'observations' has 3"],
    ),
    "no rows": ({name: array[:0] for name, array in GOOD.items()}, ["empty", "(0, 3)"]),
    "no columns": ({"actions": np.zeros((12, 0))}, ["'actions' is empty", "(12, 0)"]),
    "text": ({"rewards": np.array(["a"] * 12)}, ["'rewards' has type <U1", "save it as float32"]),
    "complex": ({"rewards": np.zeros(12, complex)}, ["'rewards' has type complex128"]),
    "objects": ({"rewards": np.array([None] * 12)}, ["'rewards' holds Python objects", "pickle"]),
    "nan": (
        {"observations": _changed(GOOD["observations"], ([3, 5], [2, 0]), _NAN)},
        ["'observations' has nan at row 3, column 2", "2 of 36 values are not finite"],
    ),
    "infinity": (
        {"rewards": _changed(GOOD["rewards"], 7, -_INF)},
        ["'rewards' has -inf at row 7;", "1 of 12 values is not finite"],
    ),
    "action too large": (
        {"actions": _changed(GOOD["actions"], (slice(4, 6), 1), 2.5)},
        ["'actions' has 2.5 at row 4, column 1", "2 of 24", "largest 2.5", "Rescale"],
    ),
    "action too small": (
        {"actions": _changed(GOOD["actions"], (0, 0), -1.001)},
        ["'actions' has -1.001 at row 0, column 0"],
    ),
    "terminals": (
        {"terminals": _changed(GOOD["terminals"], 3, 2)},
        ["'terminals' has 2 at row 3;", "neither 0 nor 1"],
    ),
    "no end": ({"terminals": np.zeros(12)}, ["no episode ends", "terminals[-1] = 1"]),
    "unfinished": (
        {"terminals": _changed(GOOD["terminals"], -1, 0)},
        ["the last row (row 11) does not end an episode", "terminals[-1] = 1"],
    ),
    "no transition": (
        {"terminals": np.ones(12)} | COMPACT,
        ["there is no transition", "next_observations"],
    ),
    "masks": (
        {"masks": _changed(GOOD["masks"], 2, 0.5)},
        ["'masks' has 0.5 at row 2;", "0 where the task is completed"],
    ),
    "not in time order": (
        {"next_observations": _changed(GOOD["next_observations"], ([5, 9], 1), 0.25)},
        ["'next_observations' at row 5 differs from 'observations' at row 6", "time order"],
    ),
}


@pytest.mark.parametrize(("changes", "expected"), _FAULTS.values(), ids=_FAULTS)
def test_names_what_is_wrong(changes, expected):
    with pytest.raises(ValueError) as raised:
        check_transitions(_transitions(**changes), source="my data")
    message = str(raised.value)
    assert message.startswith("my data: ")
    for part in expected:
        assert part in message


def test_names_only_the_most_basic_of_several_faults():
    changes = {"actions": np.full((12, 2), 3.0), "rewards": np.zeros(5), "masks": np.full(12, 7.0)}
    with pytest.raises(ValueError, match="'rewards' has 5 rows"):
        check_transitions(_transitions(**changes), source="my data")


def test_tolerates_rounding():
    check_transitions(
        _transitions(
            actions=GOOD["actions"] / np.abs(GOOD["actions"]).max() * 1.00005,
            next_observations=GOOD["next_observations"] * (1 + 1e-6),
        ),
        source="here",
    )


def test_the_next_observation_of_an_episodes_last_row_is_free():
    ends = GOOD["terminals"] == 1
    changed = _changed(GOOD["next_observations"], ends, 100.0)
    check_transitions(_transitions(next_observations=changed), source="here")


def test_episodes_of_one_row_are_allowed():
    terminals = _changed(GOOD["terminals"], 0, 1)
    check_transitions(_transitions(terminals=terminals, **COMPACT), source="here")
    check_transitions(_transitions(terminals=np.ones(12)), source="here")


@pytest.mark.parametrize(
    "row", [0, checks._BLOCK_ROWS - 1, checks._BLOCK_ROWS, 2 * checks._BLOCK_ROWS - 1]
)
def test_the_order_of_rows_is_checked_across_blocks(row):
    num_rows = 2 * checks._BLOCK_ROWS + 1
    data = _transitions(num_rows, episode_length=num_rows)
    check_transitions(data, source="here")
    data["next_observations"] = _changed(data["next_observations"], (row, 0), 50.0)
    with pytest.raises(ValueError, match=f"'next_observations' at row {row} differs"):
        check_transitions(data, source="here")


def _save(path, **changes):
    np.savez_compressed(path, **_transitions(**changes))
    return path


def test_loads_documented_fields_as_float32_and_others_as_stored(tmp_path):
    stored = {
        "observations": np.asfortranarray(GOOD["observations"], np.float64),
        "actions": GOOD["actions"].astype(">f8"),
        "terminals": GOOD["terminals"].astype(bool),
        "rewards": np.arange(12),
        "qpos": np.arange(24, dtype=np.float64).reshape(12, 2),
        "button_states": np.arange(12, dtype=np.int64),
    }
    data = load_npz(_save(tmp_path / "data.npz", **stored))
    assert set(data) == {*GOOD, "qpos", "button_states"}
    for name, array in data.items():
        np.testing.assert_array_equal(array, ({**GOOD, **stored})[name])
        assert array.dtype == (np.float32 if name in FIELDS else stored[name].dtype)
        assert array.flags.c_contiguous


def test_loads_a_subset_but_always_what_is_needed(tmp_path):
    path = _save(tmp_path / "data.npz", qpos=np.zeros(12), qvel=np.zeros(12))
    needed = {"observations", "actions", "terminals"}
    assert set(load_npz(path, fields=())) == needed
    assert set(load_npz(path, fields=("qpos", "absent"))) == needed | {"qpos"}
    assert set(load_npz(path, fields=("masks",), require=("rewards",))) == needed | {
        "masks",
        "rewards",
    }


def test_a_field_that_is_not_read_may_hold_anything(tmp_path):
    path = _save(tmp_path / "data.npz", infos=np.array([{"a": 1}] * 12))
    with pytest.raises(ValueError, match=r"data\.npz: 'infos' holds Python objects.*numeric arr"):
        load_npz(path)
    assert "infos" not in load_npz(path, fields=FIELDS)


def test_names_the_file_and_the_required_field_that_is_missing(tmp_path):
    path = _save(tmp_path / "data.npz", rewards=None)
    load_npz(path)
    with pytest.raises(ValueError, match=r"data\.npz: the field 'rewards' is missing.*actions, "):
        load_npz(path, require=("rewards",))


def test_names_the_file_whose_values_are_wrong(tmp_path):
    path = _save(tmp_path / "data.npz", actions=np.full((12, 2), 3))
    with pytest.raises(ValueError, match=r"data\.npz: 'actions' has 3 at row 0, column 0"):
        load_npz(path)


def test_names_values_that_float32_cannot_hold(tmp_path):
    path = _save(tmp_path / "data.npz", rewards=np.full(12, 1e300))
    with pytest.raises(ValueError, match=r"'rewards' has inf at row 0.*not finite in float32"):
        load_npz(path)


@pytest.mark.parametrize("read", [load_npz, read_headers])
def test_a_file_that_does_not_exist(tmp_path, read):
    with pytest.raises(FileNotFoundError, match=r"absent\.npz: there is no such file"):
        read(tmp_path / "absent.npz")


def _flip_a_byte(content: bytes) -> bytes:
    changed = bytearray(content)
    changed[len(content) // 3] ^= 0xFF
    return bytes(changed)


_DAMAGES = {
    "text": lambda content: b"observations,actions\n1,2\n",
    "empty": lambda content: b"",
    "truncated": lambda content: content[:-100],
    "flipped byte": _flip_a_byte,
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("damage", _DAMAGES.values(), ids=_DAMAGES)
def test_a_damaged_file_is_refused(tmp_path, save, damage):
    path = tmp_path / "data.npz"
    save(path, **_transitions(num_rows=400))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"data\.npz: this is not an \.npz file, or it is damaged"):
        load_npz(path)
    with pytest.raises(ValueError, match="damaged or incomplete"):
        read_headers(path, verify=True)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(ValueError, match=r"pipe\.npz: .*it is no regular file"):
        load_npz(tmp_path / "pipe.npz")


def test_an_archive_of_other_files_lacks_the_fields(tmp_path):
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match="'observations' is missing; there are: none"):
        load_npz(tmp_path / "data.npz")


def test_headers_of_unusual_arrays(tmp_path):
    stored = {
        "records": np.zeros(3, [("a", "f4"), ("b", "i8", 2)]),
        "number": np.array(7),
        "text": np.array("a, 'b'"),
        "turned": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "none": np.zeros((0, 3)),
    }
    path = _save(tmp_path / "data.npz", **stored)
    headers = read_headers(path)
    arrays = npz.read_arrays(path, {name: headers[name] for name in stored})
    for name, array in stored.items():
        assert headers[name][:2] == (array.shape, array.dtype)
        assert arrays[name].shape == array.shape
        np.testing.assert_array_equal(arrays[name], array)


def test_headers_are_read_without_the_values(tmp_path):
    path = _save(tmp_path / "data.npz", infos=np.array([None]))
    headers = read_headers(path)
    assert headers["observations"][:3] == ((12, 3), np.dtype(np.float32), False)
    assert headers["infos"].dtype.hasobject
    assert set(headers) == {*GOOD, "infos"}
