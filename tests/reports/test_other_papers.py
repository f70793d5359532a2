"""Figures of other papers: their data and protocols, and which runs can be held against them."""

import io

import pytest
from rich.console import Console

from qam_jax.data.tasks import find_task
from qam_jax.reports.comparisons import other_papers_view
from qam_jax.reports.labels import task_label
from qam_jax.reports.page import render_page
from qam_jax.reports.published import STUDIES, other_figures, published_results, sources
from qam_jax.reports.summary import make_report
from qam_jax.reports.terminal import print_report
from qam_jax.runs import presets

_PROTOCOL = ["data", "reward", "horizon_length", "offline_steps"]
_LONG = {"offline_steps": 1_000_000, "interval": 500_000}
_CLONED = {"bc_steps": 500_000, "offline_steps": 500_000}


def test_every_figure_has_its_protocol_and_its_source():
    tables = [other_figures(), *map(published_results, STUDIES)]
    for table in tables:
        assert not table[[*_PROTOCOL, "num_seeds", "source"]].isna().any(axis=None)
        assert set(table["source"]) <= set(sources())
    assert len(tables[0]) == 50 + 2 * 10 + 5 * 7 + 19
    assert tables[0]["mean"].between(0, 100).all()
    for env_name in tables[0]["env_name"]:
        assert find_task(env_name) or env_name.endswith(("-play", "-navigate"))
    assert not tables[0].duplicated(["source", "env_name", "method"]).any()
    for source in sources().values():
        assert source.keys() == {"title", "arxiv", "note"}


def test_the_means_of_domains_are_those_that_are_printed():
    """Checks the transcription of RQL's fifty tasks against another one, of its domains."""
    rows = other_figures().query("method == 'RQL'")
    domains = rows["env_name"].map(lambda name: task_label(name)[0])
    assert rows["mean"].groupby(domains).mean().round().to_dict() == {
        "antmaze-large-navigate": 83, "antmaze-giant-navigate": 37,
        "humanoidmaze-medium-navigate": 93, "humanoidmaze-large-navigate": 39, "scene-play": 89,
        "puzzle-3x3-play": 100, "puzzle-4x4-play": 37, "cube-double-play": 23,
        "cube-triple-play": 4, "cube-quadruple-play": 51,
    }  # fmt: skip


def test_the_protocols_of_the_paper_are_those_of_its_preset():
    for study in STUDIES:
        for row in published_results(study).drop_duplicates("env_name").itertuples():
            settings, config = presets.paper("qam", row.env_name)
            assert (row.data == "100M") == bool(settings["ogbench_dataset_dir"])
            assert (row.reward == "sparse") == settings["sparse"]
            assert row.horizon_length == config["horizon_length"]
            assert row.offline_steps == settings["offline_steps"]


def _by_source(make_run):
    table = make_report([str(make_run.args[0])]).other_papers
    return {(row.source, row.env_name): row for row in table.itertuples()}


def test_a_run_of_the_same_protocol_is_comparable(make_run):
    for seed in (0, 1):
        make_run((0.1, 0.5), seed=seed, agent_name="rql", **_LONG)
    rows = _by_source(make_run)
    task = rows["RQL", "cube-double-play-singletask-task2-v0"]
    assert (task.figures, task.method, task.mean, task.num_runs) == (("RQL 25 (4)",), "RQL", 50, 2)
    assert task.protocol == (
        "RQL: 1M to 3M transitions, default rewards, chunks of 5 actions, 1,000,000 updates"
    )
    assert task.differences == ()
    domain = rows["RQL", "cube-double-play"]
    assert domain.figures == ("BDPO 32 (4)", "TFQL 48 (4)")
    assert domain.differences == ("1 of the domain's 5 tasks",)
    assert rows["FAN", "cube-double-play"].differences == (
        "horizon_length = 5 (figures: 1)",
        "1 of the domain's 5 tasks",
    )


def test_a_domain_is_comparable_with_all_of_its_tasks(make_run):
    for task in range(1, 6):
        env_name = f"cube-double-play-singletask-task{task}-v0"
        config = {"horizon_length": 1}
        make_run((0.1, task / 5), env_name=env_name, agent_name="fan", config=config, **_LONG)
    row = _by_source(make_run)["FAN", "cube-double-play"]
    assert (row.mean, row.num_runs, row.differences) == (pytest.approx(60), 1, ())


@pytest.mark.parametrize(
    ("source", "settings", "reason"),
    [
        ("RQL", _LONG, "sparse = False (figures: True)"),
        ("RQL", _LONG, "one file of data (figures: 100 files of a million transitions)"),
        ("QGF", _LONG, "offline_steps = 1,000,000 (figures: 500,000)"),
        ("RQL", _LONG | _CLONED, "bc_steps = 500,000 (figures: 0)"),
        ("RQL", _LONG | {"dataset_proportion": 0.5}, "dataset_proportion = 0.5 (figures: 1)"),
    ],
)
def test_what_makes_a_run_not_comparable(make_run, source, settings, reason):
    env_name = "puzzle-4x4-play-singletask-task1-v0"
    make_run((0.2, 0.5), env_name=env_name, **settings)
    assert reason in _by_source(make_run)[source, env_name].differences


def test_single_steps_with_returns_of_several_are_no_chunks(make_run):
    make_run((0.2, 0.5), config={"action_chunking": False}, **_LONG)
    row = _by_source(make_run)["RQL", "cube-double-play-singletask-task2-v0"]
    assert row.differences == ("action_chunking = False (figures: True)",)


def test_the_reader_sees_each_protocol_apart(make_run):
    make_run((0.1, 0.5), **_LONG)
    report = make_report([str(make_run.args[0])])
    view = other_papers_view(report.other_papers)
    assert [name.split(":")[0] for name in view["protocols"]] == ["FAN", "RQL"]
    console = Console(file=io.StringIO(), width=160)
    print_report(report, console)
    for text in (render_page(report, "x"), console.file.getvalue()):
        assert "RQL: 1M to 3M transitions, default rewards" in text
        assert "RQL 25 (4)" in text
        assert "third party" in " ".join(text.split())


@pytest.mark.parametrize("method", ["trqam", "qam"])
def test_trqams_own_number_is_said_to_be_on_other_data(make_run, method):
    make_run((0.1, 0.5), agent_name=method)
    notes = "\n".join(make_report([str(make_run.args[0])]).notes)
    assert ("other data than QAM's tables" in notes) == (method == "trqam")


def test_the_source_of_a_value_learning_is_noted(make_run):
    make_run((0.1, 0.5), config={"value_learning": "lql"})
    notes = "\n".join(make_report([str(make_run.args[0])]).notes)
    assert "LQL (arXiv 2605.05812)" in notes
