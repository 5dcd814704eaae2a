"""Pauses between tries."""

import random


class Backoff:
    """Growing pauses with full jitter, so that many clients do not come back in step."""

    def __init__(self, first: float, most: float) -> None:
        self._first = self._next = first
        self._most = most

    def pause(self, asked: float | None = None) -> float:
        """The next pause: what the server asks for, plus the jitter."""
        pause = (asked or 0.0) + self._next * random.random()
        self._next = min(self._next * 2, self._most)
        return pause

    def reset(self) -> None:
        """Begins anew, after a success."""
        self._next = self._first
