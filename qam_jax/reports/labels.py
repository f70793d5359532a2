"""Labels of methods, tasks, settings and numbers in a report."""

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

from qam_jax.data.tasks import find_task


def method_name(agent_config: Mapping[str, Any]) -> str:
    """Label of the method that an agent's config describes, as the paper writes it."""
    from qam_jax.agents import display_name, variant_name  # here: it imports JAX, which takes long

    return display_name(variant_name(agent_config))


def task_label(env_name: str) -> tuple[str, str]:
    """Domain and task: `cube-double-play` and `task 2`, or twice the name outside OGBench."""
    task = find_task(env_name)
    return (task.domain, f"task {task.actual_number or 'default'}") if task else (env_name,) * 2


def full_env_name(env_name: str) -> str:
    """Name of an environment with its task, also where the name leaves out the default task."""
    task = find_task(env_name)
    return task.full_name if task else env_name


def setting_words(value: Any) -> str:
    """Value of a setting for a reader: `4 × 512`, `1,000,000`, `none`."""
    if isinstance(value, list | tuple):
        same = len(set(value)) == 1 and len(value) > 1
        return f"{len(value)} × {value[0]}" if same else " × ".join(map(str, value)) or "none"
    if value is None or isinstance(value, bool | str):
        return "none" if value in (None, "") else str(value)
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:g}"


def seeds_words(seeds: Iterable[int]) -> str:
    """Seeds in short: `seed 3`, `seeds 0–3, 5`."""
    text = ranges(seeds)
    return f"seed {text}" if text.isdigit() else f"seeds {text}"


def ranges(numbers: Iterable[int]) -> str:
    """Whole numbers in short: `0–3, 5`."""
    steps = itertools.groupby(enumerate(sorted(set(numbers))), lambda pair: pair[1] - pair[0])
    parts = [[number for _, number in group] for _, group in steps]
    return ", ".join(f"{a}–{b[-1]}" if b else str(a) for a, *b in parts)


def number(value: float, digits: int = 1) -> str:
    """Number as a reader sees it; a dash for nan."""
    return "–" if math.isnan(value) else f"{value:z,.{digits}f}".replace("-", "−")


def estimate_words(
    row: Mapping[str, Any], name: str, scale: float = 1, digits: int = 1
) -> tuple[str, str]:
    """Statistic `name` of a row, times `scale`, and its interval; empty where there is none."""
    value, low, high = (scale * row[column] for column in (name, f"{name}_low", f"{name}_high"))
    span = "" if math.isnan(low) else f"{number(low, digits)} to {number(high, digits)}"
    return number(value, digits), span
