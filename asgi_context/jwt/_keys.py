"""Keys that signatures are checked with (RFC 7517, RFC 7518), each for its own algorithms alone."""

from base64 import b64decode
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias, cast
from warnings import catch_warnings, simplefilter

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_der_public_key
from cryptography.x509 import load_der_x509_certificate
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import ECKey, Key, OctKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

from asgi_context.jwt._refused import TokenRefusedError, UnknownKeyError

KeyData: TypeAlias = Mapping[str, Any] | str | bytes
"""A JWK, a PEM, or the secret of an HMAC."""

_FAMILIES: Final[dict[str, tuple[str, ...]]] = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "P-256": ("ES256",),
    "P-384": ("ES384",),
    "P-521": ("ES512",),
    "Ed25519": ("EdDSA", "Ed25519"),
    "Ed448": ("EdDSA", "Ed448"),
}
ALGORITHMS: Final = frozenset({"HS256", "HS384", "HS512"}.union(*_FAMILIES.values()))
"""Those that this package knows (RFC 7518, section 3.1; RFC 8037; RFC 9864)."""

_SECRETS: Final = {"HS256": 32, "HS384": 48, "HS512": 64}  # bytes at least: RFC 7518, section 3.2
_SHORT: Final = "the secret has less than 32 bytes"
_RSA: Final = "an RSA key must have at least 2048 bits and at most 8192, and an exponent of 32 at most"
_RSA_BITS: Final = 2048  # at least: RFC 7518, section 3.3
_LARGEST_RSA: Final = 8192  # checking a signature takes longer the larger both are, and whoever publishes keys chooses
_LARGEST_EXPONENT: Final = 2**32
_KINDS: Final[dict[str, type[Key]]] = {"RSA": RSAKey, "EC": ECKey, "OKP": OKPKey, "oct": OctKey}
_STANDARD: Final = bytes.maketrans(b"-_", b"+/")
_PEM: Final = b"-----BEGIN "


def check_algorithms(given: object) -> frozenset[str] | None:
    """Check the option ``algorithms``.

    Args:
        given: a name, several, or ``None``.

    Returns:
        The names; ``None`` for all.

    Raises:
        TypeError: it is no collection of str.
        ValueError: there are none, or one is not known here.
    """
    if given is None:
        return None
    several = [given] if isinstance(given, str) else given
    if not isinstance(several, Collection) or isinstance(several, bytes | Mapping):
        message = f"algorithms must be a str or several of them, not {type(given).__qualname__}"
        raise TypeError(message)
    names = cast("Collection[object]", several)
    for name in names:
        if type(name) is not str:
            message = f"algorithms must be a str or several of them, not {type(name).__qualname__}"
            raise TypeError(message)
    if not names or not ALGORITHMS.issuperset(names):
        message = f"algorithms must be of {', '.join(sorted(ALGORITHMS))}"
        raise ValueError(message)
    return frozenset(cast("Collection[str]", names))


Check: TypeAlias = Callable[[bytes, bytes], bool]
"""Takes what was signed and the signature."""


class VerificationKey(NamedTuple):
    """A key, and how signatures are checked with it, by algorithm."""

    key_id: str | None
    checks: dict[str, Check]
    material: object
    """What tells it from another key of the same name."""


