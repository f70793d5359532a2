import contextlib
import datetime
import io
import json
import math
import os
import platform

import pytest
from rich.console import Console

from qam_jax.files import hold_lock
from qam_jax.reports.progress import (
    duration,
    finish_line,
    progress_view,
    read_progress,
    watch_folders,
)
from qam_jax.runs.lock import lock_folder
from qam_jax.runs.stopping import Stopped

_NOW = 1_800_000_000.0


def _set_times(folder, *, started, written, checkpoints=()):
    """Gives a run's folder the times (seconds before `_NOW`) that a real one would have."""
    path = folder / "metadata.json"
    metadata = json.loads(path.read_text())
    begin = datetime.datetime.fromtimestamp(_NOW - started, datetime.UTC)
    metadata["starts"][-1]["time"] = begin.isoformat(timespec="seconds")
    path.write_text(json.dumps(metadata))
    for step, age in checkpoints:
        (folder / "checkpoints" / str(step)).mkdir(parents=True)
        os.utime(folder / "checkpoints" / str(step), (_NOW - age, _NOW - age))
    for entry in folder.iterdir():
        os.utime(entry, (_NOW - written, _NOW - written))


def _shown(runs, notes=(), **options):
    console = Console(file=io.StringIO(), width=170)
    console.print(progress_view(runs, notes, _NOW, **{"width": 170, "show_done": True, **options}))
    return console.file.getvalue()


def test_a_run_at_work(make_run):
    folder = make_run((0.1, 0.4), offline_steps=2000)
    _set_times(folder, started=120, written=20)
    run = read_progress(folder, _NOW)
    assert (run.name, run.state, run.stage) == (
        "QAM cube-double-play task 2 seed 0", "running", "offline",
    )  # fmt: skip
    assert (run.step, run.end, run.score) == (1000, 2000, "40% at 1k")
    assert run.speed == 25
    # 1,000 steps took 100 seconds, evaluations included; 20 of the next 100 have passed.
    assert run.remaining == pytest.approx(80)
    assert not run.open_ended


def test_the_rate_is_that_since_the_oldest_checkpoint_of_a_continued_run(make_run):
    folder = make_run((0.1, 0.2, 0.3, 0.4), offline_steps=4000)
    path = folder / "metadata.json"
    metadata = json.loads(path.read_text())
    metadata["starts"] *= 2
    path.write_text(json.dumps(metadata))
    _set_times(folder, started=300, written=10, checkpoints=[(500, 900), (1000, 210), (1500, 90)])
    run = read_progress(folder, _NOW)
    assert run.remaining == pytest.approx(2000 / (1000 / 200) - 10)


def test_online_the_offline_pace_does_not_count(make_run):
    folder = make_run((0.1, 0.2, 0.3), offline_steps=1000, online_steps=2000)
    _set_times(folder, started=10_000, written=0, checkpoints=[(500, 5000)])
    run = read_progress(folder, _NOW)
    assert run.stage == "online"
    assert run.remaining == pytest.approx(1500 / 25)  # by the speed of the last row
    early = make_run((0.1,), offline_steps=1000, online_steps=2000, seed=1)
    _set_times(early, started=100, written=0)
    assert read_progress(early, _NOW).open_ended
    assert "≥ " in _shown([read_progress(early, _NOW)])


def test_a_run_that_went_silent_and_one_that_is_done(make_run):
    silent, done = make_run((0.1,), seed=0), make_run((0.1, 0.9), seed=1)
    for folder in (silent, done):
        _set_times(folder, started=9000, written=7200)
    runs = [read_progress(folder, _NOW) for folder in (done, silent)]
    assert [run.state for run in runs] == ["done", "silent"]
    text = _shown(runs)
    assert "silent for 2 h 0 min" in text
    assert "1 silent, 1 done; nothing is running." in text
    assert "seed 1" not in _shown(runs, show_done=False)


def test_how_a_run_ended_is_known_at_once(make_run):
    ends = {"failed": ValueError("the loss is nan"), "stopped": Stopped("SIGTERM")}
    for seed, error in enumerate(ends.values()):
        folder = make_run((0.1,), seed=seed)
        with contextlib.suppress(ValueError, Stopped), lock_folder(folder):
            raise error
        _set_times(folder, started=100, written=7)
    killed = make_run((0.1,), seed=2)
    (killed / "lock").write_text(f"process 1 on {platform.node()}")
    _set_times(killed, started=100, written=7)
    runs, _ = watch_folders([folder.parent], _NOW)
    assert [run.state for run in runs] == ["failed", "stopped", "stopped"]
    text = _shown(runs)
    assert "Note: QAM cube-double-play task 2 seed 0: the loss is nan" in text
    assert "failed 7 s ago" in text and "stopped 7 s ago" in text
    assert "1 failed, 2 stopped; nothing is running." in text


