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
    assert str(folder) in loaded.source
    assert "2 episodes" in loaded.source  # says that this is not the published file
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
    assert loaded.source.startswith("generated into")
    assert loaded.dataset.start_rows.size == 29


def test_generate_keeps_what_is_there(env, folder, tmp_path):
    before = (folder / f"{_DATASET}.npz").stat().st_mtime_ns
    loaded = sources.load_ogbench(_ENV_NAME, env, dataset_dir=folder, data_source="generate")
    assert loaded.source.startswith("generated into")
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
    loaded = sources.load_file(_write(tmp_path / "mine.npz"), env)
    assert loaded.dataset.start_rows.size == 9
    assert "mine.npz" in loaded.source


def test_the_dataset_of_another_environment_is_refused(env, tmp_path):
    path = _write(tmp_path / "other.npz", observations=np.zeros((10, 28)))
    with pytest.raises(ValueError, match=r"observations have 28 dimensions.*have 2.*another env"):
        sources.load_file(path, env)
    path = _write(tmp_path / "other.npz", actions=np.zeros((10, 5)))
    with pytest.raises(ValueError, match="actions have 5 dimensions"):
        sources.load_file(path, env)


def test_a_corrupt_file_is_refused(env, folder, tmp_path):
    whole = (folder / f"{_DATASET}.npz").read_bytes()
    (tmp_path / f"{_DATASET}.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"damaged or incomplete.*download or write it again"):
        sources.load_ogbench(_ENV_NAME, env, dataset_dir=tmp_path)
