import functools
import os
import shutil
import subprocess
import sys
import zlib
from collections import namedtuple
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from qam_jax.agents import get_config, make_agent
from qam_jax.files import write_json
from qam_jax.runs import checkpoints as module
from qam_jax.runs import metrics
from qam_jax.runs.checkpoints import Checkpoints
from qam_jax.runs.saved import check_unchanged, init_state
from qam_jax.training.update import MetricSums


def _items():
    config = get_config("bc")
    config.update({"actor_hidden_dims": (64, 64), "flow_steps": 2})
    state = init_state(make_agent(config), jax.random.PRNGKey(0), 3, 2)
    sums = MetricSums({"loss": jnp.float32(2.5)}, jnp.int32(4), jnp.int32(-1), jnp.int32(0))
    return state, sums


def _saved(folder, steps, scores=None, keep=2):
    """Saves checkpoints; scores are those of their evaluations, which follow."""
    checkpoints, (state, sums) = Checkpoints(folder, keep), _items()
    for step in steps:
        marked = state.replace(step=jnp.int32(step))
        checkpoints.save(step, marked, sums, {"stage": "offline", "evaluation": step})
        if value := (scores or {}).get(step):
            rows = [
                *metrics.read_csv(folder / "eval.csv"),
                {"step": step, "success": value, "return": -9.0},
            ]
            metrics.write_csv(folder / "eval.csv", rows[-1], rows)
            checkpoints.set_score(step, metrics.score(rows[-1]))
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


def test_a_checkpoint_gives_way_to_a_milestone_of_the_same_step(tmp_path):
    checkpoints, items = Checkpoints(tmp_path), _items()
    checkpoints.save(3, *items, {"stage": "a"})
    checkpoints.save(3, *items, {"stage": "b"})
    assert checkpoints.read_progress(3)["stage"] == "a"
    checkpoints.save(3, *items, {"stage": "c"}, milestone=True)
    checkpoints.save(3, *items, {"stage": "d"}, milestone=True)
    assert checkpoints.read_progress(3)["stage"] == "c"


def test_the_score_of_a_checkpoint_is_that_of_the_row_that_it_names(tmp_path):
    _saved(tmp_path, [1, 2, 3], {1: 0.5}, keep=9)
    metrics.write_csv(tmp_path / "eval.csv", ["step", "return"], [{"step": 2, "return": -4.5}])
    checkpoints = Checkpoints(tmp_path)
    assert [checkpoints.has_score(step) for step in (1, 2, 3)] == [False, True, False]
    assert checkpoints.best_step == 2
    checkpoints.save(4, *_items(), {"score": 0.7})  # as earlier versions did, after the evaluation
    checkpoints.set_score(9, 1.0)  # there is no checkpoint of this evaluation
    checkpoints.close()
    assert Checkpoints(tmp_path, read_only=True).best_step == 4


def test_one_that_is_no_longer_the_best_goes_at_once(tmp_path):
    _saved(tmp_path, [1, 2, 3], {1: 0.5, 3: 0.6}, keep=1)
    assert Checkpoints(tmp_path, read_only=True).steps == [3]


def test_a_milestone_is_kept(tmp_path):
    checkpoints, items = Checkpoints(tmp_path, keep=1), _items()
    checkpoints.save(1, *items, {}, milestone=True)
    checkpoints.close()
    _saved(tmp_path, [2, 3, 4], {2: 0.5}, keep=1)
    assert Checkpoints(tmp_path).steps == [1, 2, 4]


def _empty(path):
    path.write_bytes(b"")


def _truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


_DAMAGES = {"emptied": _empty, "truncated": _truncate, "flipped": _flip, "gone": Path.unlink}


def _files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("damage", _DAMAGES)
def test_any_damaged_file_leads_to_the_checkpoint_before(tmp_path, caplog, damage):
    folder, items = _saved(tmp_path / "whole", [3, 6]), _items()
    names = [path.relative_to(folder) for path in _files(folder / "6")]
    assert len(names) > 10
    for name in names:
        run = tmp_path / "run"
        shutil.copytree(folder.parent, run)
        _DAMAGES[damage](run / "checkpoints" / name)
        caplog.clear()
        checkpoints = Checkpoints(run)
        state, _ = checkpoints.restore_newest(functools.partial(_read, checkpoints, items))
        checkpoints.close()
        assert (int(state.step), checkpoints.steps) == (3, [3]), name
        (line,) = caplog.messages
        assert line.startswith("The checkpoint of step 6 is damaged"), name
        assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["3", "damaged-6"]
        shutil.rmtree(run)


def _read(checkpoints, items, step):
    return checkpoints.restore(step, *items)


@pytest.mark.parametrize("damage", _DAMAGES)
def test_damage_to_an_older_checkpoint_is_no_obstacle(tmp_path, damage):
    """It is kept, as nobody knows whether it was to be kept for good."""
    folder = _saved(tmp_path, [3, 6])
    for path in _files(folder / "3"):
        _DAMAGES[damage](path)
    assert _restore(tmp_path) == 6
    _saved(tmp_path, [9, 12, 15])
    assert Checkpoints(tmp_path, read_only=True).steps == [3, 12, 15]


@pytest.mark.parametrize("damage", _DAMAGES)
def test_a_checkpoint_of_which_all_files_are_damaged_is_put_aside(tmp_path, damage):
    folder = _saved(tmp_path, [3, 6])
    for path in _files(folder / "6"):
        _DAMAGES[damage](path)
    assert _restore(tmp_path) == 3
    _saved(tmp_path, [6])  # what comes next takes its place
    assert _restore(tmp_path) == 6


