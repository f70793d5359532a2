import logging
from types import SimpleNamespace

from qam_jax.training.stage import Stage


def test_an_estimate_is_given_once_where_the_stage_is_long(caplog):
    caplog.set_level(logging.INFO)
    short, long = (SimpleNamespace(name="online", unit="step", _estimated=False) for _ in range(2))
    Stage.log_estimate(short, 30, 10.0)
    assert not caplog.records
    Stage.log_estimate(long, 1_000_000, 4.0)
    Stage.log_estimate(long, 999_996, 40.0)
    (message,) = caplog.messages
    assert "online: about 2 days, 21:26:40 for 1,000,000 steps at 4 per second" in message
