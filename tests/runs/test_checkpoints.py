import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qam_jax.agents import get_config, make_agent
from qam_jax.files import write_json
from qam_jax.runs import checkpoints as module
from qam_jax.runs.checkpoints import Checkpoints, check_networks, init_state
from qam_jax.training.update import MetricSums


def _items():
    config = get_config("bc")
    config.update({"actor_hidden_dims": (64, 64), "flow_steps": 2})
    state = init_state(make_agent(config), jax.random.PRNGKey(0), 3, 2)
    sums = MetricSums({"loss": jnp.float32(2.5)}, jnp.int32(4), jnp.int32(-1), jnp.int32(0))
    return state, sums


def _saved(folder, steps, scores=None, keep=2):
    checkpoints, (state, sums) = Checkpoints(folder, keep), _items()
    for step in steps:
        marked = state.replace(step=jnp.int32(step))
        checkpoints.save(step, marked, sums, {"stage": "offline"}, (scores or {}).get(step))
    checkpoints.close()
    return folder / "checkpoints"


def _restore(folder):
    """The step of the newest checkpoint that can be read."""
    checkpoints, items = Checkpoints(folder), _items()
    state = checkpoints.restore_newest(lambda step: checkpoints.restore(step, *items)[0])
    checkpoints.close()
    return None if state is None else int(state.step)


def test_a_checkpoint_is_read_back_as_it_was(tmp_path):
    _saved(tmp_path, [7])
    checkpoints, (state, sums) = Checkpoints(tmp_path), _items()
    restored = checkpoints.restore(7, jax.tree.map(jnp.zeros_like, state), sums)
    jax.tree.map(np.testing.assert_array_equal, restored, (state.replace(step=7), sums))
    assert checkpoints.read_progress(7)["stage"] == "offline"
    assert _restore(tmp_path / "empty") is None


def test_the_newest_and_the_best_are_kept(tmp_path):
    _saved(tmp_path, [1, 2, 3, 4], {1: 0.5, 2: 0.9, 3: 0.1})
    _saved(tmp_path, [5, 6], {6: 0.3})  # another process knows the scores of the first
    assert Checkpoints(tmp_path).steps == [2, 5, 6]
    assert Checkpoints(tmp_path, read_only=True).best_step == 2
    _saved(tmp_path, [7, 8], {7: 0.9, 8: 0.2})
    assert Checkpoints(tmp_path).steps == [7, 8]  # of equals the newest


def test_a_checkpoint_gives_way_to_one_of_the_same_step_whose_score_is_known(tmp_path):
    checkpoints, items = Checkpoints(tmp_path), _items()
    checkpoints.save(3, *items, {"stage": "a"})
    checkpoints.save(3, *items, {"stage": "b"})
    assert checkpoints.read_progress(3)["stage"] == "a"
    checkpoints.save(3, *items, {"stage": "c"}, 0.5)
    checkpoints.wait()
    assert checkpoints.read_progress(3)["stage"] == "c"
    assert checkpoints.best_step == 3


def test_a_milestone_is_kept(tmp_path):
    checkpoints, items = Checkpoints(tmp_path, keep=1), _items()
    checkpoints.save(1, *items, {}, milestone=True)
    checkpoints.close()
    _saved(tmp_path, [2, 3, 4], {2: 0.5}, keep=1)
    assert Checkpoints(tmp_path).steps == [1, 2, 4]


def _largest_file(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=os.path.getsize)


def _truncate(folder):
    path = _largest_file(folder)
    os.truncate(path, path.stat().st_size // 2)


def _flip_a_bit(folder):
    path = _largest_file(folder / "agent")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _remove_progress(folder):
    (folder / "progress" / "metadata").unlink()


def _remove_manifest(folder):
    (folder / "agent" / "manifest.ocdbt").unlink()


@pytest.mark.parametrize("damage", [_truncate, _flip_a_bit, _remove_progress, _remove_manifest])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_used(tmp_path, caplog, damage):
    folder = _saved(tmp_path, [3, 6])
    damage(folder / "6")
    assert _restore_with_progress(tmp_path) == 3
    assert "The checkpoint of step 6 is damaged" in caplog.text
    assert sorted(path.name for path in folder.iterdir()) == ["3", "damaged-6"]
    _saved(tmp_path, [6])  # what comes next takes its place
    assert _restore(tmp_path) == 6


def _restore_with_progress(folder):
    checkpoints, items = Checkpoints(folder), _items()

    def restore(step):
        checkpoints.read_progress(step)
        return int(checkpoints.restore(step, *items)[0].step)

    return checkpoints.restore_newest(restore)


def test_a_run_does_not_start_anew_if_all_checkpoints_are_damaged(tmp_path):
    folder = _saved(tmp_path, [3, 6])
    for step in ("3", "6"):
        _truncate(folder / step)
    with pytest.raises(
        ValueError, match=r"none of the checkpoints in .* can be read; that of step 6"
    ):
        _restore(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["3", "6"]  # left as they were


def test_too_little_room_is_noticed_before_anything_is_written(tmp_path, monkeypatch):
    _saved(tmp_path, [3])
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage(1000))
    with pytest.raises(OSError, match=r"step 6 could not be written .*1,000 free.*Make room"):
        _saved(tmp_path, [6])
    monkeypatch.undo()
    assert _restore(tmp_path) == 3


_FILL_THE_DISK = """
import resource, signal, sys
from tests_checkpoints import _items
from qam_jax.runs.checkpoints import Checkpoints
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
checkpoints, (state, sums) = Checkpoints(sys.argv[1]), _items()
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
checkpoints.save(6, state, sums, {"stage": "offline"})
checkpoints.close()
"""


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before_it(tmp_path):
    """Writing really fails: files may not grow beyond a limit that is smaller than the state."""
    _saved(tmp_path, [3])
    code = _FILL_THE_DISK.replace("tests_checkpoints", Path(__file__).stem)
    result = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )
    assert result.returncode != 0
    # Threads of orbax may have the last word.
    (error,) = (line for line in result.stderr.splitlines() if line.startswith("OSError: "))
    assert "could not be written" in error
    assert "the same command continues from the checkpoint before it" in error
    assert _restore(tmp_path) == 3


@pytest.mark.parametrize(
    ("name", "changes", "version", "refused"),
    [
        ("qsm", {}, "0.1.0", True),
        ("dac", {}, None, True),
        ("rlpd", {}, "0.1.0", True),
        ("qam_e", {}, "0.1.0", True),
        ("qam_e", {"edit_scale": 0.0}, "0.1.0", False),
        ("qam", {}, "0.1.0", False),
        ("qsm", {}, "0.2.0", False),
        ("qsm", {}, "0.10.0", False),
    ],
)
def test_checkpoints_of_other_networks_are_refused(tmp_path, name, changes, version, refused):
    start = {"versions": {"qam_jax": version}, "git_revision": "d2f9"}
    now = {"versions": {"qam_jax": "0.2.0"}, "git_revision": "e1"}
    write_json(tmp_path / "metadata.json", {"starts": [start, now]})
    config = get_config(name)
    config.update(changes)
    if not refused:
        check_networks(tmp_path, config)
        return
    written = rf"written by qam_jax {version or 'before 0.2.0'} \(git revision d2f9\)"
    with pytest.raises(ValueError, match=rf"{written}, and '{name}' has changed in 0\.2\.0: "):
        check_networks(tmp_path, config)
