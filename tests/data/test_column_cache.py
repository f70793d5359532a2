"""The converted columns of a folder's files, which are kept, and the folder's fingerprint."""

import errno
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

from qam_jax.data import column_cache
from qam_jax.data.checks import FIELDS
from qam_jax.data.npz import load_npz


def _first_numbers(source, steps):
    return [int(source.at(step).observations[0, 0]) for step in steps]


def _converted(folder, monkeypatch):
    """Notes which files are converted."""
    paths = []

    def note(path, **options):
        paths.append(path.name)
        return load_npz(path, **options)

    monkeypatch.setattr(column_cache, "load_npz", note)
    return paths


def test_a_file_is_converted_once_and_again_when_it_changes(
    folder, open_folder, monkeypatch, write
):
    converted = _converted(folder, monkeypatch)
    for _ in range(2):
        source = open_folder(folder)
        _first_numbers(source, (0, 10, 20))
        source.close()
    assert converted == ["a.npz", "b.npz", "c.npz"]
    write(folder / "b.npz", 700, 20)
    source = open_folder(folder)
    assert _first_numbers(source, (0, 10)) == [0, 700]
    assert converted == ["a.npz", "b.npz", "c.npz", "b.npz"]


def test_columns_that_were_cut_short_are_made_again(folder, open_folder, monkeypatch):
    def use():
        source = open_folder(folder)
        source.at(0)
        source.close()  # after the thread has read the next file

    use()
    (columns,) = (folder / ".columns" / "a").iterdir()
    whole = columns.read_bytes()
    converted = _converted(folder, monkeypatch)
    for damaged in (whole[:-12], b"", whole[:-1]):
        columns.write_bytes(damaged)
        use()
        assert columns.read_bytes() == whole
    assert converted == 3 * ["a.npz"]


def test_columns_are_float32_and_nothing_else_is_left(folder, open_folder, write):
    old = folder / ".columns" / "a" / "task"
    old.mkdir(parents=True)
    (old / "rewards.npy").touch()  # of a file that has changed since
    source = open_folder(folder)
    source.at(0)
    source.close()
    (columns,) = (folder / ".columns" / "a").iterdir()
    with np.load(folder / "a.npz") as archive:
        expected = [archive[name].astype(np.float32).ravel() for name in FIELDS[:4]]
    np.testing.assert_array_equal(np.fromfile(columns, np.float32), np.concatenate(expected))
    visible = [path.name for path in (folder / ".columns").iterdir() if path.name[0] != "."]
    assert sorted(visible) == ["a", "b"]
    assert not list((folder / ".columns").rglob("*.tmp*"))


class _KilledError(BaseException):
    """Stands for the death of the process: nothing is cleaned up after it."""


def test_a_half_written_conversion_is_never_used(folder, open_folder, monkeypatch):
    def die(temporary):
        assert temporary.stat().st_size
        raise _KilledError

    with monkeypatch.context() as patch:
        patch.setattr("qam_jax.files.flush_to_disk", die)
        patch.setattr(type(folder), "unlink", lambda *args, **kwargs: None)
        with pytest.raises(_KilledError):
            open_folder(folder, replace_interval=0).at(0)
    (leftover,) = (folder / ".columns" / "a").iterdir()
    assert leftover.name[0] == "."
    assert _first_numbers(open_folder(folder, replace_interval=0), [0]) == [0]
    assert not leftover.exists()


def test_columns_that_the_new_version_lacks_are_removed(folder, open_folder, write):
    write(folder / "a.npz", masks=np.zeros(12))
    assert open_folder(folder, replace_interval=0).at(0).masks[0] == 0
    write(folder / "a.npz")
    assert open_folder(folder, replace_interval=0).at(0).masks[0] == 1


def test_a_full_disk_is_reported_with_what_to_do(folder, open_folder, monkeypatch):
    def fail(temporary):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("qam_jax.files.flush_to_disk", fail)
    with pytest.raises(OSError, match=r"cannot store the columns of .*a\.npz.*QAM_JAX_CACHE"):
        open_folder(folder, replace_interval=0).at(0)
    assert not list((folder / ".columns").rglob("*.tmp*"))


def test_where_the_folder_cannot_be_written_to_another_is_used(
    folder, open_folder, monkeypatch, tmp_path
):
    (folder / ".columns").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert _first_numbers(open_folder(folder), [0, 10]) == [0, 100]
    assert list((tmp_path / "xdg" / "qam_jax" / "columns").glob("shards-*/a/*.float32"))
    monkeypatch.setenv(column_cache.CACHE_VARIABLE, str(tmp_path / "mine"))
    assert _first_numbers(open_folder(folder), [0, 10]) == [0, 100]
    assert list((tmp_path / "mine").rglob("a/*.float32"))


_SCRIPT = """
import sys
from qam_jax.data.shards import Shards
source = Shards(sys.argv[1], None, replace_interval=10)
print([int(source.at(step).observations[0, 0]) for step in (0, 10, 20)])
"""  # which does not close the source, and ends all the same


@pytest.mark.slow
def test_two_processes_share_the_columns(folder):
    command = [sys.executable, "-c", _SCRIPT, str(folder)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        assert process.communicate(timeout=60)[0].strip() == "[0, 100, 200]"
        assert process.returncode == 0


@pytest.mark.parametrize("locks", [True, False])
def test_two_sources_convert_at_once(folder, open_folder, monkeypatch, locks):
    if not locks:  # a file system without

        def refuse(*args):
            raise OSError(errno.ENOTSUP, "not supported")

        monkeypatch.setattr("qam_jax.files.fcntl.flock", refuse)
    both_loaded = threading.Barrier(2)

    def load(path, **options):
        data = load_npz(path, **options)
        if not locks:
            both_loaded.wait(10)
        return data

    monkeypatch.setattr(column_cache, "load_npz", load)
    sources = [open_folder(folder, replace_interval=0) for _ in range(2)]
    results = [None, None]

    def read(which):
        results[which] = _first_numbers(sources[which], [0])

    threads = [threading.Thread(target=read, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[0], [0]]
    assert len(list((folder / ".columns" / "a").iterdir())) == 1
    assert not list((folder / ".columns").rglob("*.tmp*"))


def test_the_fingerprint_is_that_of_content_and_settings(folder, open_folder, tmp_path, write):
    expected = open_folder(folder).fingerprint()
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert open_folder(moved).fingerprint() == expected
    with np.load(folder / "c.npz") as archive:
        np.savez(moved / "c.npz", **archive)  # not compressed, at another time
    assert open_folder(moved).fingerprint() == expected
    others = [
        open_folder(folder, **options).fingerprint()
        for options in ({"replace_interval": 5}, {"proportion": 0.5}, {"sparse": True})
    ]
    write(moved / "c.npz", 201, 8, terminals=np.arange(8) % 4 == 3)
    others.append(open_folder(moved).fingerprint())
    (moved / "c.npz").rename(moved / "d.npz")
    others.append(open_folder(moved).fingerprint())
    assert len({expected, *others}) == 6
