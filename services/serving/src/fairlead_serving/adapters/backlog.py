"""Work for a thread beside the requests: taken at once, never waited for, bounded in bytes."""

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Backlog(Generic[T]):
    """Hands items to one thread, in the order in which they came.

    Args:
        name: The thread's name.
        most_bytes: What all waiting items together may take.
        most_items: How many are handed over at once.
        size: Tells the bytes of an item.
        handle: Does the work; is called in the thread, with at least one item.
    """

    def __init__(
        self,
        name: str,
        *,
        most_bytes: int,
        most_items: int,
        size: Callable[[T], int],
        handle: Callable[[Sequence[T]], None],
    ) -> None:
        self._most_bytes, self._most_items = most_bytes, most_items
        self._size, self._handle = size, handle
        self._items: queue.SimpleQueue[T | None] = queue.SimpleQueue()
        self._waiting_bytes = 0
        self._room = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def add(self, item: T) -> bool:
        """Take an item, unless there is no room. Never waits.

        Returns:
            Whether it was taken.
        """
        size = self._size(item)
        with self._room:
            if self._waiting_bytes + size > self._most_bytes:
                return False
            self._waiting_bytes += size
        self._items.put(item)
        return True

    def close(self, timeout: float | None = None) -> bool:
        """Wait until what was taken is done, but not longer than so many seconds.

        Returns:
            Whether all is done.
        """
        self._items.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (item := self._items.get()) is not None:
            items, is_last = self._more(item)
            with self._room:
                self._waiting_bytes -= sum(map(self._size, items))
            self._handle(items)
            if is_last:
                return

    def _more(self, first: T) -> tuple[list[T], bool]:
        """Return what waits already, and whether nothing will come any more."""
        items = [first]
        while len(items) < self._most_items and not self._items.empty():
            item = self._items.get()
            if item is None:
                return items, True
            items.append(item)
        return items, False
