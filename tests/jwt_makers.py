"""Makes keys and tokens by hand, also those that no library would make."""

import hmac
import json
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

NOW = 1_700_000_000  # seconds; what the clocks of the tests show
ISSUER = "https://id.example.com"
AUDIENCE = "api"
ALGORITHMS = (
    *("HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA", "Ed25519", "Ed448"),
)
_HASHES = {"256": SHA256, "384": SHA384, "512": SHA512}
_CURVES = {"256": ("P-256", ec.SECP256R1), "384": ("P-384", ec.SECP384R1), "512": ("P-521", ec.SECP521R1)}


def encode(raw: bytes) -> str:
    """base64url without padding."""
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def _number(value: int, size: int | None = None) -> str:
    return encode(value.to_bytes(size or (value.bit_length() + 7) // 8, "big"))


class SigningKey:
    """A key: ``kid``, the ``algorithm`` it was made for, its ``jwk`` (public, but of a secret), ``pem`` or ``secret``."""

    def __init__(self, algorithm: str, kid: str | None, private: Any) -> None:
        self.algorithm = algorithm
        self.kid = kid
        self._private = private
        self.pem = b""
        self.secret = private if isinstance(private, bytes) else b""
        if not isinstance(private, bytes):
            self.pem = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    @property
    def jwk(self) -> dict[str, Any]:
        """A new dictionary each time; ``kid`` is in it unless it is ``None``, ``alg`` and ``use`` are not."""
        return self._members() | ({} if self.kid is None else {"kid": self.kid})

    def _members(self) -> dict[str, Any]:
        if isinstance(self._private, bytes):
            return {"kty": "oct", "k": encode(self._private)}
        public = self._private.public_key()
        if isinstance(public, rsa.RSAPublicKey):
            numbers = public.public_numbers()
            return {"kty": "RSA", "n": _number(numbers.n), "e": _number(numbers.e)}
        if isinstance(public, ec.EllipticCurvePublicKey):
            point, size = public.public_numbers(), (public.curve.key_size + 7) // 8
            curve = _CURVES[self.algorithm[2:]][0]
            return {"kty": "EC", "crv": curve, "x": _number(point.x, size), "y": _number(point.y, size)}
        curve = "Ed448" if isinstance(public, ed448.Ed448PublicKey) else "Ed25519"
        return {"kty": "OKP", "crv": curve, "x": encode(public.public_bytes_raw())}

    def sign(self, signed: bytes, algorithm: str | None = None) -> bytes:
        """Sign by its own algorithm, or another of its family (HMAC, RSA)."""
        algorithm = algorithm or self.algorithm
        if isinstance(self._private, bytes):
            return hmac.digest(self._private, signed, f"sha{algorithm[2:]}")
        if algorithm.startswith("Ed"):
            return bytes(self._private.sign(signed))
        digest = _HASHES[algorithm[2:]]()
        if algorithm.startswith("ES"):
            size = (self._private.curve.key_size + 7) // 8
            both = decode_dss_signature(self._private.sign(signed, ec.ECDSA(digest)))
            return b"".join(number.to_bytes(size, "big") for number in both)
        if algorithm.startswith("PS"):
            return bytes(self._private.sign(signed, padding.PSS(padding.MGF1(digest), digest.digest_size), digest))
        return bytes(self._private.sign(signed, padding.PKCS1v15(), digest))


@cache
def _rsa(kid: str | None, bits: int) -> Any:
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


@cache
def make_key(algorithm: str, kid: str | None = "k", *, bits: int = 2048) -> SigningKey:
    """Make a key; the same one each time for the same arguments, and of RSA for all its algorithms."""
    if algorithm.startswith("HS"):
        private: Any = b"".join(sha256(f"{algorithm}{kid}{part}".encode()).digest() for part in range(2))
    elif algorithm.startswith(("RS", "PS")):
        private = _rsa(kid, bits)
    elif algorithm.startswith("ES"):
        private = ec.generate_private_key(_CURVES[algorithm[2:]][1]())
    elif algorithm == "Ed448":
        private = ed448.Ed448PrivateKey.generate()
    else:
        private = ed25519.Ed25519PrivateKey.generate()
    return SigningKey(algorithm, kid, private)


def secret_key(secret: bytes, kid: str | None = None, algorithm: str = "HS256") -> SigningKey:
    """A key of these very bytes, such as those of a public key that is mistaken for a secret."""
    return SigningKey(algorithm, kid, secret)


def compact(key: SigningKey, header: bytes, payload: bytes, algorithm: str | None = None) -> str:
    """Sign whatever bytes stand for header and payload."""
    signed = f"{encode(header)}.{encode(payload)}"
    return f"{signed}.{encode(key.sign(signed.encode(), algorithm))}"


def changed(members: Mapping[str, Any], /, **changes: Any) -> dict[str, Any]:
    """Members, changed; ``...`` takes one away."""
    return {name: value for name, value in {**members, **changes}.items() if value is not ...}


def claims(**changes: Any) -> dict[str, Any]:
    """Claims that are good at ``NOW``, for ann of acme, and until 600 seconds later; ``...`` takes one away."""
    standard = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "org_id": "acme", "iat": NOW, "exp": NOW + 600}
    return changed(standard, **changes)


def token(key: SigningKey, header: Mapping[str, Any] | None = None, /, **changes: Any) -> str:
    """A token of `claims`, its header changed likewise."""
    members = {"alg": key.algorithm, "typ": "JWT", "kid": ... if key.kid is None else key.kid, **(header or {})}
    return compact(key, json.dumps(changed(members)).encode(), json.dumps(claims(**changes)).encode())
