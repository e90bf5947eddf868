import time

import pytest

from pipeline.distributed.clock import PhaseClock


def wait(seconds):
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def test_phases_add_up_lie_within_each_other_and_begin_anew():
    clock = PhaseClock()
    for _ in range(2):
        with clock.phase("forward"):
            wait(0.02)
            with clock.phase("comm"):
                wait(0.01)
    seconds = clock.collect()
    assert seconds.keys() == {"forward", "comm"}
    assert 0.02 <= seconds["comm"] < seconds["forward"] and seconds["forward"] >= 0.06
    assert clock.collect() == {}


def test_what_raises_is_not_counted():
    clock = PhaseClock()
    with pytest.raises(ZeroDivisionError), clock.phase("forward"):
        _ = 1 / 0
    assert clock.collect() == {}


def test_a_phase_costs_microseconds():
    clock, started = PhaseClock(), time.perf_counter()
    for _ in range(10_000):
        with clock.phase("comm"):
            pass
    assert time.perf_counter() - started < 1.0
