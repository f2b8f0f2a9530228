"""Protects reading ahead: items come in order and only so many at once, errors in their turn, and no thread is left."""

import threading
import time
from contextlib import closing

import pytest

from odutils.ahead import Ahead, map_ahead


def threads_left():
    return [thread for thread in threading.enumerate() if thread.name.startswith("odutils")]


@pytest.mark.parametrize("threads, size", [(1, 1), (4, 2), (4, 50)])
def test_results_come_in_the_order_of_the_items(threads, size):
    def slowest_first(item):
        time.sleep((20 - item) / 4000)
        return item * item

    assert list(map_ahead(slowest_first, range(20), threads, size)) == [item * item for item in range(20)]
    assert not threads_left()


def test_items_are_worked_on_side_by_side():
    meeting = threading.Barrier(3, timeout=20)  # each waits until three are at work
    assert len(list(map_ahead(lambda _: meeting.wait(), range(3), threads=3))) == 3


def test_no_more_than_size_are_ahead():
    begun = []
    with closing(map_ahead(begun.append, range(100), threads=4, size=5)) as results:
        for taken, _ in enumerate(results, start=1):
            assert len(begun) <= taken + 5


def test_an_error_is_raised_in_its_turn_and_ends_the_rest():
    done = []

    def work(item):
        if item == 3:
            raise ValueError("item 3")
        done.append(item)
        return item

    seen = []
    with pytest.raises(ValueError, match="item 3"):
        for item in map_ahead(work, range(1000), threads=2, size=4):
            seen.append(item)
    assert seen == [0, 1, 2] and len(done) < 20 and not threads_left()


def test_breaking_off_cancels_what_has_not_begun():
    begun = []
    results = map_ahead(lambda item: begun.append(item) or time.sleep(0.01), range(1000), threads=1, size=100)
    next(results)
    results.close()
    assert len(begun) < 20 and not threads_left()


def test_one_thread_takes_an_iterator_ahead_and_ends_with_the_block():
    def endless():
        number = 0
        while True:
            yield number
            number += 1

    with Ahead(endless(), size=3) as ahead:
        assert [item for item, _ in zip(ahead, range(5), strict=False)] == [0, 1, 2, 3, 4]
    assert not threads_left() and ahead.worked >= 0 and ahead.waited > 0
