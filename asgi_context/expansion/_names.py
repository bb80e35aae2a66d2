"""Which names a document may refer to, and where they are looked for: decided before anything is looked up."""

import re
from collections.abc import Collection
from typing import Final, NamedTuple

from asgi_context.errors import ExpansionForbiddenError
from asgi_context.expansion._places import Place, tell

NAME: Final = "[A-Za-z_][A-Za-z0-9_]*+"
"""A name, as a regular expression that never goes back."""

IDENTITY: Final = frozenset({"tenant", "user", "request_id"})
"""Names that ``context:`` finds in what is bound, and never among values, which may be a client's."""

_IS_NAME: Final = re.compile(NAME).fullmatch


class Where(NamedTuple):
    """Where a reference is looked for: first of the request, then in the environment."""

    request: bool
    env: bool
    listed: bool
    """Whether the caller has listed it as a name of the request: then it may hide a variable."""


class Names:
    """The names that a document may refer to.

    Args:
        request: those of the request; ``None`` for any.
        env: those of the environment; ``None`` for any.

    Raises:
        TypeError: an option is not a collection of names.
        ValueError: an option holds what no reference can name.
    """

    __slots__ = ("_env", "_request")

    def __init__(self, request: Collection[str] | None, env: Collection[str] | None) -> None:
        self._request = _checked("request_names", request)
        self._env = _checked("env_names", env)

    def where(self, source: str | None, name: str, place: Place) -> Where:
        """Tell where a reference is looked for.

        Args:
            source: ``"context"``, ``"env"``, or ``None`` for both.
            name: what it names.
            place: where it stands.

        Returns:
            At least one place to look.

        Raises:
            ExpansionForbiddenError: there is none that the caller allows.
        """
        request = source != "env" and (self._request is None or name in self._request)
        env = source != "context" and (self._env is None or name in self._env)
        if not (request or env):
            options = {"context": "request_names=", "env": "env_names=", None: "request_names= or env_names="}
            raise ExpansionForbiddenError(tell(place), name, options[source])
        return Where(request, env, self._request is not None)


def _checked(option: str, names: Collection[str] | None) -> frozenset[str] | None:
    if names is None:
        return None
    if isinstance(names, str | bytes) or not isinstance(names, Collection):
        message = f"{option} must be a collection of names, not {type(names).__qualname__}"
        raise TypeError(message)
    checked = frozenset(names)
    for name in checked:
        if type(name) is not str:
            message = f"{option} must hold names, not {type(name).__qualname__}"
            raise TypeError(message)
        if not _IS_NAME(name):
            message = f"{option} holds {name!r}, which no reference can name: letters, digits and _, not a digit first"
            raise ValueError(message)
    return checked
