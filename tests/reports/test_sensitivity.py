import csv
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from matplotlib import pyplot as plt

from qam_jax.reports.figures import report_figures, write_figures
from qam_jax.reports.page import render_page
from qam_jax.reports.summary import make_report, write_tables

_TASK = "cube-double-play-singletask-task2-v0"


@pytest.fixture(scope="module", name="study")
def _study(make_shared_run):
    """QAM and FEdit with three and two temperatures, two seeds each; FQL with one setting."""
    for seed in (0, 1):
        for place, value in enumerate((0.3, 1.0, 10.0)):
            rates = (0.0, 0.2 * place + 0.1 * seed)
            make_shared_run(rates, seed=seed, config={"inv_temp": value})
        make_shared_run((0.0, 0.5), seed=seed, agent_name="fql")
    for value in (0.3, 1.0):
        make_shared_run((0.0, 0.6), agent_name="qam_e", config={"inv_temp": value})
    return [str(make_shared_run.args[0])]


def test_a_line_for_each_method_whose_runs_differ(study):
    report = make_report(study, settings=["config.inv_temp"])
    points = {(p.method, p.value): p for p in report.sensitivity["config.inv_temp"].itertuples()}
    assert list(points) == [
        ("QAM", 0.3), ("QAM", 1.0), ("QAM", 10.0), ("QAM-E", 0.3), ("QAM-E", 1.0),
    ]  # fmt: skip
    point = points["QAM", 10.0]
    assert (point.env_name, point.stage, point.seeds) == (_TASK, "offline", (0, 1))
    np.testing.assert_allclose((point.mean, point.mean_low, point.mean_high), [45, 40, 50])
    assert np.isnan(points["QAM-E", 0.3].mean_low)
    early = make_report(study, settings=["config.inv_temp"], at=500).sensitivity["config.inv_temp"]
    assert (early["stage"].iloc[0], early["mean"].iloc[0]) == ("step 500", 0)


@pytest.mark.slow
def test_the_page_the_tables_and_the_figures_show_it(study, tmp_path):
    report = make_report(study, settings=["config.inv_temp"])
    page = render_page(report, "title")
    assert "Sensitivity to config.inv_temp</h2>" in page
    assert 'href="#s-1"' in page and 'id="s-1"' in page
    assert page.count('aria-label="cube-double-play, task 2, offline"') == 1
    files = {path.name: path for path in write_tables(report, tmp_path / "out")}
    with open(files["sensitivity.csv"], newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["value"] for row in rows] == ["0.3", "1", "10", "0.3", "1"]
    assert (rows[2]["mean"], rows[2]["mean_low"], rows[2]["seeds"]) == ("45", "40", "0 1")
    pictures = {path.name: path for path in write_figures(report, tmp_path / "out")}
    ElementTree.parse(pictures["sensitivity_config_inv_temp.svg"])
    assert plt.imread(pictures["sensitivity_config_inv_temp.png"]).std() > 0


@pytest.mark.parametrize(
    ("field", "values", "scale"),
    [
        ("lr", [1e-4, 2e-4, 1.01e-3], "log"),
        ("lr", [1e-4, 2e-4, 1e-3], "linear"),
        ("rho", [0.0, 0.01, 0.5], "linear"),
    ],
)
def test_the_axis_is_logarithmic_if_values_span_more_than_a_factor_ten(
    make_run, tmp_path, field, values, scale
):
    for value in values:
        make_run((0.1, 0.2), config={field: value})
    report = make_report([str(tmp_path / "exp")], settings=[f"config.{field}"])
    (draw,) = report_figures(report)[f"sensitivity_config.{field}"].panels
    figure, axes = plt.subplots()
    draw(axes)
    assert axes.get_xscale() == scale
    assert axes.lines[0].get_xdata().tolist() == values
    plt.close(figure)


def test_other_settings_that_differ_have_lines_of_their_own(make_run, tmp_path):
    for rho in (0.0, 0.5):
        for value in (1.0, 3.0):
            make_run((0.1, rho), config={"inv_temp": value, "rho": rho})
    report = make_report([str(tmp_path / "exp")], settings=["config.inv_temp"])
    methods = report.sensitivity["config.inv_temp"]["method"].value_counts()
    assert "QAM" in methods and methods.tolist() == [2, 2]
    assert any("--sensitivity=config.inv_temp: QAM on" in note for note in report.notes)


def test_a_setting_of_the_run_that_does_not_tell_runs_apart_otherwise(make_run, tmp_path):
    for ratio in (1, 4):
        make_run((0.1, 0.2, 0.2 * ratio), online_steps=500, utd_ratio=ratio, run_id=f"{ratio}")
    assert make_report([str(tmp_path / "exp")]).runs["folder"].nunique() == 1
    points = make_report([str(tmp_path / "exp")], settings=["utd_ratio"]).sensitivity["utd_ratio"]
    assert [(p.stage, p.value, p.mean) for p in points.itertuples()] == [
        ("offline", 1, 20), ("offline", 4, 20), ("online", 1, 20), ("online", 4, 80),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("setting", "note"),
    [
        ("config.inv_tmp", "no run has such a setting. Did you mean config.inv_temp?"),
        ("inv_temp", "no run has such a setting. Did you mean config.inv_temp?"),
        ("config.wholly_different", "no run has such a setting."),
        ("config.actor_layer_norm", "it is no number, but "),
        ("sparse", "it is no number, but False, in "),
        ("config.discount", "no method has runs of several values on one task (found 0.99)."),
    ],
)
def test_what_cannot_be_drawn_is_said_and_the_report_goes_on(study, setting, note):
    report = make_report(study, settings=[setting])
    assert report.sensitivity == {}
    assert any(f"--sensitivity={setting}: {note}" in line for line in report.notes)
    assert len(report.results)


def test_before_any_result(make_run, tmp_path):
    for value in (1.0, 3.0):
        make_run((), config={"inv_temp": value})
    report = make_report([str(tmp_path / "exp")], settings=["config.inv_temp"])
    assert "--sensitivity=config.inv_temp: no run has come to the end of a stage yet." in (
        report.notes
    )