def test_a_run_is_done_when_its_process_has_ended(make_run):
    folder = make_run((0.1, 0.9))
    with lock_folder(folder):
        _set_times(folder, started=100, written=1)
        assert read_progress(folder, _NOW).state == "running"  # evaluates, say
    assert read_progress(folder, _NOW).state == "done"


def test_a_start_that_was_broken_off_here_is_not_waited_for(tmp_path):
    path = tmp_path / "lock"
    with hold_lock(path, "at work"):
        assert read_progress(tmp_path, path.stat().st_mtime).note.startswith("starting")
    assert read_progress(tmp_path, path.stat().st_mtime).state == "damaged"


@pytest.mark.parametrize("name", ["config.json", "metadata.json"])
@pytest.mark.parametrize("content", ["[1]", '{"agent": 5, "starts": 5}'])
def test_foreign_files_never_raise(make_run, name, content):
    folder = make_run()
    (folder / name).write_text(content)
    assert read_progress(folder, _NOW).state == "damaged"


def test_slow_runs_are_waited_for(make_run):
    folder = make_run((0.1,), offline_steps=200_000, interval=100_000)  # 4000 s a row
    _set_times(folder, started=13_000, written=9000)
    assert read_progress(folder, _NOW).state == "running"


def test_folders_that_tell_little(make_run, tmp_path):
    root = tmp_path / "exp" / "study" / "task"
    starting, broken, empty = root / "starting", root / "broken", root / "empty"
    for folder in (starting, broken, empty):
        folder.mkdir(parents=True)
    (starting / "lock").write_text("process 1 on host")
    (broken / "config.json").write_text('{"agent": ')
    os.utime(starting / "lock", (_NOW, _NOW))
    runs, notes = watch_folders([tmp_path / "exp", tmp_path / "nowhere"], _NOW)
    by_name = {run.name: run for run in runs}
    assert by_name["starting"].note == "starting: no config.json yet"
    assert by_name["starting"].state == "running"
    assert by_name["broken"].state == "damaged" and "is damaged" in by_name["broken"].note
    assert by_name["empty"].note == "no config.json"
    assert notes == [f"{tmp_path / 'nowhere'}: there is no such folder."]
    assert watch_folders([broken / "config.json"], _NOW)[1] == [
        f"{broken / 'config.json'}: a file, not a folder of runs."
    ]
    text = _shown(runs, notes)
    assert "broken: " in text and "see above" in text and "is damaged" in text
    assert "there is no such folder" in text and "1 running, 2 damaged" in text
    (broken / "config.json").write_text('{"agent": {}}')
    assert "'bc_steps' is missing" in read_progress(broken, _NOW).note
    assert "no runs" in _shown([])


def test_before_the_first_row_nothing_is_known(make_run):
    folder = make_run(())
    _set_times(folder, started=10, written=5)
    run = read_progress(folder, _NOW)
    assert (run.state, run.step, run.stage) == ("running", 0, "")
    assert math.isnan(run.speed) and math.isnan(run.remaining) and run.score == "–"
    assert "not known yet" in finish_line([run], _NOW)


def test_clocks_that_disagree_do_not_make_negative_times(make_run):
    folder = make_run((0.1,))
    _set_times(folder, started=100, written=-50)  # written by a machine that is ahead
    run = read_progress(folder, _NOW)
    assert run.age == 0
    assert run.remaining > 0


def test_returns_are_shown_as_such(make_run):
    nan = float("nan")
    folder = make_run((nan,), returns=(-900.0,), env_name="Pendulum-v1")
    _set_times(folder, started=100, written=1)
    assert "return -900.0 at 500" in _shown([read_progress(folder, _NOW)])


def test_a_narrow_terminal_has_fewer_columns(make_run):
    folder = make_run((0.1, 0.4), offline_steps=1_250_000, interval=500_000)
    _set_times(folder, started=100_000, written=1)
    run = read_progress(folder, _NOW)
    wide, narrow = _shown([run]), _shown([run], width=80)
    assert "1M of 1.25M" in wide and "offline" in wide
    assert "of 1.25M" not in narrow
    assert "40% at 1M" in narrow and "running" in narrow


def test_runs_of_the_same_name_are_told_apart_by_their_folders(make_run):
    runs = [read_progress(make_run((0.1,), run_id=name), _NOW) for name in ("first", "second")]
    text = _shown(runs)
    assert "(first)" in text and "(second)" in text


def test_durations():
    seconds = (5, 59 * 60, 200 * 60, 50 * 3600 + 1800, float("nan"))
    assert [duration(value) for value in seconds] == [
        "5 s", "59 min", "3 h 20 min", "2 d 2 h", "–",
    ]  # fmt: skip
