"""Few threads do what many bring."""

import threading
from collections.abc import Callable

import pytest
from conftest import wait_for

from serving.jobs.combining import Combiner


class Recorder:
    """Work that can be held up: what was done together, by which thread, and how many calls ran at once."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.threads: list[threading.Thread] = []
        self.running = self.most_running = 0
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self._lock = threading.Lock()

    def __call__(self, items: list[int]) -> None:
        with self._lock:
            self.calls.append(items)
            self.threads.append(threading.current_thread())
            self.running += 1
            self.most_running = max(self.running, self.most_running)
        self.may_go_on.wait(10)
        with self._lock:
            self.running -= 1

    def done(self) -> list[int]:
        return [item for call in self.calls for item in call]


def in_threads(count: int, put: Callable[[int], None]) -> list[threading.Thread]:
    threads = [threading.Thread(target=put, args=[number]) for number in range(count)]
    for thread in threads:
        thread.start()
    return threads


def held_up() -> tuple[Recorder, Combiner[int], threading.Thread]:
    """A combiner whose only place a first item, 0, holds until its work may go on; and the thread that brought it."""
    work = Recorder()
    work.may_go_on.clear()
    combiner = Combiner(work, places=1, most=4)
    combiner.start()
    (first,) = in_threads(1, lambda _: combiner.put(0))
    wait_for(lambda: work.calls == [[0]])
    return work, combiner, first


def test_who_comes_alone_does_it_itself_at_once() -> None:
    work = Recorder()
    combiner = Combiner(work, places=1, most=4)
    combiner.start()
    combiner.put(7)
    assert work.calls == [[7]]
    assert work.threads == [threading.current_thread()]


def test_what_waits_is_done_in_its_order_more_and_more_of_it_together() -> None:
    work, combiner, first = held_up()
    for number in range(1, 13):
        combiner.put(number)  # returns: it waits for nothing
    assert work.calls == [[0]]
    work.may_go_on.set()
    first.join()
    wait_for(lambda: len(work.done()) == 13)
    assert work.calls == [[0], [1], [2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12]]
    assert work.most_running == 1


def test_no_more_run_at_once_than_there_are_places_and_each_item_is_done_once() -> None:
    work = Recorder()
    combiner = Combiner(work, places=2, most=8)
    combiner.start()
    for thread in in_threads(8, lambda number: [combiner.put(8 * place + number) for place in range(200)] and None):
        thread.join()
    wait_for(lambda: len(work.done()) == 1600)
    assert sorted(work.done()) == list(range(1600))
    assert work.most_running <= 2


def test_a_thread_survives_what_its_work_raises() -> None:
    done, may_go_on = [], threading.Event()

    def work(items: list[str]) -> None:
        if items == ["first"]:
            may_go_on.wait(10)
        if items == ["bad"]:
            raise ValueError("bad")
        done.extend(items)

    combiner = Combiner(work, places=1, most=1)
    combiner.start()
    first = threading.Thread(target=combiner.put, args=["first"])
    first.start()
    wait_for(lambda: combiner._taken_places == 1)
    for item in ("bad", "good"):
        combiner.put(item)
    may_go_on.set()
    first.join()
    wait_for(lambda: done == ["first", "good"] and combiner._taken_places == 0)
    with pytest.raises(ValueError, match="bad"):  # its own thread hears of it
        combiner.put("bad")
    combiner.put("good")
    assert done == ["first", "good", "good"]


def test_what_is_drained_is_not_done() -> None:
    work, combiner, first = held_up()
    for number in (1, 2):
        combiner.put(number)
    assert combiner.drain() == [1, 2]
    combiner.put(3)
    work.may_go_on.set()
    first.join()
    wait_for(lambda: work.calls == [[0], [3]])
