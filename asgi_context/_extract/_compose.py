"""Extractors made of extractors."""

from types import FunctionType
from typing import Final

from asgi_context._callables import runs_later
from asgi_context._extract._from_headers import FromHeader
from asgi_context._extract._step import BuiltIn, Extractor, Read, Step, Value, ask, compile_step, composed
from asgi_context._headers import Found, HeaderPlan
from asgi_context._identity import Identity, make_identity
from asgi_context._types import Scope
from asgi_context.errors import ExtractorTypeError, RequestRejected


def check_extractor(extractor: object, option: str, gives: type | None = None) -> None:
    """Check what stands where an extractor must.

    Args:
        extractor: what was given.
        option: what to call it in an error.
        gives: what it must give, ``str`` or ``Identity``, where it is known to give something else.

    Raises:
        TypeError: it is not callable, or a class where an instance is meant, or gives something else.
    """
    if isinstance(extractor, type):
        message = f"{option} must be an extractor, not the class {extractor.__qualname__}: call it"
        raise TypeError(message)
    if not callable(extractor) or runs_later(extractor) == "a generator function":
        message = f"{option} must be an extractor, a callable that takes the scope and returns, not {extractor!r}"
        raise TypeError(message)
    if isinstance(extractor, FunctionType) and _is_ours(extractor):
        message = f"{option} must be an extractor, which {extractor.__name__} makes: call it, {extractor.__name__}(...)"
        raise TypeError(message)
    known = extractor.gives if isinstance(extractor, BuiltIn) else None
    if gives is not None and known is not None and known is not gives:
        message = f"{option} must be an extractor of {gives.__name__}, and {extractor!r} gives {known.__name__}"
        raise TypeError(message)


def _is_ours(function: FunctionType) -> bool:
    return str(function.__globals__.get("__name__")).startswith("asgi_context._extract.")


class _Composition(BuiltIn):
    def __init__(self, name: str, *parts: Extractor) -> None:
        for part in parts:
            check_extractor(part, f"a part of {name}")
        self.parts = parts
        self._repr = f"{name}({', '.join(map(repr, parts))})"

    def __repr__(self) -> str:
        return self._repr


class IdentityFrom(_Composition):
    """What `identity_from` returns."""

    needs = "all"

    def __init__(self, tenant: Extractor, user: Extractor | None) -> None:
        check_extractor(tenant, "tenant", str)
        if user is not None:
            check_extractor(user, "user", str)
        super().__init__("identity_from", *([tenant] if user is None else [tenant, user]))
        self.gives = Identity
        self._tenant = tenant
        self._user = user

    def plain_parts(self, plan: HeaderPlan) -> tuple[Read, ...] | None:
        """Give the parts by themselves, where they are nothing but headers, and have the first slots in their order.

        Args:
            plan: where headers are claimed; nothing was claimed so far.

        Returns:
            How to read the tenant, and the user if there is one; ``None`` where any is more than a header.
        """
        reads: list[Read] = []
        for part, role in zip(self.parts, ("tenant", "user"), strict=False):
            if not (isinstance(part, FromHeader) and part.plain):
                return None
            reads.append(part.compile(plan, role).run)
        return tuple(reads) if len(plan.names) == len(reads) else None  # fewer slots: both are the same header

    def compile(self, plan: HeaderPlan, role: str) -> Step:  # noqa: ARG002 - the parts have roles of their own
        tenant_step = compile_step(self._tenant, plan, "tenant")
        user_step = NOBODY if self._user is None else compile_step(self._user, plan, "user")
        needs_user = self._user is not None

        def make(tenant: Value, user: Value) -> Identity | None:
            if type(tenant) is str:
                if type(user) is str or (user is None and not needs_user):
                    return make_identity(tenant, user)
                if user is None:
                    raise RequestRejected(400, "user_missing")  # half an identity
            for part, value in (("tenant", tenant), ("user", user)):
                if value is not None and type(value) is not str:
                    called = f"the extractor given as {part}="
                    raise ExtractorTypeError(called, type(value).__qualname__, "str or None")
            return None

        # The user is read also where there is no tenant, since it may be invalid. In both colours, unlike the other
        # compositions: this one stands in nearly every middleware.
        if not (tenant_step.waits or user_step.waits):
            read_tenant, read_user = tenant_step.run, user_step.run

            def run_now(scope: Scope, found: Found) -> Identity | None:
                return make(read_tenant(scope, found), read_user(scope, found))

            return Step(run_now, waits=False)

        async def run(scope: Scope, found: Found) -> Identity | None:
            return make(await ask(tenant_step, scope, found), await ask(user_step, scope, found))

        return Step(run, waits=True)


