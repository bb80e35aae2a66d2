"""What a test can have done."""

from collections.abc import Sequence

from asgi_context.errors._root import AsgiContextError


class ContextLeftError(AsgiContextError, AssertionError):
    """A test, one of its fixtures, or a block has ended and left something bound.

    Args:
        left: the names of the context variables that it left.
        tenant: the tenant of the context that it left, if it is that.
        user: the user of it.
        fixture: the name of the fixture that left it, if it was one.
    """

    def __init__(
        self, left: Sequence[str], tenant: str | None = None, user: str | None = None, fixture: str | None = None
    ) -> None:
        super().__init__(left, tenant, user, fixture)
        self.left = tuple(left)
        self.tenant = tenant
        self.user = user
        self.fixture = fixture

    def __str__(self) -> str:
        whose = "" if self.tenant is None else f", for the tenant {self.tenant!r} and the user {self.user!r}"
        where = "" if self.fixture is None else f", by the fixture {self.fixture!r}"
        return (
            f"left bound at the end{where}: {', '.join(self.left)}{whose}. Whatever runs next here would find it: bind "
            "by `with bind_context(...):`, and leave what __enter__ or an ExitStack has entered"
        )
