"""A function, each call of which holds a slot."""

from __future__ import annotations

import functools
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
R = TypeVar("R")


class Block(
    AbstractContextManager[object, None], AbstractAsyncContextManager[object, None], Protocol
):
    """What it takes of a semaphore."""


def decorated(function: Callable[P, R], semaphore: Block) -> Callable[P, R]:
    """Return ``function``, but in ``with semaphore:``.

    Raises:
        TypeError: it is a generator function, whose body runs after the call.

    """
    import inspect  # noqa: PLC0415  slow to import, for decorators only

    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"{function!r} is a generator: use the limit inside it, with `with`")
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def call_async(*args: P.args, **kwargs: P.kwargs) -> Any:
            async with semaphore:
                return await function(*args, **kwargs)

        return cast("Callable[P, R]", call_async)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with semaphore:
            return function(*args, **kwargs)

    return call