def _nobody(_scope: Scope, _found: Found) -> None:
    return None


NOBODY: Final = Step(_nobody, waits=False)


def identity_from(*, tenant: Extractor, user: Extractor | None = None) -> BuiltIn:
    """Make an identity of a tenant and a user that are read separately.

    Both should come from one source that is believed as a whole: the tenant of one and the user of another are mixed
    only because this call says so.

    Args:
        tenant: extractor of the tenant.
        user: extractor of the user; without one the user is ``None``.

    Returns:
        An extractor of `Identity`; absent where the tenant is. A tenant without the configured user is refused.

    Raises:
        TypeError: an argument is no extractor.
    """
    return IdentityFrom(tenant, user)


class _FirstOf(_Composition):
    needs = "any"

    def __init__(self, *parts: Extractor) -> None:
        super().__init__("first_of", *parts)
        kinds = {part.gives if isinstance(part, BuiltIn) else None for part in parts}
        if {str, Identity} <= kinds:
            message = "first_of: some parts give strings and some identities"
            raise TypeError(message)
        self.gives = kinds.pop() if len(kinds) == 1 else None

    def compile(self, plan: HeaderPlan, role: str) -> Step:
        steps = [compile_step(part, plan, role) for part in self.parts]

        async def run(scope: Scope, found: Found) -> Value:
            for step in steps:
                value = await ask(step, scope, found)
                if value is not None:
                    return value
            return None

        return composed(run, steps)


def first_of(*extractors: Extractor) -> BuiltIn:
    """Take the first that is present.

    What is present but invalid refuses the request; it never falls through to the next.

    Args:
        *extractors: extractors of strings, or of identities, in the order in which they are asked.

    Returns:
        An extractor of what the first present one gives.

    Raises:
        TypeError: an argument is no extractor.
        ValueError: there is none.

    Example:
        >>> from asgi_context import constant, first_of, from_header
        >>> tenant = first_of(from_header("x-tenant-id"), constant("public"))
        >>> tenant({"headers": [(b"x-tenant-id", b"acme")]}), tenant({"headers": []})
        ('acme', 'public')
    """
    if not extractors:
        message = "first_of: needs at least one extractor"
        raise ValueError(message)
    return _FirstOf(*extractors)


class _Agree(_Composition):
    needs = "first"  # a hint may be left out

    def __init__(self, proof: Extractor, *hints: Extractor) -> None:
        super().__init__("agree", proof, *hints)
        kinds = [part.gives if isinstance(part, BuiltIn) else None for part in (proof, *hints)]
        if kinds[0] is str and Identity in kinds:
            message = "agree: a proof that is a string cannot be held against whole identities"
            raise TypeError(message)
        self.gives = kinds[0]  # whatever the hints are

    def compile(self, plan: HeaderPlan, role: str) -> Step:
        steps = [compile_step(part, plan, role) for part in self.parts]
        proof_step, *hint_steps = steps

        async def run(scope: Scope, found: Found) -> Value:
            proof = await ask(proof_step, scope, found)
            for step in hint_steps:
                hint = await ask(step, scope, found)  # also without a proof: it may be invalid
                if proof is not None and hint is not None:
                    _compare(proof, hint, role)
            return proof

        return composed(run, steps)


def _compare(proof: str | Identity, hint: str | Identity, role: str) -> None:
    if isinstance(proof, str):
        if isinstance(hint, Identity):
            raise ExtractorTypeError("a hint of agree()", "Identity", "str, as the proof does")
        if hint != proof:
            raise RequestRejected(403, f"{role}_mismatch")
        return
    if isinstance(hint, str):
        hint = Identity(hint)
    if hint.tenant != proof.tenant:
        raise RequestRejected(403, "tenant_mismatch")
    if hint.user is not None and proof.user is not None and hint.user != proof.user:
        raise RequestRejected(403, "user_mismatch")


def agree(proof: Extractor, *hints: Extractor) -> BuiltIn:
    """Take the proof, and refuse what contradicts it.

    Args:
        proof: extractor of a string or an identity; it is what is bound. Where it is absent, so is the whole: a hint
            alone proves nothing.
        *hints: extractors of the same thing from elsewhere; beside an identity, a string is a hint at the tenant. Each
            that is present must say the same as the proof, else the request is refused with 403. Tenants are compared,
            and users where both have one.

    Returns:
        An extractor of what the proof gives.

    Raises:
        TypeError: an argument is no extractor.
        ValueError: there is no hint.
    """
    if not hints:
        message = "agree: needs at least one hint beside the proof"
        raise ValueError(message)
    return _Agree(proof, *hints)
