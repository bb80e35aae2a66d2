"""Identities out of signed JSON Web Tokens: `JWTAuth`, an extractor for ``ContextMiddleware(identity=...)``.

Needs the extra ``jwt``: joserfc imports the keys and checks the signatures; the token itself is read by a strict parser
of this package's own.
"""

from asgi_context.jwt._auth import JWTAuth
from asgi_context.jwt._issuer import Issuer
from asgi_context.jwt._jwks import JWKSClient

__all__ = ["Issuer", "JWKSClient", "JWTAuth"]
