"""Tests of the site and the documentation: complete, and true to the code."""

import ast
import dataclasses
import doctest
import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import qam_jax
from qam_jax.agents import algorithm_names, get_config
from qam_jax.runs.settings import ProcessSettings, RunSettings
from qam_jax.training.train import train

_ROOT = Path(__file__).parents[1]
_PAGES = [*sorted(_ROOT.glob("*.md")), *sorted((_ROOT / "docs").glob("*.md"))]
_TUTORIALS = sorted((_ROOT / "docs" / "tutorials").glob("*.py"))
sys.path.append(str(_ROOT / "docs" / "hooks"))
sources = importlib.import_module("sources")
_TRAINING = ("experiments/train_offline.py", "experiments/finetune_online.py")


def _blocks(page, language):
    """Blocks of code of a page in a language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def _flags():
    """Names of the flags that train."""
    classes = (RunSettings, ProcessSettings)
    return [field.name for kind in classes for field in dataclasses.fields(kind)]


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.stem)
def test_commands_name_existing_flags(page):
    known = set(_flags())
    for block in _blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            for script in _TRAINING:
                flags = re.findall(r" --(\w+)", line.partition(script)[2])
                assert set(flags) <= known | {"config"}, line


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.stem)
def test_examples_import_what_there_is(page):
    for block in _blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("qam_jax"):
                exec(ast.unparse(node))
            elif isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "qam_jax":
                assert hasattr(qam_jax, node.attr)


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.stem)
def test_paths_lead_to_files(page):
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"\b(?:qam_jax|experiments|benchmarks|docs|tests)/[\w/]+\.\w+", text):
        method = path.removeprefix("experiments/configs/").removesuffix(".py")
        assert (_ROOT / path).exists() or method in algorithm_names(), path


@pytest.mark.parametrize("page", [*_PAGES, *_TUTORIALS], ids=lambda page: page.name)
def test_pages_are_whole_in_the_repository(page):
    """Links and pictures lead to files and headings, and nothing waits for the site to be built."""
    text = _without_code(page)
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    for link in (link for link in links if not re.match(r"https?://", link)):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link
    for name, path in re.findall(r"\[`([\w.]+)`\]\(([^)]+\.py)\)", text):
        code, name = (page.parent / path).read_text(encoding="utf-8"), name.rpartition(".")[2]
        assert re.search(rf"^(?:def|class) {name}\(", code, flags=re.MULTILINE), name
    assert not re.search(r"^!!|--8 ?<|\]\[\w|^:::", text, flags=re.MULTILINE)


def test_the_grid_of_value_learnings_is_that_of_the_methods():
    text = (_ROOT / "docs" / "values.md").read_text(encoding="utf-8")
    grid = re.search(
        r"^\| method \| (.*?) \|\n.*?\n(.*?)\n\n", text, flags=re.MULTILINE | re.DOTALL
    )
    learnings, found = grid[1].split(" | "), {}
    for row in grid[2].splitlines():
        names, *marks = (cell.strip() for cell in row.strip("|").split("|"))
        default = learnings[marks.index("default")] if "default" in marks else None
        found |= dict.fromkeys(re.findall(r"`(\w+)`", names), default)
    assert found == {name: get_config(name).get("value_learning") for name in algorithm_names()}


def _without_code(page):
    """Text of a page, without its blocks of code; of a script only the comments."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".py":
        return "\n".join(re.findall(r"^# ?(.*)$", text, flags=re.MULTILINE))
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def _anchors(page):
    headings = re.findall(r"^#+ (.*)$", _without_code(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", sources.PAGES)
def test_pages_show_the_code_as_it_is(page):
    """Otherwise run docs/hooks/sources.py."""
    text = (_ROOT / page).read_text(encoding="utf-8")
    assert "```python\ndef " in text or '```python\n"""' in text
    assert sources.with_sources(text) == text


@pytest.mark.parametrize("name", ["flow", "adjoint", "critic", "data.tasks"])
def test_examples_in_docstrings(name):
    module = importlib.import_module(f"qam_jax.{name}")
    failed, attempted = doctest.testmod(module)
    assert attempted > 0
    assert failed == 0  # failures are printed


# ----------------------------------------------------------------------------------- slow tests

needs_docs = pytest.mark.skipif(
    importlib.util.find_spec("mkdocstrings") is None,
    reason='the docs extra is not installed: pip install -e ".[docs]"',
)


@pytest.fixture(name="site", scope="module")
def _site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    _run("-m", "mkdocs", "build", "--strict", f"--site-dir={folder}", folder=_ROOT)
    return folder


def _run(*arguments, folder):
    """Output of a Python program, which has to succeed."""
    path = f"{_ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    result = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True, text=True, cwd=folder, env={**os.environ, "PYTHONPATH": path},
        timeout=1200,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


@pytest.mark.slow
@needs_docs
def test_formulas_are_set_without_scripts_or_network(site):
    pages = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    mathematics = pages[site / "mathematics" / "index.html"]
    assert mathematics.count("<math") > 60
    assert "arithmatex" not in mathematics
    assert (site / "fonts" / "STIXTwoMath-Regular.ttf").stat().st_size > 100_000
    for path, text in pages.items():
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?:', text), path


@pytest.mark.slow
@needs_docs
def test_every_flag_and_field_is_listed(site):
    text = (site / "settings" / "index.html").read_text(encoding="utf-8")
    names = ["--config", *(f"--{name}" for name in _flags())]
    names += [field for name in algorithm_names() for field in get_config(name)]
    for name in {*names, "--slurm", "--step"} - {"agent_name"}:
        assert f"<code>{name}</code>" in text, name


@pytest.mark.slow
@needs_docs
def test_every_layer_has_a_page_of_the_reference(site):
    navigation = (site / "index.html").read_text(encoding="utf-8")
    for package in (_ROOT / "qam_jax").glob("*/__init__.py"):
        assert f"reference/{package.parent.name}/" in navigation


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "claims"),
    [
        ("mixture", [r"T = 30: distance 0\.0\d\d, 0\.0\d\d, 0\.[01]"]),
        ("maze", [r"before: success 0%", r"after: success (100|[5-9]\d)%"]),
        ("pessimistic_qam", [r"pessimistic QAM: success (100|[5-9]\d)%"]),
    ],
)
def test_tutorials_do_what_they_say(name, claims, tmp_path):
    script = _ROOT / "docs" / "tutorials" / f"{name}.py"
    output = _run(script, tmp_path, folder=tmp_path)
    for claim in claims:
        assert re.search(claim, output), output
    picture = tmp_path / f"{name}.png"
    assert picture.stat().st_size > 10_000
    assert (script.parent / picture.name).exists()  # the picture on the page


