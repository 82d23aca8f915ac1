"""How many jobs may wait, and when a refused client comes back, with the time passed in."""

import pytest

from serving.errors import Draining, QueueFull
from serving.jobs.admission import Admission, ServiceRate


def backlog(rate: ServiceRate, seconds: float, batch: int = 20, since: float = 1000.0, served: int = 0) -> int:
    """Settle a batch a second while jobs wait, seen ten times a second; return how many were settled in the end."""
    for tenth in range(int(seconds * 10) + 1):
        rate.note(since + tenth / 10 + 0.001, 100, served + batch * (tenth // 10))
    return served + batch * int(seconds)


def test_the_rate_is_taken_between_whole_batches() -> None:
    rate = ServiceRate()
    backlog(rate, 5.5)
    assert rate.per_second() == pytest.approx(20)


def test_nothing_is_known_of_a_model_server_that_was_never_busy() -> None:
    rate = ServiceRate()
    assert rate.per_second() is None
    for second in range(20):
        rate.note(1000.0 + second, 0, second)
    assert rate.per_second() is None


def test_a_quiet_minute_does_not_count_as_slow_and_then_nothing_is_known() -> None:
    rate = ServiceRate()
    served = backlog(rate, 5)
    rate.note(1050.0, 0, served + 7)
    assert rate.per_second() == pytest.approx(20)
    rate.note(1120.0, 0, served + 8)
    assert rate.per_second() is None


def test_bursts_that_were_served_in_between_are_no_backlog() -> None:
    """A process sees the queue when it submits, and in a burst another one has always just submitted before."""
    rate = ServiceRate()
    for burst in range(20):
        rate.note(1000.0 + 2 * burst, 3, 8 * burst, last_empty_at=1000.0 + 2 * burst - 1.9)
    assert rate.per_second() is None


def test_what_was_measured_in_an_earlier_backlog_does_not_starve_the_model_servers() -> None:
    admission = Admission(1000, timeout_seconds=30)
    for second in range(10):
        admission.note(1000.0 + second, 5, second)  # one a second: just one of many model servers was there
    assert admission.most_waiting() == 15
    admission.note(1010.0, 0, 10)
    assert admission.most_waiting() == 64


def test_another_speed_is_known_after_the_window() -> None:
    rate = ServiceRate()
    served = backlog(rate, 5)
    backlog(rate, 30, batch=60, since=1005.1, served=served)  # two more model servers
    assert rate.per_second() == pytest.approx(60)


def test_batches_slower_than_the_window_are_measured_too() -> None:
    rate = ServiceRate()
    for tenth in range(1000):
        rate.note(1000.0 + tenth / 10, 100, 32 * (tenth // 150))
    assert rate.per_second() == pytest.approx(32 / 15, rel=0.01)


def test_the_rate_falls_while_nothing_is_settled_and_rises_again() -> None:
    rate = ServiceRate()
    served = backlog(rate, 20)
    rate.note(1025.0, 100, served)
    assert rate.per_second() == pytest.approx(20, rel=0.01)
    rate.note(1030.0, 100, served)
    assert rate.per_second() == pytest.approx(10, rel=0.01)
    rate.note(1070.0, 100, served)
    assert rate.per_second() == pytest.approx(2, rel=0.01)
    backlog(rate, 15, since=1071.0, served=served)
    assert rate.per_second() == pytest.approx(20)


def test_a_model_server_that_was_started_again_is_not_slow() -> None:
    rate = ServiceRate()
    served = backlog(rate, 4.5)
    assert backlog(rate, 4.5, since=1018.0, served=served + 20)
    assert rate.per_second() > 12  # over all of the time it were 8


def test_two_batches_with_a_death_between_them_refuse_nobody() -> None:
    admission = Admission(1000, timeout_seconds=30)
    for clock, served in ((1000.0, 0), (1000.1, 8), (1008.0, 16)):
        admission.note(clock, 20, served)
    assert admission.most_waiting() == 64


def test_replies_that_crossed_and_another_redis_spoil_nothing() -> None:
    rate = ServiceRate()
    served = backlog(rate, 5)
    rate.note(1004.0, 100, served - 40)
    assert rate.per_second() == pytest.approx(20)
    rate.note(1006.0, 100, 3)
    rate.note(1007.0, 100, 23)
    assert rate.per_second() == pytest.approx(20)


def test_as_many_may_wait_as_are_answered_in_half_the_timeout() -> None:
    admission = Admission(1000, timeout_seconds=30)
    assert admission.most_waiting() == 1000  # nothing is known yet
    backlog(admission._rate, 5)
    assert admission.most_waiting() == 300
    assert Admission(1000, timeout_seconds=30).retry_after_seconds() == 1


def test_one_may_always_wait() -> None:
    admission = Admission(1000, timeout_seconds=0.1)
    backlog(admission._rate, 6, batch=1)
    assert admission.most_waiting() == 1


def test_retry_after_is_the_depth_over_the_rate() -> None:
    admission = Admission(1000, timeout_seconds=30)
    for second in range(6):
        admission.note(1000.0 + second, 100, 20 * second)
    assert admission.retry_after_seconds() == 5
    admission.note(1005.1, 2000, 100)
    assert admission.retry_after_seconds() == 60


def test_model_servers_that_never_answered_are_not_awaited_soon() -> None:
    admission = Admission(3, timeout_seconds=30)
    admission.note(1000.0, 0, 0)
    admission.note(1009.0, 3, 0)
    assert admission.retry_after_seconds() == 60


def test_what_was_seen_long_ago_refuses_nobody() -> None:
    admission = Admission(3, timeout_seconds=30)
    admission.note(1000.0, 3, 0)
    assert admission.is_full() is True
    admission._seen_at -= 1
    assert admission.is_full() is None


def test_a_rate_is_measured_anew_after_redis_s_clock_was_set_back() -> None:
    admission = Admission(1000, timeout_seconds=10.0)
    for second in range(10):
        admission.note(10_000.0 + second, 500, 100 * second)
    assert admission.most_waiting() == 500
    for second in range(60):
        admission.note(6_400.0 + second, 500, 1000 + second)
    assert admission.most_waiting() == 5


def test_a_pause_does_not_count_as_slow_while_it_lasts_nor_afterwards() -> None:
    admission = Admission(1000, timeout_seconds=30)
    for second in range(6):
        admission.note(1000.0 + second, 100, 20 * second)
    assert admission.most_waiting() == 300
    for second in range(6, 206):  # longer than what is known stays known
        admission.note(1000.0 + second, 200, 100, is_paused=True)
        assert admission.most_waiting() == 300
    for tenth in range(60):
        admission.note(1206.0 + tenth / 10, 200, 100 + 20 * (tenth // 10))
        assert admission.most_waiting() == 300


def test_what_few_batches_showed_before_a_pause_does_not_count_afterwards() -> None:
    admission = Admission(1000, timeout_seconds=30)
    admission.note(1000.0, 5, 0)
    admission.note(1001.0, 5, 1)
    admission.note(1002.0, 5, 1, is_paused=True)
    admission.note(1500.0, 5, 2)
    assert admission.most_waiting() == 1000


def test_a_process_that_saw_nothing_of_a_pause_takes_its_end_for_the_end_of_the_backlog() -> None:
    admission = Admission(1000, timeout_seconds=30)
    for second in range(6):
        admission.note(1000.0 + second, 100, 20 * second)
    admission.note(1600.0, 900, 100, last_empty_at=1599.0)
    assert admission.most_waiting() == 300
    admission.note(1601.0, 900, 120, last_empty_at=1599.0)
    assert admission.most_waiting() == 300


def test_while_the_queue_drains_nobody_is_let_in_and_then_again() -> None:
    admission = Admission(1000, timeout_seconds=30)
    admission.note(1000.0, 0, 0, is_draining=True)
    assert admission.is_full() is True
    assert isinstance(admission.refusal("Too many."), Draining)
    admission._seen_at -= 1
    assert admission.is_full() is None  # ask again
    admission.note(1001.0, 0, 0)
    assert admission.is_full() is False
    assert isinstance(admission.refusal("Too many."), QueueFull)
