"""What an extractor is, and how one is compiled into a step of the middleware.

A step is a function of the scope and of what the one pass over the headers found. A source that can answer at once is
a plain function; one that may have to wait is a coroutine function, and `Step.waits` says so. Compositions are written
once, as coroutine functions (`identity_from` alone is written twice, for speed): where none of their parts waits, they
are run on the spot.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterable
from inspect import isawaitable
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

from asgi_context._extract._identifiers import Valid, check_rule, checked
from asgi_context._headers import Found, HeaderPlan, Scan
from asgi_context._identity import Identity
from asgi_context._types import Scope
from asgi_context.errors import ExtractorTypeError, RequestRejected

GENERIC: Final = "identifier"
"""The role of an identifier while nobody has said what it identifies."""

Value: TypeAlias = "str | Identity | None"


@runtime_checkable
class Extractor(Protocol):
    """Any callable that reads a string or an identity out of an ASGI scope.

    It may be a coroutine function. ``None`` means absent; to refuse, it raises `RequestRejected`. A string that it
    returns must be an identifier: 1 to 128 ASCII letters, digits and ``. _ - ~ @ : | + =``, not only dots; unless it
    has an attribute ``valid``: a callable that takes the string and says whether it is good. With attributes ``open``
    and ``close`` (plain or coroutine functions) it is opened and closed with the app's lifespan. With an attribute
    ``challenge`` (text of a ``WWW-Authenticate`` header, RFC 9110, section 11.6.1) a request without identity is
    answered with 401 and that challenge. With an attribute ``hide`` (takes the scope of a WebSocket) what the app must
    not see is taken out of the scope before it runs. One that asks another extractor hands these on.

    Example:
        >>> from asgi_context import Identity, RequestRejected, from_header
        >>> class ByKey:
        ...     challenge = 'ApiKey realm="things"'
        ...     key = staticmethod(from_header("x-api-key"))
        ...
        ...     def __call__(self, scope):
        ...         key = self.key(scope)
        ...         if key == "withdrawn":
        ...             raise RequestRejected(401, "key_withdrawn")
        ...         return Identity("acme", "robot") if key else None
        >>> ByKey()({"headers": [(b"x-api-key", b"k1")]}).user
        'robot'
    """

    def __call__(self, scope: Scope, /) -> Any:  # noqa: ANN401 - str, Identity or None, or an awaitable of these
        """Read the value."""
        ...


Read: TypeAlias = Callable[[Scope, Found], Any]


class Step(NamedTuple):
    """A compiled extractor."""

    run: Read
    waits: bool


async def ask(step: Step, scope: Scope, found: Found) -> Value:
    """Run a step, and wait for it if need be.

    Args:
        step: the step.
        scope: the connection's scope.
        found: what the pass over its headers found.

    Returns:
        What was extracted, or ``None``.
    """
    value: Value = await step.run(scope, found) if step.waits else step.run(scope, found)
    return value


def composed(run: Callable[[Scope, Found], Coroutine[Any, Any, Value]], parts: Iterable[Step]) -> Step:
    """Make the step of a composition.

    Args:
        run: a coroutine function that waits for nothing but its parts.
        parts: their steps.

    Returns:
        A step that waits only if a part does.
    """
    if any(part.waits for part in parts):
        return Step(run, waits=True)

    def run_now(scope: Scope, found: Found) -> Value:
        try:
            run(scope, found).send(None)
        except StopIteration as done:
            value: Value = done.value
            return value
        raise RuntimeError("a composition waited for something that is none of its parts")

    return Step(run_now, waits=False)


class Sent(NamedTuple):
    """What a client sends for an extractor, for those who describe the API."""

    place: Literal["header", "query", "cookie", "bearer"]
    name: str
    """Of the header, parameter or cookie; of a bearer token, the format."""


Ways: TypeAlias = tuple[tuple[Sent, ...], ...]
"""In which ways a client can say who asks: each is what must be sent together, beside the URL."""

IN_THE_URL: Final[Ways] = ((),)
"""There is nothing to send."""


class BuiltIn(ABC):
    """An extractor of this package."""

    ways: Ways | None = None
    """How a client can give what it reads; ``None`` where nobody here can tell, or where the parts say so."""
    parts: tuple[Extractor, ...] = ()
    needs: Literal["all", "any", "first"] | None = None
    """Which of its parts must be there; ``None`` where it has none."""
    gives: type | None = None
    """``str`` or ``Identity``; ``None`` where parts of the user's decide."""

    _standalone: tuple[Step, Scan] | None = None

    @abstractmethod
    def compile(self, plan: HeaderPlan, role: str) -> Step:
        """Make the step, and claim the headers that it reads.

        Args:
            plan: where headers are claimed.
            role: what a string is going to identify, for the codes of rejections.

        Returns:
            The step.
        """

    def __call__(self, scope: Scope, /) -> Any:  # noqa: ANN401 - str, Identity or None, or a coroutine of these
        """Extract by itself, as a part of an extractor of the user's own.

        Args:
            scope: an ASGI scope.

        Returns:
            What was extracted, or ``None``; a coroutine of it where a part may have to wait.
        """
        if self._standalone is None:
            plan = HeaderPlan()
            step = self.compile(plan, GENERIC)
            self._standalone = step, plan.compile()
        step, scan = self._standalone
        return step.run(scope, scan(scope["headers"]))


def compile_step(extractor: Extractor, plan: HeaderPlan, role: str) -> Step:
    """Compile any extractor.

    Args:
        extractor: one of this package, or a callable of the user's.
        plan: where headers are claimed.
        role: what a string is going to identify, for the codes of rejections.

    Returns:
        Its step.
    """
    if isinstance(extractor, BuiltIn):
        return extractor.compile(plan, role)
    valid: Valid | None = getattr(extractor, "valid", None)
    check_rule(valid, f"the attribute valid of {extractor!r}")
    called = f"the extractor {extractor!r}"

    async def run(scope: Scope, _found: Found) -> Value:
        try:
            value = extractor(scope)
            if isawaitable(value):
                value = await value
        except RequestRejected as rejection:
            raise _rename(rejection, role) from None  # one of this package's may have been called inside
        if value is None:
            return None
        if isinstance(value, str):
            return checked(str.__str__(value), valid, role)  # of a subclass of str, the plain str
        if isinstance(value, Identity):
            checked(value.tenant, valid, "tenant")
            if value.user is not None:
                checked(value.user, valid, "user")
            return value
        raise ExtractorTypeError(called, type(value).__qualname__, "str, Identity or None")

    return Step(run, waits=True)


def parts_of(extractors: Iterable[object]) -> Iterable[object]:
    """List extractors with all that they are composed of.

    Args:
        extractors: where to start.

    Yields:
        Each of them, then its parts.
    """
    for extractor in extractors:
        yield extractor
        if isinstance(extractor, BuiltIn):
            yield from parts_of(extractor.parts)


def _rename(rejection: RequestRejected, role: str) -> RequestRejected:
    prefix = f"{GENERIC}_"
    if not rejection.code.startswith(prefix):
        return rejection
    code = f"{role}_{rejection.code.removeprefix(prefix)}"
    return RequestRejected(rejection.status, code, headers=rejection.headers)
