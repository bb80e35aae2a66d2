"""Extractors: who asks, read out of an ASGI scope. Compiled when the middleware is made, run for each request."""

from asgi_context._extract._compose import NOBODY, IdentityFrom, agree, check_extractor, first_of, identity_from
from asgi_context._extract._from_headers import from_cookie, from_header, from_subdomain
from asgi_context._extract._from_scope import constant, from_path, from_query, from_scope
from asgi_context._extract._identifiers import IDENTIFIER, Valid, check_rule, checked
from asgi_context._extract._step import Extractor, Step, ask, compile_step, parts_of
from asgi_context._extract._trust import SharedSecret

__all__ = [
    "IDENTIFIER",
    "NOBODY",
    "Extractor",
    "IdentityFrom",
    "SharedSecret",
    "Step",
    "Valid",
    "agree",
    "ask",
    "check_extractor",
    "check_rule",
    "checked",
    "compile_step",
    "constant",
    "first_of",
    "from_cookie",
    "from_header",
    "from_path",
    "from_query",
    "from_scope",
    "from_subdomain",
    "identity_from",
    "parts_of",
]
