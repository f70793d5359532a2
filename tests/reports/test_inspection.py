"""Tests of `qam_jax.reports.inspection` and of its command, `experiments/inspect_data.py`."""

import html
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from qam_jax.data.dataset import layout
from qam_jax.data.inspection import inspect
from qam_jax.data.npz import write_npz
from qam_jax.envs import make_env
from qam_jax.reports import inspection

_ROOT = Path(__file__).parents[2]


def _data(dims=2):
    rng = np.random.default_rng(0)
    terminals = np.resize([0, 0, 0, 0, 1], 40)
    return {
        "observations": rng.normal(size=(40, dims)),
        "actions": rng.uniform(-1, 1, (40, 2)),
        "terminals": terminals,
        "rewards": rng.normal(size=40),
        "masks": np.resize([1, 1, 1, 0, 1], 40),
    }


def test_page_and_terminal_say_the_same(tmp_path):
    dataset = layout(_data(dims=1))  # fewer than the axes of a plane
    found = inspect(dataset, 2, 0.9)
    figures = inspection.inspection_figures(found, dataset, plane=False)
    words = {"title": "My <data>", "source": "your file", "command": "python it"}
    page = inspection.write_page(found, figures, tmp_path, **words).read_text()
    assert "My &lt;data&gt;" in page and "python it" in page
    assert page.count("<svg ") == 6
    console = Console(record=True, width=140, file=open(os.devnull, "w"))
    inspection.print_inspection(found, console)
    text = console.export_text()
    for name, words in inspection.facts(found).items():
        assert name in html.unescape(page) and f"{name}: {words}" in text
    assert "Nothing stands in the way" in page and "Nothing stands in the way" in text
    assert sorted(path.suffix for path in (tmp_path / "figures").iterdir()) == 2 * [".png"] + 2 * [
        ".svg"
    ]


def test_projection_finds_the_plane_that_the_data_lie_in():
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(500, 2)) * [2, 1]
    axes = np.linalg.qr(rng.normal(size=(4, 2)))[0]  # [4, 2], orthonormal
    points, names = inspection.project(plane @ axes.T)
    np.testing.assert_allclose(np.abs(np.corrcoef(points.T, plane.T)[:2, 2:]), np.eye(2), atol=0.1)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), np.linalg.norm(plane, axis=1))
    assert names[0].startswith("component 1 (8") and names[0].endswith("of variance)")


def test_a_maze_has_places_and_an_arm_has_none():
    assert inspection.is_plane(make_env("pointmaze-medium-navigate-singletask-v0"))
    assert not inspection.is_plane(make_env("cube-single-play-singletask-v0"))
    assert not inspection.is_plane(None)


@pytest.mark.slow
def test_command(tmp_path):
    write_npz(tmp_path / "my.npz", _data())

    def run(*arguments):
        command = [sys.executable, _ROOT / "experiments" / "inspect_data.py", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    result = run("--dataset=my.npz", "--config.horizon_length=3", "--sparse")
    assert result.returncode == 0, result.stderr
    assert "windows of 3 rows cut" in result.stdout and "rewards: -1 (100.00%)" in result.stdout
    assert "inspection/inspection.html" in result.stdout
    assert "your file my.npz" in (tmp_path / "inspection" / "inspection.html").read_text()
    result = run()
    assert result.returncode == 1 and "name data of your own by --dataset" in result.stderr