def import_key(data: object, algorithms: frozenset[str] | None) -> VerificationKey:
    """Import a key.

    Args:
        data: a JWK, a PEM, or the secret of an HMAC.
        algorithms: which algorithms are allowed; ``None`` for all that the key is for.

    Returns:
        The key.

    Raises:
        ValueError: it is no key that may check signatures by one of the algorithms; the message holds nothing of it.
    """
    key_id = None
    if isinstance(data, Mapping):
        jwk = dict(cast("Mapping[str, Any]", data))
        key_id = jwk.get("kid")
        if key_id is not None and type(key_id) is not str:
            raise ValueError("its kid is no string")
        key, names = _import_jwk(jwk)
    elif isinstance(data, str | bytes):
        key, names = _import_text(data.encode() if isinstance(data, str) else data)
    else:
        message = f"a key must be a JWK, a PEM or a secret, not {type(data).__qualname__}"
        raise ValueError(message)  # noqa: TRY004 - as the others: it is about what was configured
    if algorithms is not None:
        names = tuple(name for name in names if name in algorithms)
    if not names:
        raise ValueError("it is for none of the algorithms that are allowed")
    verify = partial(_verify_rsa, (key.public_key.key_size + 7) // 8) if isinstance(key, RSAKey) else _verify
    checks = {name: cast("Check", partial(verify, JWSRegistry.algorithms[name].verify, key)) for name in names}
    return VerificationKey(key_id, checks, (key.thumbprint(), names))


_Verify: TypeAlias = Callable[[bytes, bytes, Any], bool]


def _verify_rsa(size: int, verify: _Verify, key: Key, signed: bytes, signature: bytes) -> bool:
    # It is as long as the modulus (RFC 8017, sections 8.1.2 and 8.2.2); OpenSSL also takes one without its zeros.
    return len(signature) == size and _verify(verify, key, signed, signature)


def _verify(verify: _Verify, key: Key, signed: bytes, signature: bytes) -> bool:
    try:
        return verify(signed, signature, key)
    except (ValueError, TypeError, JoseError):  # a signature of no form that could be one
        return False


def _import_jwk(jwk: dict[str, Any]) -> tuple[Key, tuple[str, ...]]:
    kind = _KINDS.get(cast("str", jwk.get("kty"))) if isinstance(jwk.get("kty"), str) else None
    if kind is None:
        raise ValueError("its kty is not supported")
    if jwk.get("use", "sig") != "sig":
        raise ValueError("its use is not sig")
    operations = jwk.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        raise ValueError("its key_ops do not allow to verify")
    names, text = jwk.get("alg"), jwk.get("k")
    if kind is OctKey and not (isinstance(text, str) and len(text) * 3 // 4 >= _SECRETS["HS256"]):
        raise ValueError(_SHORT)
    modulus = jwk.get("n")
    if kind is RSAKey and isinstance(modulus, str) and not _RSA_BITS <= len(modulus) * 6 <= _LARGEST_RSA + 6:
        raise ValueError(_RSA)
    try:
        key: Key = kind.import_key({name: jwk[name] for name in jwk if name in _MEMBERS})
    except (JoseError, ValueError, TypeError, KeyError, AttributeError) as error:
        message = f"it cannot be read ({type(error).__name__})"
        raise ValueError(message) from None
    families = _algorithms_of(key)
    if names is not None:
        families = tuple(name for name in families if name == names)
    return key, families


_MEMBERS: Final = frozenset({"kty", "n", "e", "crv", "x", "y", "k"})
"""Those of a public key, and of a secret (RFC 7518, section 6): the private ones are not needed."""


def _import_text(text: bytes) -> tuple[Key, tuple[str, ...]]:
    if _PEM not in text:
        if len(text) < _SECRETS["HS256"]:
            raise ValueError(_SHORT)
        _check_secret(text)
        key: Key = OctKey.import_key(text)
        return key, _algorithms_of(key)
    for kind in (RSAKey, ECKey, OKPKey):
        try:
            with catch_warnings():
                simplefilter("ignore", SecurityWarning)  # what it warns of is an error here
                key = kind.import_key(text)
        except (JoseError, ValueError, TypeError):
            continue
        return key, _algorithms_of(key)
    raise ValueError("the PEM holds no key that is supported")


def _check_secret(text: bytes) -> None:
    # What everybody may read is no secret, although its text would do: whoever has it could sign by HMAC.
    stripped = text.strip()
    if stripped[:1] in {b"{", b"["} or b"---- begin" in stripped.lower():
        raise ValueError("it is the text of a key, and no secret: give a JWK as a mapping, a PEM as it is")
    standard = stripped.translate(_STANDARD) + b"=" * (-len(stripped) % 4)
    for load in (load_der_public_key, load_der_x509_certificate):
        try:
            load(b64decode(standard))
        except (ValueError, UnsupportedAlgorithm):
            continue
        raise ValueError("it is a public key or a certificate without its first and last line, and no secret")


def _algorithms_of(key: Key) -> tuple[str, ...]:
    if isinstance(key, OctKey):
        return tuple(name for name, least in _SECRETS.items() if len(key.raw_value) >= least)
    if isinstance(key, RSAKey):
        numbers = key.public_key.public_numbers()
        if not _RSA_BITS <= key.public_key.key_size <= _LARGEST_RSA or numbers.e >= _LARGEST_EXPONENT:
            raise ValueError(_RSA)
        return _FAMILIES["RSA"]
    return _FAMILIES.get(key.curve_name, ())


class KeyRing:
    """Keys by their names.

    Args:
        keys: the keys.

    Raises:
        ValueError: two of them have the same name.
    """

    def __init__(self, keys: Iterable[VerificationKey]) -> None:
        self._named: dict[str, VerificationKey] = {}
        self._nameless: list[VerificationKey] = []
        for key in keys:
            if key.key_id is None:
                self._nameless.append(key)
            elif key.key_id in self._named:
                raise ValueError("two keys have the same kid")
            else:
                self._named[key.key_id] = key

    @property
    def materials(self) -> frozenset[object]:
        """What tells its keys from others."""
        return frozenset((key.key_id, key.material) for key in [*self._named.values(), *self._nameless])

    def find(self, key_id: str | None, algorithm: str) -> Check:
        """Find the key of a token.

        Args:
            key_id: how the token calls it; ``None`` where it does not.
            algorithm: the algorithm that the token names.

        Returns:
            How its signature is checked.

        Raises:
            UnknownKeyError: there is no such key.
            TokenRefusedError: the key is for other algorithms, or the token could mean several.
        """
        named = None if key_id is None else self._named.get(key_id)
        if named is not None:
            check = named.checks.get(algorithm)
            if check is None:
                raise TokenRefusedError("its alg is not that of its key")
            return check
        # A key without a name is for whatever name; a token without one is for the only key that fits.
        among: Sequence[VerificationKey] = self._nameless
        if key_id is None:
            among = [*self._named.values(), *self._nameless]
        fitting = [key.checks[algorithm] for key in among if algorithm in key.checks]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise TokenRefusedError("it does not say which key it is signed with")
        if key_id is not None:
            raise UnknownKeyError
        raise TokenRefusedError("its alg is that of no key")
