import logging

from qam_jax.training.offline import log_estimate


def test_an_estimate_is_given_where_the_stage_is_long(caplog):
    caplog.set_level(logging.INFO)
    log_estimate("offline", 30, 10.0)
    assert not caplog.records
    log_estimate("offline", 1_000_000, 4.0)
    expected = "offline: about 2 days, 21:26:40 for 1,000,000 updates at 4 per second"
    assert expected in caplog.text
