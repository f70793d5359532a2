"""Reports on runs: `python experiments/report.py exp/<group> [more folders]`.

Prints a table for each domain and overall, and writes tables, figures and one self-contained page,
report.html, into --out.
"""

import shlex
import sys

from absl import app, flags

from qam_jax.runs.command_line import run_main, until_closed

_OUT = flags.DEFINE_string("out", "report", "Folder for the page, the tables and the figures.")
_COMPARE = flags.DEFINE_string(
    "compare",
    "",
    "Folder of other runs, or method among these runs, to compare these runs with, task by task.",
)
_REFERENCE = flags.DEFINE_string(
    "reference",
    "",
    "Method that the probability of improvement is over; empty: QAM, or the first method.",
)
_EXPECT = flags.DEFINE_string(
    "expect",
    "",
    "Study whose runs are all expected, so that missing runs are named: main, data_quality, "
    "sensitivity, rlpd, or a .toml file as sweep.py takes it; empty: each combination of the "
    "methods, tasks and seeds that a domain has runs of.",
)
_AT = flags.DEFINE_integer(
    "at",
    None,
    "Step to take results at, for runs that are not done; by default the end of each stage.",
    lower_bound=1,
)
_SENSITIVITY = flags.DEFINE_list(
    "sensitivity",
    [],
    "Settings with numbers as values in which the runs of a method differ, such as "
    "config.inv_temp: results are shown against the values of each.",
)
_TITLE = flags.DEFINE_string("title", "", "Heading of the page; empty: the folders.")


def main(argv: list[str]) -> None:
    folders = argv[1:]
    if not folders:
        raise app.UsageError("give at least one folder of runs, such as exp/<group>.")
    from qam_jax.files import atomic_write, user_path
    from qam_jax.reports.console import make_console
    from qam_jax.reports.figures import write_figures
    from qam_jax.reports.page import render_page
    from qam_jax.reports.summary import make_report, write_tables
    from qam_jax.reports.terminal import print_report

    report = make_report(
        folders,
        compare=_COMPARE.value,
        reference=_REFERENCE.value,
        expected=_expected_runs(_EXPECT.value) if _EXPECT.value else None,
        at=_AT.value,
        settings=_SENSITIVITY.value,
    )
    with until_closed():
        print_report(report, make_console())
    if report.runs.empty:
        raise ValueError(f"there are no runs in {', '.join(folders)} to report on.")
    out = user_path(_OUT.value)
    tables = write_tables(report, out / "tables")
    figures = write_figures(report, out / "figures")
    command = shlex.join(["python", "experiments/report.py", *sys.argv[1:]])
    with atomic_write(out / "report.html") as temporary:
        page = render_page(report, _TITLE.value or ", ".join(folders), command)
        temporary.write_text(page, encoding="utf-8")
    with until_closed():
        print(f"\nReport: {out / 'report.html'}")
        print(f"{len(tables)} tables and {len(figures)} figures (PNG, SVG) are beside it.")


def _expected_runs(study: str):
    """All runs of a published or named study, or of a study's .toml file."""
    from qam_jax.reports.collect import expected_runs, published_runs
    from qam_jax.reports.published import STUDIES
    from qam_jax.sweeps.studies import load_study

    return published_runs(study) if study in STUDIES else expected_runs(load_study(study))


if __name__ == "__main__":
    run_main(main, operands=True)
