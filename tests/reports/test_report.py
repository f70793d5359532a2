"""The report as its reader meets it: page, tables, figures and what is printed."""

import csv
import io
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib import pyplot as plt
from rich.console import Console

from qam_jax.reports.figures import inline_svg, lines, report_figures, write_figures
from qam_jax.reports.page import render_page
from qam_jax.reports.summary import make_report, write_tables
from qam_jax.reports.terminal import print_report

_TASK = "cube-double-play-singletask-task2-v0"
_VOID = {"meta", "br", "img", "line", "rect", "circle", "path", "use", "link", "input"}


@pytest.fixture(scope="module", name="study")
def _study(make_shared_run):
    """Two methods with two seeds on a published task, one run on a second domain, one at work."""
    for seed in (0, 1):
        make_shared_run((0.2, 0.7, 0.9), seed=seed, online_steps=500)
        make_shared_run((0.1, 0.3, 0.4), seed=seed, online_steps=500, agent_name="fql")
    make_shared_run((0.5, 1.0), env_name="cube-single-play-singletask-task1-v0")
    make_shared_run((0.2,), env_name="cube-single-play-singletask-task1-v0", seed=1)
    return str(make_shared_run.args[0] / "study")


@pytest.fixture(scope="module", name="report")
def _report(study):
    return make_report([study])


@pytest.fixture(scope="module", name="page")
def _page(report):
    return render_page(report, "A <study> & more", "python experiments/report.py x")


def _printed(report):
    console = Console(file=io.StringIO(), width=160)
    print_report(report, console)
    return console.file.getvalue()


