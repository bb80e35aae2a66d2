"""Quart: the middleware as an extension.

::

    app = Quart(__name__)
    QuartContext(app, tenant=from_header("x-tenant-id"), user=from_header("x-user-id"))

or, where the app is made by a function, ``context = QuartContext(tenant=...)`` and there ``context.init_app(app)``.

Quart reads a WebSocket in another task than that of its handler. So the context is that of the connection, and messages
that say who sent them are handled in a block of `asgi_context.message_context`.
"""

from typing import Any, Final

from quart import Quart

from asgi_context._middleware import ContextMiddleware

__all__ = ["QuartContext"]

_NAME: Final = "asgi_context"  # in `Quart.extensions`


class QuartContext:
    """Wraps Quart apps in `ContextMiddleware`, like other extensions: at once, or later by `init_app`.

    Every handler, hook, sync function in a thread, background task and WebSocket of the app then knows on whose behalf
    it runs. Hooks of serving itself, such as ``before_serving``, run for nobody. What wraps ``app.asgi_app`` later
    stands outside. The middleware is in ``app.extensions["asgi_context"]``.

    Args:
        app: the app; without one, `init_app` is given it.
        **options: those of `ContextMiddleware`. A store that is given here is shared by all the apps.

    Raises:
        TypeError: an option is of the wrong type or unknown, options do not go together, or the app is not Quart's.
        ValueError: an option has a value that it cannot have.
    """

    def __init__(self, app: Quart | None = None, **options: Any) -> None:  # noqa: ANN401 - ContextMiddleware types them
        ContextMiddleware(_no_app, **options)  # so that an option that cannot be is told where it stands
        self._options = options
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Quart) -> None:
        """Wrap an app.

        Args:
            app: the app.

        Raises:
            TypeError: it is none of Quart's.
            RuntimeError: it is wrapped already.
        """
        if not isinstance(app, Quart):
            message = f"app must be a Quart app, not {type(app).__qualname__}"
            raise TypeError(message)
        if _NAME in app.extensions:
            message = f"{app!r} has its QuartContext already: one for each app"
            raise RuntimeError(message)
        wrapped: Any = app  # `asgi_app` is a method there, of Hypercorn's ASGI types
        wrapped.asgi_app = middleware = ContextMiddleware(wrapped.asgi_app, **self._options)
        app.extensions[_NAME] = middleware


async def _no_app(_scope: Any, _receive: Any, _send: Any) -> None: ...  # noqa: ANN401