@pytest.mark.slow
def test_the_example_of_ones_own_task(tmp_path, monkeypatch):
    """A dataset is recorded, read and evaluated; a few of its episodes succeed."""
    monkeypatch.syspath_prepend(_ROOT / "docs" / "examples")
    reach = importlib.import_module("reach")
    reach.record(tmp_path / "reach.npz", episodes=30)
    settings = RunSettings(
        dataset=str(tmp_path / "reach.npz"), env_name="Reach-v0", env_module="reach",
        save_dir=str(tmp_path), offline_steps=2, log_interval=2, eval_interval=2, save_interval=2,
        eval_episodes=2,
    )  # fmt: skip
    config = get_config("bc")
    config.update({"actor_hidden_dims": (8,), "batch_size": 8})
    (*_, episode) = train(settings, config).episodes
    assert episode.success in (0.0, 1.0)
    masks = np.load(tmp_path / "reach.npz")["masks"]
    assert 0 < (masks == 0).sum() < 30


@pytest.mark.slow
def test_the_page_from_a_robots_data_to_a_robot(tmp_path):
    """All of its commands and examples run, in their order, on a few updates."""
    page = (_ROOT / "docs" / "robot.md").read_text(encoding="utf-8")
    sizes = "--offline_steps=6000 --log_interval=500 --save_interval=2000"
    assert sizes in page
    page = page.replace(sizes, "--offline_steps=20 --log_interval=10 --save_interval=10")
    page = page.replace("--port=8000", "--port=0").replace("range(20)", "range(1)")
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    install, *commands, serve = [text for language, text in blocks if language == "bash"]
    assert install.startswith("pip install")
    paths = [str(_ROOT), str(_ROOT / "docs" / "examples")]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    options = {"cwd": tmp_path, "env": environ, "text": True}
    for text in commands:
        subprocess.run(["bash", "-ec", _from_anywhere(text)], check=True, **options)
    assert (tmp_path / "inspection" / "inspection.html").exists()
    code = "".join(text for language, text in blocks if language == "python")
    (tmp_path / "act.py").write_text(code, encoding="utf-8")
    acted = subprocess.run(
        [sys.executable, "act.py"], check=True, stdout=subprocess.PIPE, **options
    )
    assert "of 20 episodes reach the goal" in acted.stdout
    command = "exec " + _from_anywhere(serve)
    with subprocess.Popen(["bash", "-c", command], stdout=subprocess.PIPE, **options) as server:
        assert server.stdout.readline().startswith("Serving QAM at ws://")
        server.terminate()
    assert server.returncode == 75


def _from_anywhere(command):
    """A command of a page, which names files of this checkout, for another working directory."""
    command = re.sub(r"(?<![\w/])(experiments|docs)/", rf"{_ROOT}/\1/", command)
    return command.replace("python ", f"{sys.executable} ")
