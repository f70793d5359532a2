"""Labels of methods, tasks, settings and numbers in a report."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from qam_jax.agents import algorithm_names, display_name
from qam_jax.data.tasks import find_task
from qam_jax.reports.published import published_methods
from qam_jax.reports.statistics import Estimate


def method_name(agent_config: Mapping[str, Any]) -> str:
    """Label of the method that an agent's config describes, as the paper writes it.

    QAM with an edit policy is QAM-E, and QAM with a one-step actor is QAM-F, whether the config
    says so by its name or by its fields. An algorithm outside the package keeps its own name.
    """
    name = agent_config["agent_name"]
    if name == "qam" and agent_config.get("edit_scale", 0) > 0:
        name = "qam_e"
    elif name == "qam" and agent_config.get("fql_alpha", 0) > 0:
        name = "qam_f"
    return display_name(name)


def agent_name(method: str) -> str | None:
    """Name of the algorithm with this label; None if no algorithm has it."""
    return next((name for name in algorithm_names() if display_name(name) == method), None)


def method_order(label: str) -> str:
    """Sorting key of a method's label: the paper's methods in its order, then all others.

    The variants of a method follow it.
    """
    methods, method = published_methods(), base_method(label)
    place = methods.index(method) if method in methods else len(methods)
    return f"{place:02d} {label}"


def ordered_methods(labels: Iterable[str]) -> list[str]:
    """Different labels in the order of tables, see `method_order`."""
    return sorted(set(labels), key=method_order)


def base_method(label: str) -> str:
    """Method of a variant's label, such as `QAM-E` of `QAM-E (T=3)`."""
    return label.split(" (")[0].removesuffix("-NOCLIP")


def task_label(env_name: str) -> tuple[str, str]:
    """Domain and task: `cube-double-play` and `task 2`, or twice the name outside OGBench."""
    task = find_task(env_name)
    if task is None:
        return env_name, env_name
    return task.domain, f"task {task.actual_number or 'default'}"


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
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def ranges(numbers: Iterable[int]) -> str:
    """Whole numbers in short: `0–3, 5`."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in parts)


def number(value: float, digits: int = 1) -> str:
    """Number as a reader sees it; a dash for nan."""
    if math.isnan(value):
        return "–"
    text = f"{value:,.{digits}f}"
    if float(text.replace(",", "")) == 0:
        text = text.removeprefix("-")
    return text.replace("-", "−")


def interval(estimate: Estimate, digits: int = 1) -> str:
    """Interval of an estimate; empty if there is none."""
    if math.isnan(estimate.low):
        return ""
    return f"{number(estimate.low, digits)} to {number(estimate.high, digits)}"
