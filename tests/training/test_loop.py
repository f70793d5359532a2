import logging
from types import SimpleNamespace

from qam_jax.training.loop import Stage


class _Stage(Stage):
    unit = "step"
    data = advance = None


def test_an_estimate_is_given_once_where_the_stage_is_long(caplog):
    caplog.set_level(logging.INFO)
    plan = SimpleNamespace(
        stages={"online": range(10)},
        algorithm=lambda _: (None, None),
        source=None,
        prepare=None,
    )
    short, long = (_Stage(plan, [SimpleNamespace(stage="online")], None) for _ in range(2))
    short.log_estimate(30, 10.0)
    assert not caplog.records
    long.log_estimate(1_000_000, 4.0)
    long.log_estimate(999_996, 40.0)
    (message,) = caplog.messages
    assert "online: about 2 days, 21:26:40 for 1,000,000 steps at 4 per second" in message
