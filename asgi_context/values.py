"""Values of a request: a dictionary that every function, task and thread of the request shares.

A request has one dictionary; a block of `request_context` has one of its own, which starts as a copy of what is
outside and is dropped at its end. ``set``, ``update`` and ``clear`` write the innermost block, or without one the whole
request.

Example:
    >>> from asgi_context import Identity, bind_context
    >>> from asgi_context.values import get_from_context, request_context, update_request_context
    >>> with bind_context(Identity("acme"), values={"plan": "walk"}):
    ...     update_request_context(locale="en")
    ...     with request_context(plan="run"):
    ...         print(get_from_context("plan"), get_from_context("locale"))
    ...     get_from_context("plan")
    run en
    'walk'
"""

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from asgi_context._context import Binding, current_binding
from asgi_context.errors import ContextClosedError, ContextNotBoundError

__all__ = [
    "clear_request_context",
    "get_from_context",
    "request_context",
    "set_request_context",
    "update_request_context",
]


class _Block:
    __slots__ = ("binding", "ended", "revoked", "values")

    def __init__(self, binding: Binding, values: dict[str, Any]) -> None:
        self.binding = binding  # a block counts only under the binding that it was opened under
        self.values = values
        self.ended = False
        self.revoked = False


_block: Final[ContextVar[_Block | None]] = ContextVar("asgi_context.values", default=None)


def _innermost() -> Binding | _Block:
    binding, block = current_binding(), _block.get()
    holder = block if block is not None and block.binding is binding else binding
    binding.check("values")
    if holder.revoked:
        raise ContextClosedError("values", "revoked")
    if binding.ended or holder.ended:
        raise ContextClosedError("values", "ended")
    return holder


def _writable() -> Binding | _Block:
    holder = _innermost()
    if isinstance(holder, Binding) and holder.tenant is None:
        raise ContextNotBoundError("context that could hold values")
    return holder


def set_request_context(values: Mapping[str, Any], /) -> None:
    """Replace all values.

    Args:
        values: the new values, copied.

    Raises:
        ContextNotBoundError: nothing is bound here, and no block is open.
        ContextClosedError: the request or block that held the values has ended.
    """
    _writable().values = dict(values)


def get_from_context(key: str, default: Any = None) -> Any:  # noqa: ANN401 - whatever was set
    """Read one value.

    Args:
        key: its name.
        default: what to return where there is none, or nothing is bound.

    Returns:
        The value, or the default.

    Raises:
        ContextClosedError: the request or block that held the values has ended.
    """
    return _innermost().values.get(key, default)


def chosen_values(names: Iterable[str], /) -> dict[str, Any] | None:
    """Read some values, to hand them on.

    Args:
        names: their names.

    Returns:
        Those that there are; ``None`` where the request or block that held them has ended.
    """
    try:
        values = _innermost().values
    except ContextClosedError:
        return None
    return {name: values[name] for name in names if name in values}


def update_request_context(**values: Any) -> None:  # noqa: ANN401 - whatever is to be set
    """Set some values and leave the others as they are.

    Args:
        **values: the values by name.

    Raises:
        ContextNotBoundError: nothing is bound here, and no block is open.
        ContextClosedError: the request or block that held the values has ended.
    """
    _writable().values.update(values)


def clear_request_context() -> None:
    """Remove all values. Where nothing is bound there are none, and nothing happens.

    Raises:
        ContextClosedError: the request or block that held the values has ended.
    """
    holder = _innermost()
    if holder.values:
        holder.values = {}


@contextmanager
def request_context(**values: Any) -> Generator[None, None, None]:  # noqa: ANN401 - whatever is to be set
    """Open a block with values of its own, also where nothing is bound.

    It starts as a copy of the values outside plus those given. Tasks and threads that start inside share it; at its end
    it is dropped, and what still runs then can no longer read it.

    Args:
        **values: values by name.

    Yields:
        Nothing.

    Raises:
        ContextClosedError: the request or block outside has ended.
    """
    outside = _innermost()
    block = _Block(current_binding(), {**outside.values, **values})
    token = _block.set(block)
    try:
        yield
    finally:
        block.ended = True
        block.values = {}
        try:
            if _block.get() is block:
                _block.reset(token)
            else:  # another block was entered since and is still open, or this is another Context
                block.revoked = True
        except ValueError:  # a copy of the Context that it was set in
            block.revoked = True
