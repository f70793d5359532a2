import fcntl
import platform
import signal
from pathlib import Path

import pytest

from qam_jax import files
from qam_jax.files import atomic_write, hold_lock, is_held, user_path
from qam_jax.runs.lock import lock_folder, read_status
from qam_jax.runs.stopping import Stopped


def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with lock_folder(tmp_path):
        with pytest.raises(
            OSError, match=r"another process is at work .*process \d+ on .*--run_id"
        ):
            with lock_folder(tmp_path):
                pass
    with lock_folder(tmp_path):
        pass


def test_a_folder_in_which_nothing_was_written_goes_with_its_lock(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with lock_folder(folder):
        assert folder.exists()
    assert not folder.exists()


def test_a_start_that_is_refused_leaves_no_folder(tmp_path):
    folder = tmp_path / "exp" / "group" / "env" / "run"
    (folder / "checkpoints").mkdir(parents=True)
    with lock_folder(folder):
        pass
    assert not (tmp_path / "exp" / "group").exists() and (tmp_path / "exp").exists()
    (folder / "checkpoints" / "10").mkdir(parents=True)
    with lock_folder(folder):
        pass
    assert (folder / "checkpoints" / "10").exists()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, ("finished", "")),
        (Stopped(signal.SIGTERM.name), ("stopped", "SIGTERM")),
        (KeyboardInterrupt(), ("stopped", "KeyboardInterrupt")),
        (ValueError("the loss is nan: lower it.\nmore"), ("failed", "the loss is nan: lower it.")),
        (KeyError("lr"), ("failed", "KeyError: 'lr'")),
        (AssertionError(), ("failed", "AssertionError")),
    ],
)
def test_a_folder_says_how_its_process_stands_and_ended(tmp_path, error, status):
    (tmp_path / "config.json").write_text("{}")
    assert read_status(tmp_path) == ("", "")
    try:
        with lock_folder(tmp_path):
            assert read_status(tmp_path) == ("running", "")
            if error is not None:
                raise error
    except type(error) as raised:
        assert raised is error
    assert read_status(tmp_path) == status
    with lock_folder(tmp_path):  # continued
        assert read_status(tmp_path) == ("running", "")


def test_a_process_that_ended_without_a_word_was_killed_if_it_ran_here(tmp_path):
    (tmp_path / "lock").write_text(f"process 1 on {platform.node()}")
    assert read_status(tmp_path) == ("stopped", "killed")
    (tmp_path / "lock").write_text("process 1 on another.machine")
    assert read_status(tmp_path) == ("", "")


def test_the_end_is_no_secret_where_it_cannot_be_written(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="the real reason"), lock_folder(tmp_path):
        (tmp_path / "lock").unlink()
        (tmp_path / "lock").mkdir()
        raise ValueError("the real reason")


def test_a_look_at_a_lock_does_not_keep_a_process_from_taking_it(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    with hold_lock(path, "at work"):
        assert is_held(path) is True
    assert is_held(path) is False
    assert is_held(tmp_path / "none") is None
    with open(path) as look:
        fcntl.flock(look, fcntl.LOCK_SH)
        monkeypatch.setattr("qam_jax.files.time.sleep", lambda _: look.close())
        with hold_lock(path, "at work", wait=False):
            assert is_held(path) is True


def test_files_that_killed_processes_left_are_removed(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "a.npz") as temporary:
        temporary.touch()
        name = temporary.name
        raise KeyboardInterrupt
    kept = [tmp_path / "checkpoints" / ".a.tmp.npz", tmp_path / "config.json"]
    left = [tmp_path / name, tmp_path / "replay" / name, tmp_path / name.removesuffix(".npz")]
    for path in (*kept, *left):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    with lock_folder(tmp_path):
        assert all(path.exists() for path in kept)
        assert not any(path.exists() for path in left)


def test_the_next_writer_removes_what_a_killed_one_left_and_nothing_else(tmp_path):
    left = tmp_path / ".data.0123abcd.tmp.npz"
    kept = [tmp_path / name for name in (".other.0123abcd.tmp.npz", ".data.tmp.npz")]
    for path in (left, *kept):
        path.touch()
    with atomic_write(tmp_path / "data.npz") as first:
        assert not left.exists()
        with atomic_write(tmp_path / "data.npz") as second:
            second.write_text("second")
        first.write_text("first")
    assert (tmp_path / "data.npz").read_text() == "first"
    assert {*tmp_path.iterdir()} == {tmp_path / "data.npz", *kept}


def test_a_link_stays_and_its_file_is_written(tmp_path):
    (tmp_path / "disk").mkdir()
    link, target = tmp_path / "page.html", tmp_path / "disk" / "real.html"
    link.symlink_to(target)
    for text in ("first", "second"):
        with atomic_write(link) as temporary:
            temporary.write_text(text)
        assert link.is_symlink() and target.read_text() == text
    assert {*tmp_path.rglob("*")} == {tmp_path / "disk", link, target}


def test_a_home_that_is_not_known_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/exp") == tmp_path / "exp"
    with pytest.raises(
        OSError, match=r"home folder in '~no_such_user/exp' is not known.*full path"
    ):
        user_path("~no_such_user/exp")


def test_paths_of_the_user_are_expanded_in_one_way():
    package = Path(files.__file__).parent
    paths = [*package.rglob("*.py"), *(package.parent / "experiments").glob("*.py")]
    own = [path.name for path in paths if ".expanduser()" in path.read_text()]
    assert own == ["files.py"]
