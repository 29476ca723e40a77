"""Safe points: places in long work where something short may run in between.

Long work calls `safe_point` where nothing is half done; whoever runs it says with `interruptible`
what may come in between. Work that has put something in place for a while (a version's weights)
says with `set_aside` how to take it out of the way, so that what comes in between finds the model
as it is when nobody uses it. Without `interruptible`, safe points cost nothing and do nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from typing import Protocol


class Interrupter(Protocol):
    """What may run at safe points."""

    def due(self) -> bool:
        """Whether there is something to run now; asked at every safe point, so it must be cheap."""

    def run(self) -> None:
        """Runs it; what it raises ends the work around it."""


Aside = Callable[[], AbstractContextManager[None]]

_interrupter: ContextVar[Interrupter | None] = ContextVar("interrupter", default=None)
_asides: ContextVar[tuple[Aside, ...]] = ContextVar("asides", default=())


def safe_point() -> None:
    """Lets what is due run, with everything in place set aside for its length."""
    interrupter = _interrupter.get()
    if interrupter is None or not interrupter.due():
        return
    with interruptible(None), ExitStack() as stack:
        for aside in reversed(_asides.get()):
            stack.enter_context(aside())
        with _nothing_in_place():
            interrupter.run()


@contextmanager
def interruptible(interrupter: Interrupter | None) -> Iterator[None]:
    """For the length of the block, safe points of this thread run it; None: nothing."""
    before = _interrupter.set(interrupter)
    try:
        yield
    finally:
        _interrupter.reset(before)


@contextmanager
def set_aside(aside: Aside) -> Iterator[None]:
    """For the length of the block, whatever runs at a safe point runs inside `aside`."""
    before = _asides.set((*_asides.get(), aside))
    try:
        yield
    finally:
        _asides.reset(before)


@contextmanager
def _nothing_in_place() -> Iterator[None]:
    before = _asides.set(())
    try:
        yield
    finally:
        _asides.reset(before)
