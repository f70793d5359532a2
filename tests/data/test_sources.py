import http.server
import threading

import numpy as np
import ogbench
import pytest

from qam_jax.data import generate, sources
from qam_jax.data.download import DownloadError
from qam_jax.envs import make_env

_ENV_NAME = "pointmaze-medium-navigate-singletask-task3-v0"
_DATASET = "pointmaze-medium-navigate-v0"


@pytest.fixture(name="env", scope="module")
def _env():
    return make_env(_ENV_NAME)


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory):
    """A folder with a small dataset, made by the real recipe."""
    folder = tmp_path_factory.mktemp("ogbench")
    generate.generate_dataset(_DATASET, folder, num_episodes=2, num_processes=1, progress=False)
    return folder


@pytest.fixture(name="no_mirror")
def _no_mirror(monkeypatch):
    """A real server that has no file, in place of all mirrors; returns its address."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    handler = type("Nothing", (http.server.SimpleHTTPRequestHandler,), {"log_message": print})
    handler.do_GET = lambda request: request.send_error(404)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(sources, "MIRRORS", (address,))
    yield address
    server.shutdown()


def test_local_data_equal_those_of_ogbench_itself(env, folder):
    loaded = sources.load_ogbench(_ENV_NAME, env, dataset_dir=folder, data_source="local")
    assert str(folder) in loaded.description
    assert "2 episodes" in loaded.description  # says that this is not the published file
    _, theirs, _ = ogbench.make_env_and_datasets(
        _ENV_NAME, dataset_dir=str(folder), compact_dataset=False
    )
    rows = loaded.dataset.start_rows
    for name in ("observations", "rewards", "masks"):
        np.testing.assert_array_equal(getattr(loaded.dataset, name)[rows], theirs[name])
    np.testing.assert_array_equal(
        loaded.dataset.observations[rows + 1], theirs["next_observations"]
    )
    np.testing.assert_allclose(loaded.dataset.actions[rows], theirs["actions"], atol=1.1e-5)
    assert (loaded.dataset.rewards[rows] == 0).any()  # the task's goal is passed now and then


def test_local_without_a_file_says_what_to_do(env, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Put OGBench's file there.*--data_source=auto"):
        sources.load_ogbench(_ENV_NAME, env, dataset_dir=tmp_path, data_source="local")


def test_auto_generates_where_no_mirror_has_the_file(env, tmp_path, no_mirror, monkeypatch):
    recipe = generate.get_recipe(_DATASET)._replace(num_episodes=1, episode_length=30)
    monkeypatch.setattr(generate, "get_recipe", lambda name: recipe)
    loaded = sources.load_ogbench(_ENV_NAME, env, dataset_dir=tmp_path, data_source="auto")
    assert loaded.description.startswith("generated into")
    assert loaded.dataset.start_rows.size == 29


def test_generate_keeps_what_is_there(env, folder, tmp_path):
    before = (folder / f"{_DATASET}.npz").stat().st_mtime_ns
    loaded = sources.load_ogbench(_ENV_NAME, env, dataset_dir=folder, data_source="generate")
    assert loaded.description.startswith("generated into")
    assert (folder / f"{_DATASET}.npz").stat().st_mtime_ns == before
    with np.load(folder / f"{_DATASET}.npz") as archive:
        np.savez(tmp_path / _DATASET, **{name: archive[name] for name in ("observations", "qpos")})
    with pytest.raises(ValueError, match="was not generated here: it is not replaced"):
        sources.load_ogbench(_ENV_NAME, env, dataset_dir=tmp_path, data_source="generate")


def test_download_alone_fails_where_no_mirror_has_the_file(env, tmp_path, no_mirror):
    with pytest.raises(DownloadError, match=no_mirror):
        sources.load_ogbench(_ENV_NAME, env, dataset_dir=tmp_path, data_source="download")


def test_auto_does_not_hide_that_a_dataset_can_only_be_downloaded(tmp_path, no_mirror):
    env_name = "antmaze-medium-navigate-singletask-v0"
    with pytest.raises(DownloadError, match="antmaze-medium-navigate-v0"):
        sources.load_ogbench(env_name, make_env(env_name), dataset_dir=tmp_path)


def _write(path, **changes):
    rows = 10
    data = {
        "observations": np.zeros((rows, 2)),
        "actions": np.zeros((rows, 2)),
        "rewards": np.zeros(rows),
        "terminals": np.eye(rows)[-1],
        **changes,
    }
    np.savez(path, **data)
    return path


def test_a_file_of_your_own(env, tmp_path):
    loaded = sources.load_own(_write(tmp_path / "mine.npz"), env)
    assert loaded.dataset.start_rows.size == 9
    assert "mine.npz" in loaded.description


def test_an_environment_is_not_needed(env, tmp_path):
    path = _write(tmp_path / "mine.npz", observations=np.zeros((10, 28)))
    assert sources.load_own(path, None).dataset.observations.shape == (10, 28)


def test_data_in_memory_never_change(env, tmp_path):
    loaded = sources.load_own(_write(tmp_path / "mine.npz"), env)
    moved = sources.load_own(_write(tmp_path / "moved.npz"), env)
    assert loaded.at(0) is loaded.at(10**6) is loaded.dataset
    assert loaded.next_change(0) is None
    assert loaded.fingerprint() == moved.fingerprint()
    loaded.close()


def _numbered(first, rows=10, **changes):
    """Changes to `_write` by which every row is told apart: its number stands in it."""
    numbers = np.arange(first, first + rows)
    return {"observations": np.stack([numbers, -numbers], 1), "rewards": numbers} | changes


def test_a_folder_is_put_together_in_the_order_of_names(env, tmp_path):
    _write(tmp_path / "b.npz", **_numbered(20))
    _write(tmp_path / "a.npz", **_numbered(0))
    _write(tmp_path / "a-val.npz", **_numbered(100))
    (tmp_path / "notes.txt").write_text("mine")
    loaded = sources.load_own(tmp_path, env)
    assert "2 files" in loaded.description and loaded.path == tmp_path
    rows = loaded.dataset.start_rows
    expected = [*range(9), *range(20, 29)]
    np.testing.assert_array_equal(loaded.dataset.rewards[rows], expected)
    np.testing.assert_array_equal(loaded.dataset.observations[rows + 1, 0], np.array(expected) + 1)


_OTHERS = {
    "dimensions": (
        {"observations": np.zeros((10, 3))},
        r"b\.npz has .observations. of shape \[N, 3\].*shape \[N, 2\]",
    ),
    "fields": (
        {"masks": np.ones(10)},
        r"b\.npz has .masks. of shape \[N\], but a\.npz has no 'masks'",
    ),
}


@pytest.mark.parametrize(("changes", "message"), _OTHERS.values(), ids=_OTHERS)
def test_files_that_do_not_belong_together_are_both_named(tmp_path, changes, message):
    _write(tmp_path / "a.npz")
    _write(tmp_path / "b.npz", **changes)
    with pytest.raises(ValueError, match=message) as raised:
        sources.load_own(tmp_path, None)
    assert f"{tmp_path / 'b.npz'} does not belong with {tmp_path / 'a.npz'}" in str(raised.value)


def test_a_file_in_a_folder_is_named_if_it_is_wrong(tmp_path):
    _write(tmp_path / "a.npz")
    _write(tmp_path / "b.npz", actions=np.full((10, 2), 7.0))
    with pytest.raises(ValueError, match=r"b\.npz: 'actions' has 7 at row 0"):
        sources.load_own(tmp_path, None)


def test_nothing_to_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no \.npz file in this folder"):
        sources.load_own(tmp_path, None)
    with pytest.raises(FileNotFoundError, match="absent: there is no such file"):
        sources.load_own(tmp_path / "absent", None)


_ENDS = {"terminals": np.isin(np.arange(10), (3, 9)).astype(float)}  # transitions 0-2 and 4-8


@pytest.mark.parametrize(
    ("proportion", "kept"),
    [(1.0, [0, 1, 2, 4, 5, 6, 7, 8]), (0.7, [0, 1, 2, 4, 5]), (0.5, [0, 1, 2, 4]), (0.2, [0])],
)
def test_a_proportion_keeps_the_leading_transitions(tmp_path, proportion, kept):
    path = _write(tmp_path / "compact.npz", **_numbered(0), **_ENDS)
    compact = sources.load_own(path, None, proportion=proportion)
    rows = np.asarray(compact.dataset.start_rows)
    np.testing.assert_array_equal(compact.dataset.rewards[rows], kept)
    np.testing.assert_array_equal(compact.dataset.observations[rows + 1, 0], np.array(kept) + 1)
    assert len(compact.dataset.rewards) == rows[-1] + 2  # what follows is not kept
    assert compact.dataset.last_rows[rows[-1]] == rows[-1]
    assert ("the leading" in compact.description) == (proportion < 1)

    transitions = [0, 1, 2, 4, 5, 6, 7, 8]
    following = np.stack([np.array(transitions) + 1, -np.array(transitions) - 1], 1)
    path = _write(
        tmp_path / "next.npz",
        **{name: column[transitions] for name, column in _numbered(0).items()},
        actions=np.zeros((8, 2)),
        terminals=np.isin(transitions, (2, 8)),
        next_observations=following,
    )
    other = sources.load_own(path, None, proportion=proportion).dataset
    np.testing.assert_array_equal(other.start_rows, rows)
    for name in ("observations", "last_rows"):
        np.testing.assert_array_equal(other[name], compact.dataset[name])


def test_a_proportion_has_to_leave_something(env, tmp_path):
    path = _write(tmp_path / "mine.npz")
    for wrong in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            sources.load_own(path, env, proportion=wrong)
    with pytest.raises(ValueError, match=r"mine\.npz: no transition is left of 9 with.* 0\.1\."):
        sources.load_own(path, env, proportion=0.1)


def test_a_proportion_of_ogbench_is_that_of_its_transitions(env, folder):
    options = {"dataset_dir": folder, "data_source": "local"}
    whole = sources.load_ogbench(_ENV_NAME, env, **options).dataset
    part = sources.load_ogbench(_ENV_NAME, env, proportion=0.6, **options).dataset
    count = int(whole.start_rows.size * 0.6)
    np.testing.assert_array_equal(part.start_rows, whole.start_rows[:count])
    np.testing.assert_array_equal(part.rewards, whole.rewards[: len(part.rewards)])


def test_the_dataset_of_another_environment_is_refused(env, tmp_path):
    path = _write(tmp_path / "other.npz", observations=np.zeros((10, 28)))
    with pytest.raises(ValueError, match=r"observations have 28 dimensions.*have 2.*another env"):
        sources.load_own(path, env)
    path = _write(tmp_path / "other.npz", actions=np.zeros((10, 5)))
    with pytest.raises(ValueError, match="actions have 5 dimensions"):
        sources.load_own(path, env)


def test_a_corrupt_file_is_refused(env, folder, tmp_path):
    whole = (folder / f"{_DATASET}.npz").read_bytes()
    (tmp_path / f"{_DATASET}.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"damaged or incomplete.*download or write it again"):
        sources.load_ogbench(_ENV_NAME, env, dataset_dir=tmp_path)