def test_what_was_not_written_to_its_end_is_removed(tmp_path):
    folder = _saved(tmp_path, [3])
    shutil.copytree(folder / "3", folder / "6.part")
    (folder / "7.part.orbax-checkpoint-tmp").mkdir()
    assert Checkpoints(tmp_path, read_only=True).steps == [3]
    assert len(list(folder.iterdir())) == 3
    assert Checkpoints(tmp_path).steps == [3]
    assert [path.name for path in folder.iterdir()] == ["3"]


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    flushed, names = [], []
    flush = module.flush_to_disk

    def keep(path):
        flushed.append(path)
        names.append((tmp_path / "checkpoints" / "3").exists())
        flush(path)

    monkeypatch.setattr(module, "flush_to_disk", keep)
    folder = _saved(tmp_path, [3])
    inside = {path.relative_to(folder / "3") for path in (folder / "3").rglob("*")}
    assert set(flushed[:-1]) == {folder / "3.part", *(folder / "3.part" / path for path in inside)}
    assert flushed[-1] == folder
    assert names == [False] * (len(flushed) - 1) + [True]


def _save_as_earlier(folder, step, score):
    """Writes a checkpoint as versions did that had orbax's manager keep the metrics."""
    (state, sums), values = _items(), 0
    state = jax.device_get(state.replace(step=jnp.int32(step)))
    for leaf in jax.tree.leaves(state):
        values = zlib.crc32(np.ascontiguousarray(leaf), values)
    options = ocp.CheckpointManagerOptions(best_fn=lambda metrics: metrics["score"])
    with ocp.CheckpointManager(folder / "checkpoints", options=options) as manager:
        arguments = ocp.args.Composite(
            agent=ocp.args.StandardSave(state),
            tally=ocp.args.StandardSave(jax.device_get(sums)),
            progress=ocp.args.JsonSave({"stage": "offline", "checksum": values}),
        )
        manager.save(step, args=arguments, metrics={"score": score, "milestone": False})


def test_checkpoints_of_earlier_versions(tmp_path):
    for step, score in ((1, 0.5), (2, 0.9), (3, -np.inf)):
        _save_as_earlier(tmp_path, step, score)
    reader = Checkpoints(tmp_path, read_only=True)
    assert (reader.steps, reader.best_step) == ([1, 2, 3], 2)
    assert reader.read_progress(1)["stage"] == "offline"
    assert int(reader.restore_agent(1, _items()[0]).step) == 1
    assert _restore(tmp_path) == 3
    largest = max(_files(tmp_path / "checkpoints" / "3" / "agent"), key=os.path.getsize)
    _flip(largest)
    (tmp_path / "checkpoints" / "1" / "metrics" / "metrics").write_text("")
    assert _restore(tmp_path) == 2
    _saved(tmp_path, [3, 4], {3: 0.1})
    assert Checkpoints(tmp_path, read_only=True).steps == [1, 2, 3, 4]


def test_a_run_does_not_start_anew_if_all_checkpoints_are_damaged(tmp_path):
    folder = _saved(tmp_path, [3, 6])
    for step in ("3", "6"):
        _truncate(folder / step / "progress" / "metadata")
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
import os, resource, signal, sys
from tests_checkpoints import _items
from qam_jax.runs.checkpoints import Checkpoints
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
checkpoints, (state, sums) = Checkpoints(sys.argv[1]), _items()
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
try:
    checkpoints.save(6, state, sums, {"stage": "offline"})
    checkpoints.close()
except OSError as error:
    os.write(1, str(error).encode())  # in one piece, as threads of orbax report it too
    sys.exit(1)
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
    assert result.returncode == 1, result.stderr
    assert "the checkpoint of step 6 could not be written" in result.stdout, result.stderr
    assert "the same command continues from the checkpoint before it" in result.stdout
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
@pytest.mark.parametrize("to_train", [False, True])
def test_checkpoints_of_other_networks_are_refused(
    tmp_path, name, changes, version, refused, to_train
):
    _begun_by(tmp_path, version)
    config = get_config(name)
    config.update(changes)
    if not refused:
        check_unchanged(tmp_path, config, to_train=to_train)
        return
    written = rf"written by qam_jax {version or 'before 0.2.0'} \(git revision d2f9\)"
    with pytest.raises(ValueError, match=rf"{written}, and '{name}' has changed in 0\.2\.0: "):
        check_unchanged(tmp_path, config, to_train=to_train)


@pytest.mark.parametrize("name", ["fawac", "rebrac"])
def test_checkpoints_of_other_losses_are_for_evaluation(tmp_path, name):
    _begun_by(tmp_path, "0.1.0")
    check_unchanged(tmp_path, get_config(name), to_train=False)
    message = rf"'{name}' has changed in 0\.2\.0: .*Evaluate them here, train on with the version"
    with pytest.raises(ValueError, match=message):
        check_unchanged(tmp_path, get_config(name), to_train=True)
    _begun_by(tmp_path, "0.2.0")
    check_unchanged(tmp_path, get_config(name), to_train=True)


def _begun_by(folder, version):
    """Metadata of a run that a version began, and that this one continued."""
    start = {"versions": {"qam_jax": version}, "git_revision": "d2f9"}
    now = {"versions": {"qam_jax": "0.2.0"}, "git_revision": "e1"}
    rest = dict.fromkeys("dataset_source dataset_fingerprint observation_dim action_dim".split())
    write_json(folder / "metadata.json", {"starts": [start, now], **rest})
