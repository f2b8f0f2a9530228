"""Work done ahead of its use, in threads: reading and decoding while the network computes."""

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter


def map_ahead(function: Callable, items: Iterable, threads: int | None = None, size: int = 16) -> Iterator:
    """Yield function(item) for each item, in order, while threads work on up to `size` items ahead.

    threads: by default one a core, 8 at most.   What the function raises is raised when its turn comes. `items` is read
    in the calling thread. An iteration that is broken off cancels what has not begun.
    """
    threads = threads or min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads, thread_name_prefix="odutils-ahead") as pool:
        waiting = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > size:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class Ahead:
    """Takes items out of an iterable in one thread, at most `size` of them ahead. What it raises is raised here.

    For items that must come one after the other, as frames do; `map_ahead` is for independent ones.
    Leaving the `with` block ends the thread, whatever happened. `worked` and `waited` are seconds: of the thread at its
    work, and of the reader without an item.
    """

    def __init__(self, items: Iterable, size: int):
        self.items = items
        self.worked = self.waited = 0.0
        self.ready = queue.Queue(size)
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._work, name="odutils-ahead", daemon=True)

    def __enter__(self) -> "Ahead":
        self.thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self.stopping.set()
        self.thread.join()

    def __iter__(self) -> Iterator:
        while True:
            started = perf_counter()
            item, error, more = self.ready.get()
            self.waited += perf_counter() - started
            if error is not None:
                raise error
            if not more:
                return
            yield item

    def _work(self) -> None:
        items = iter(self.items)
        try:
            while not self.stopping.is_set():
                started = perf_counter()
                try:
                    entry = next(items), None, True
                except StopIteration:
                    entry = None, None, False
                self.worked += perf_counter() - started
                self._put(entry)
                if not entry[2]:
                    return
        except BaseException as error:  # handed over, so that it is not lost in the thread
            self._put((None, error, False))

    def _put(self, entry: tuple) -> None:
        while not self.stopping.is_set():
            try:
                return self.ready.put(entry, timeout=0.1)
            except queue.Full:
                continue
