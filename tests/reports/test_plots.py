import numpy as np
from matplotlib import pyplot as plt

from qam_jax.reports.plots import plot_learning_curve, plot_run, plot_training
from qam_jax.runs.settings import RunSettings
from qam_jax.training.evaluation import Episode

_HEADER = "step,success,success_low,success_high,return,length,episodes\n"


def _episode(success):
    """From the start of the medium maze's first task towards its goal at (20, 20)."""
    return Episode(success, -5.0, 5, np.linspace([0.0, 0.0], [20.0, 20.0], 50))


def test_pictures_of_a_maze_run(tmp_path):
    rows = "100,0.0,0.0,0.1,-1000,1000,50\n200,0.9,0.8,0.95,-200,200,50\n"
    (tmp_path / "eval.csv").write_text(_HEADER + rows)
    episodes = {"qam": [_episode(1.0)] * 3, "behaviour cloning alone": [_episode(0.0)]}
    settings = RunSettings(env_name="pointmaze-medium-navigate-singletask-v0")
    curve, paths = plot_run(tmp_path, settings, episodes)
    assert plt.imread(curve).std() > 0.05
    image = plt.imread(paths)[..., :3]
    height, width = image.shape[:2]
    assert width > 1.5 * height  # two panels
    # The left panel's paths are blue, the right one's are red; the goal's star is gold in both.
    contrast = image[..., 0] - image[..., 2]
    blue, red = contrast < -0.2, (contrast > 0.15) & (contrast < 0.6)
    middle = width // 2
    assert blue[:, :middle].sum() > 200 > blue[:, middle:].sum()
    assert red[:, middle:].sum() > 200 + red[:, :middle].sum()
    assert not plt.get_fignums()  # nothing is left open


def test_other_environments_have_a_learning_curve_only(tmp_path):
    (tmp_path / "eval.csv").write_text(_HEADER + "100,0.0,0.0,0.1,-1000,1000,50\n")
    settings = RunSettings(env_name="cube-single-play-singletask-v0")
    pictures = plot_run(tmp_path, settings, {})
    assert [picture.name for picture in pictures] == ["learning_curve.png"]


def test_without_an_evaluation_that_succeeded_no_curve_is_drawn(tmp_path):
    (tmp_path / "train.csv").write_text("step,critic_loss\n1,5\n2,4\n")
    settings = RunSettings(env_name="cube-single-play-singletask-v0")
    assert [picture.name for picture in plot_run(tmp_path, settings, {})] == ["training.png"]


def test_without_an_environment_losses_alone_are_drawn(tmp_path):
    settings = RunSettings(env_name="", dataset="mine.npz")
    assert plot_run(tmp_path, settings, {}) == []
    (tmp_path / "train.csv").write_text("step,critic_loss\n1,5\n2,4\n")
    assert [picture.name for picture in plot_run(tmp_path, settings, {})] == ["training.png"]


def test_the_border_between_the_stages_is_marked(tmp_path):
    rows = "100,0.0,0.0,0.1,-1000,1000,50\n200,0.9,0.8,0.95,-200,200,50\n"
    (tmp_path / "eval.csv").write_text(_HEADER + rows)
    plain = plt.imread(plot_learning_curve(tmp_path, "task"))
    marked = plt.imread(plot_learning_curve(tmp_path, "task", border=100))
    column = plain.shape[1] // 2  # about where step 100 of 200 is
    window = slice(column - 60, column + 100)
    assert (plain[:, window] != marked[:, window]).any(axis=-1).sum() > 200


def test_a_return_is_drawn_where_success_is_unknown(tmp_path):
    (tmp_path / "eval.csv").write_text(_HEADER + "100,,,,-900,200,5\n200,,,,-300,200,5\n")
    picture = plt.imread(plot_learning_curve(tmp_path, "Pendulum-v1"))
    assert (picture[..., 2] - picture[..., 0] > 0.2).sum() > 300  # the curve's blue


def test_losses_and_values_are_drawn(tmp_path):
    assert plot_training(tmp_path, "task") == []
    (tmp_path / "train.csv").write_text("step,critic_loss,q_mean,lr\n1,5,-2,1\n2,,,1\n3,4,-1,1\n")
    (picture,) = plot_training(tmp_path, "task")
    height, width = plt.imread(picture).shape[:2]
    assert width > 2 * height  # two panels
