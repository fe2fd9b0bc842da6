"""Pools: who gets how much, when, and how many events that takes."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest
from simpy import Environment, Event

from jouletrace.engine.credits import Alarm, Credits
from jouletrace.engine.ports import RoundRobin, Turnstile


@pytest.fixture
def env() -> Environment:
    return Environment()


@pytest.fixture
def log() -> list[tuple[int, str]]:
    return []


def taker(
    env: Environment, pool: Credits, amounts: list[int], log: list[tuple[int, str]]
) -> Generator[Event, None, None]:
    alarm = Alarm(env)
    for amount in amounts:
        if pool.free >= amount:
            pool.free -= amount
        else:
            yield pool.wait(amount, alarm)
        log.append((env.now, f"took {amount}"))


def giver(env: Environment, pool: Credits, gives: list[tuple[int, int]]) -> Generator[Event, None, None]:
    alarm = Alarm(env)
    for cycles, amount in gives:
        yield alarm.ring_in(cycles)
        pool.give(amount)


def test_free_credits_cost_no_event(env: Environment, log: list[tuple[int, str]]) -> None:
    env.process(taker(env, Credits(3), [1, 2], log))
    steps = 0
    while env.peek() < float("inf"):
        env.step()
        steps += 1
    assert log == [(0, "took 1"), (0, "took 2")]
    assert steps == 2  # the process begins, the process ends


def test_a_taker_gets_all_or_nothing(env: Environment, log: list[tuple[int, str]]) -> None:
    pool = Credits(1)
    env.process(taker(env, pool, [3, 1], log))
    env.process(giver(env, pool, [(5, 1), (5, 1), (5, 1)]))
    env.run()
    assert log == [(10, "took 3"), (15, "took 1")]
    assert pool.free == 0


def test_one_give_may_serve_several_takes(env: Environment, log: list[tuple[int, str]]) -> None:
    pool = Credits(0)
    env.process(taker(env, pool, [1, 2, 1], log))
    env.process(giver(env, pool, [(5, 4)]))
    env.run()
    assert log == [(5, "took 1"), (5, "took 2"), (5, "took 1")]


def test_promised_credits_hold_back_later_ones() -> None:
    pool = Credits(0)
    first, second = pool.promise(1), pool.promise(2)
    pool.give(4)
    pool.redeem(second)
    assert pool.free == 0
    pool.redeem(first)
    assert pool.free == 7
    pool.give(1)
    assert pool.free == 8


def test_a_turnstile_lets_drivers_pass_in_order(env: Environment, log: list[tuple[int, str]]) -> None:
    """Driver 1 comes first and has to wait for driver 0; then each reserves behind the other."""
    turnstile = Turnstile(iter([0, 1, 1, 0]))

    def driver(me: int, comes: int, cycles: int) -> Generator[Event, None, None]:
        alarm = Alarm(env)
        if comes:
            yield alarm.ring_in(comes)
        for _ in range(2):
            if turnstile.turn != me:
                yield turnstile.wait(me, alarm)
            begin = max(env.now, turnstile.free_at)
            turnstile.hold(begin + cycles)
            log.append((begin, f"driver {me}"))

    env.process(driver(0, 4, 10))
    env.process(driver(1, 0, 5))
    env.run()
    assert log == [(4, "driver 0"), (14, "driver 1"), (19, "driver 1"), (24, "driver 0")]
    assert turnstile.free_at == 34


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_round_robin_does_not_see_the_order_of_requests(env: Environment, order: tuple[int, ...]) -> None:
    """All ask in cycle 0, in any order, and again when they are done; each gets every third grant."""
    port, done = RoundRobin(env, grant_cycles=2), list[tuple[int, int]]()

    def stream(me: int) -> Iterator[Event]:
        alarm = Alarm(env)
        for cycles in (2, 3):
            port.request(me, cycles)
            while port.serves(me):
                yield port.wait(me, alarm)
            done.append((env.now, me))

    for me in order:
        env.process(stream(me))
    env.run()
    assert done == [(2, 0), (4, 1), (6, 2), (13, 0), (14, 1), (15, 2)]
