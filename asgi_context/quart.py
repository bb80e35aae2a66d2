"""For Quart: the middleware as an extension."""

from typing import Any, Final

from quart import Quart

from asgi_context._middleware import ContextMiddleware

__all__ = ["QuartContext"]

_NAME: Final = "asgi_context"  # in `Quart.extensions`


class QuartContext:
    """Wraps Quart apps in `ContextMiddleware`, as their extensions do it: at once, or later by `init_app`.

    Every handler, hook, sync function in a thread, background task and WebSocket of the app then knows on whose behalf
    it runs. Hooks for the serving itself, such as ``before_serving``, run for nobody. What wraps ``app.asgi_app`` later
    stands outside. The middleware is in ``app.extensions["asgi_context"]``.

    Args:
        app: the app; without one, `init_app` is given it.
        **options: those of `ContextMiddleware`. A store given here is that of all the apps.

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
