"""Shows what runs: `python experiments/watch.py exp/<group> [more folders]`.

Reads the runs' folders and nothing else, so it works from any machine that sees them.
"""

import contextlib
import sys
import time

from absl import app, flags

from qam_jax.files import user_path
from qam_jax.runs.command_line import run_main, until_closed
from qam_jax.runs.stopping import Stopped

_ONCE = flags.DEFINE_bool("once", False, "Show it once and end, instead of refreshing.")
_INTERVAL = flags.DEFINE_float("interval", 10.0, "Seconds between refreshes.", lower_bound=0.5)
_DONE = flags.DEFINE_bool("done", True, "Show runs that are done as well.")


def main(argv: list[str]) -> None:
    folders = argv[1:]
    if not folders:
        raise app.UsageError("give at least one folder of runs, such as exp/<group>.")
    with until_closed(), contextlib.suppress(Stopped):
        _watch(folders)


def _watch(folders: list[str]) -> None:
    from rich.live import Live

    from qam_jax.reports.console import make_console
    from qam_jax.reports.progress import progress_view, watch_folders

    console = make_console()

    def view():
        now = time.time()
        runs, notes = watch_folders(folders, now)
        return progress_view(runs, notes, now, width=console.width, show_done=_DONE.value)

    if _ONCE.value:
        console.print(view())
        missing = [folder for folder in folders if not user_path(folder).exists()]
        if missing:
            sys.exit(f"Error: there is no folder {', '.join(missing)}.")
        return
    with Live(view(), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(_INTERVAL.value)
            live.update(view(), refresh=True)


if __name__ == "__main__":
    run_main(main, operands=True)