class _Page(HTMLParser):
    """Collects text, ids, and what a page would fetch; checks that tags are closed in order."""

    def __init__(self, page):
        super().__init__()
        self.text, self.ids, self.links, self.open = [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids += [attrs["id"]] if "id" in attrs else []
        for name in ("src", "href", "xlink:href", "srcset", "data"):
            self.links += [(tag, attrs[name])] if name in attrs else []
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in _VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def says(self, words):
        return words in re.sub(r"\s+", " ", " ".join(self.text))


def test_the_page_says_it_all_and_needs_no_network(page):
    raw, page = page, _Page(page)
    assert page.says("A <study> & more")
    assert page.says("Over all 2 tasks")
    assert page.says("1–2, then 2")  # QAM's seeds on a task, offline and online
    assert page.says("Against the published figures")
    assert page.says("None of 4 use the paper's settings.")
    assert page.says("offline_steps = 1,000 (paper: 1,000,000)")
    assert page.says("QAM on cube-single-play task 1, seed 1: at 500 of 1,000 steps")
    assert page.says("python experiments/report.py x")
    assert len(page.ids) == len(set(page.ids))
    outside = [link for tag, link in page.links if not link.startswith("#")]
    assert all(link.startswith("https://arxiv.org/abs/") for link in outside)  # to click on
    assert {tag for tag, link in page.links if not link.startswith("#")} <= {"a"}
    for _, link in page.links:
        assert not link.startswith("#") or link[1:] in page.ids
    assert "<script" not in raw and "@import" not in raw
    assert not re.search(r"url\((?!#)", raw)
    assert "None" not in re.sub("None of", "", " ".join(page.text))
    assert not re.search(r"\bnan\b", " ".join(page.text))


def test_the_best_method_is_marked_and_numbers_are_right(page):
    best = re.findall(r'<td class="first best">\s*<span class="value">([^<]*)', page)
    assert "85.0" in best  # QAM offline, over 70% and 100% on the two tasks
    assert re.search(r'<td class="best">\s*<span class="value">70.0</span>', page)


def test_tables_can_be_read_back(report, tmp_path):
    files = {path.name: path for path in write_tables(report, tmp_path / "out")}
    assert set(files) == {
        "runs.csv", "results.csv", "aggregates.csv", "improvements.csv", "missing.csv",
        "published.csv", "other_papers.csv",
    }  # fmt: skip
    with open(files["results.csv"], newline="") as file:
        rows = list(csv.DictReader(file))
    (row,) = [r for r in rows if (r["method"], r["stage"]) == ("FQL", "online")]
    assert (row["env_name"], row["step"], row["seeds"]) == (_TASK, "1500", "0 1")
    assert [float(row[name]) for name in ("mean", "mean_low", "mean_high")] == [40, 40, 40]
    with open(files["published.csv"], newline="") as file:
        row = next(csv.DictReader(file))
    assert row["standing"] in ("within", "above", "below")
    assert "offline_steps = 1,000" in row["differences"]


def test_a_table_without_rows_leaves_none_of_an_earlier_report(make_run, tmp_path):
    make_run((0.2,))
    before = write_tables(make_report([str(tmp_path / "exp")]), tmp_path / "out")
    assert "missing.csv" in {path.name for path in before}
    make_run((0.2, 0.4))
    after = write_tables(make_report([str(tmp_path / "exp")]), tmp_path / "out")
    assert "missing.csv" not in {path.name for path in after}
    assert sorted(after) == sorted((tmp_path / "out").iterdir())


@pytest.mark.slow
def test_figures_are_drawn_in_both_formats(study, report, tmp_path):
    files = write_figures(report, tmp_path)
    names = {path.name for path in files}
    stems = ("curves_cube-double-play", "curves_cube-single-play", "profiles", "intervals")
    assert names == {f"{stem}.{suffix}" for stem in stems for suffix in ("png", "svg")}
    picture = plt.imread(tmp_path / "curves_cube-double-play.png")[..., :3]
    blue = (picture[..., 2] - picture[..., 0] > 0.4).sum()  # QAM
    orange = (picture[..., 0] - picture[..., 2] > 0.4).sum()  # FQL
    assert blue > 300 and orange > 300
    for path in files:
        if path.suffix == ".svg":
            ElementTree.parse(path)
    assert not plt.get_fignums()
    before = (tmp_path / "profiles.svg").read_bytes()
    write_figures(make_report([study]), tmp_path)
    assert (tmp_path / "profiles.svg").read_bytes() == before  # of the same runs


def test_a_method_without_an_offline_stage_begins_at_the_border(make_run, tmp_path):
    make_run((0.1, 0.2, 0.3), online_steps=500)
    make_run((0.5,), offline_steps=0, online_steps=500, agent_name="rlpd")
    figures = report_figures(make_report([str(tmp_path / "exp")]))
    (draw,) = figures["curves_cube-double-play"].panels
    figure, axes = plt.subplots()
    draw(axes)
    qam, rlpd, border = axes.lines
    assert qam.get_xdata().tolist() == [500, 1000, 1500]
    assert rlpd.get_xdata().tolist() == [1500]
    assert border.get_xdata() == [1000, 1000]
    plt.close(figure)


def test_an_inline_picture_takes_the_colour_of_the_text():
    svg = inline_svg(lambda axes: axes.set_title('a "b" <c>'), "f7")
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == 'a "b" <c>'
    assert root.get("viewBox")
    assert "currentColor" in svg and "#1d2733" not in svg
    assert all(value.startswith("f7-") for value in re.findall(r'\bid="([^"]*)', svg))


def test_no_two_methods_share_a_line():
    methods = [f"method {index}" for index in range(30)]
    assert len(set(map(str, lines(methods).values()))) == 30


def test_the_terminal_has_the_same_numbers(report):
    text = _printed(report)
    assert "overall: success rate in %" in text
    assert re.search(r"QAM +│ offline │ 70.0 \(70.0 to 70.0\)", text)
    assert "≠ A" in text and "(paper: 1,000,000)" in text
    assert "QAM on cube-single-play task 1, seed 1: at 500 of 1,000 steps" in text


@pytest.mark.slow
def test_comparing_with_a_folder_and_with_a_method(make_shared_run, study):
    for seed in (0, 1):
        make_shared_run((0.2, 0.1, 0.1 + 0.1 * seed), seed=seed, online_steps=500, group="old")
    report = make_report([study], compare=str(make_shared_run.args[0] / "old"))
    assert "exp/study against exp/old: 2 results" in _printed(report)
    page = _Page(render_page(report, "title"))
    assert page.says("exp/study against exp/old")
    assert page.says("Not compared: FQL (only in exp/study).")
    by_method = make_report([study], compare="FQL").comparison
    assert {(s.method, s.other) for s in by_method.table.itertuples()} == {("QAM", "FQL")}
    with pytest.raises(ValueError, match="neither a folder nor a method of these runs, which are"):
        make_report([study], compare="FQ")


def test_a_reference_of_ones_own(study, report):
    assert report.reference == "QAM"
    rows = make_report([study], reference="FQL").aggregates
    (row,) = [
        r
        for r in rows.itertuples()
        if (r.domain, r.method, r.stage) == ("overall", "QAM", "online")
    ]
    assert row.probability_of_improvement == 1
    with pytest.raises(ValueError, match="no runs of 'SAC'; the methods found are QAM, FQL"):
        make_report([study], reference="SAC")


def test_results_at_an_earlier_step(study):
    report = make_report([study], at=500)
    assert set(report.results["stage"]) == {"step 500"}
    assert len(report.results) == 3
    assert report.published.empty  # the paper has none at this step
    assert _Page(render_page(report, "title")).says("Step 500")


def test_runs_without_any_evaluation_make_a_page_all_the_same(make_run, tmp_path):
    make_run(())
    report = make_report([str(tmp_path / "exp")])
    page = _Page(render_page(report, "title"))
    assert report.reference is None
    assert page.says("No evaluations yet.")
    assert page.says("QAM on cube-double-play task 2, seed 0: at 0 of 1,000 steps")
    assert write_figures(report, tmp_path / "out") == []
    assert "Missing or not done: 1 run\n" in _printed(report)


def test_returns_have_a_table_of_their_own(make_run, tmp_path):
    nan = np.nan
    make_run((nan, nan), returns=(-900.0, -210.0), env_name="Pendulum-v1")
    report = make_report([str(tmp_path / "exp")])
    page = _Page(render_page(report, "title"))
    assert page.says("Offline, mean return")
    assert page.says("−210.0")
    assert "Pendulum-v1: mean return" in _printed(report)
    names = {path.name for path in write_figures(report, tmp_path)}
    assert names == {"curves_Pendulum-v1.png", "curves_Pendulum-v1.svg"}
