"""`report.py` and `watch.py` from the command line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # each test starts processes

_EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def _run(script, *arguments, stdout=subprocess.PIPE):
    command = [sys.executable, str(_EXPERIMENTS / script), *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "170"}
    return subprocess.run(
        command, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=300, env=environment
    )


def test_a_report_on_runs_and_on_a_study_that_has_not_begun(make_run, tmp_path):
    make_run((0.2, 0.4))
    (tmp_path / "exp" / "later").mkdir()
    out = tmp_path / "out"
    study, later = tmp_path / "exp" / "study", tmp_path / "exp" / "later"
    result = _run("report.py", study, later, f"--out={out}", "--title=Mine")
    assert result.returncode == 0, result.stderr
    assert f"{later}: no runs yet." in result.stdout.replace("\n", " ")
    assert f"Report: {out / 'report.html'}" in result.stdout
    page = (out / "report.html").read_text()
    assert "<title>Mine</title>" in page and "--title=Mine" in page
    assert (out / "figures" / "curves_cube-double-play.svg").exists()
    assert (out / "tables" / "published.csv").exists()
    alone = _run("report.py", later, f"--out={out / 'none'}")
    assert alone.returncode == 1
    assert "there are no runs in" in alone.stderr and "Traceback" not in alone.stderr
    assert not (out / "none").exists()


def test_watching_once(make_run, tmp_path):
    make_run((0.2, 0.4))
    result = _run("watch.py", tmp_path / "exp", "--once")
    assert result.returncode == 0, result.stderr
    assert "1 done; nothing is running." in result.stdout
    assert "40% at 1k" in result.stdout
    there, nowhere = tmp_path / "exp", tmp_path / "nowhere"
    missing = _run("watch.py", nowhere, there, "--once")
    assert missing.returncode == 1
    assert "1 done; nothing is running." in missing.stdout
    assert missing.stderr == f"Error: there is no folder {nowhere}.\n"
    homeless = _run("watch.py", "~no_such_user/exp", "--once")
    assert homeless.stderr.startswith("Error: the home folder in '~no_such_user/exp' is not known")
    nothing = _run("watch.py")
    assert nothing.returncode == 1
    assert "give at least one folder of runs" in nothing.stdout + nothing.stderr


@pytest.mark.parametrize("script", ["report.py", "watch.py"])
def test_nobody_reads_what_is_printed(script, make_run, tmp_path):
    """As in `report.py exp | head`: the pipe is closed before the first line."""
    make_run((0.2, 0.4))
    reader, writer = os.pipe()
    os.close(reader)
    option = {"report.py": f"--out={tmp_path / 'out'}", "watch.py": "--once"}[script]
    result = _run(script, tmp_path / "exp", option, stdout=writer)
    os.close(writer)
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "out" / "report.html").exists() == (script == "report.py")
