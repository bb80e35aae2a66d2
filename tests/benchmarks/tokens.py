"""What it takes to verify a token, beside PyJWT and joserfc, and what one that was verified before takes.

Run by ``python tests/benchmarks/tokens.py``; how it is measured stands in ``turns.py``. All verify the same tokens, of
100 users, by keys that were imported before, and check ``exp``, ``nbf``, ``iat``, ``iss`` and ``aud``; "signature alone"
is joserfc's ``jws.deserialize_compact`` with the claims read from JSON and not checked. Ours makes an `Identity` besides.
Without the cache means that no token is found in it: it is written to all the same. The digest and look-up themselves
are those of the standard library, in line, without a call of any kind.
"""

import hashlib
import json
import statistics
import time
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

import jwt as pyjwt
from joserfc import jws
from joserfc import jwt as joserfc_jwt
from joserfc.jwk import ECKey, Key, OctKey, OKPKey, RSAKey
from turns import REQUEST, App, Prepare, Run, Variants, bare, measured, parse, receive, send

from asgi_context import ContextMiddleware, from_header
from asgi_context.jwt import JWTAuth

warnings.simplefilter("ignore")  # joserfc would rather have Ed25519 in place of EdDSA

ISSUER, AUDIENCE = "https://id.example.com", "https://api.example.com"
USERS = 100
KEYS: dict[str, Callable[[], Key]] = {
    "HS256": lambda: OctKey.generate_key(256, {"kid": "1"}),
    "RS256": lambda: RSAKey.generate_key(2048, {"kid": "1"}),
    "ES256": lambda: ECKey.generate_key("P-256", {"kid": "1"}),
    "EdDSA": lambda: OKPKey.generate_key("Ed25519", {"kid": "1"}),
}
PYJWT, JOSERFC, SIGNATURE = "PyJWT", "joserfc", "joserfc, signature alone"
OURS, CACHED = "ours, without the cache", "ours, from the cache"
LOOKUP, VERIFY, EXTRACT = "sha256 and dict themselves", "auth.verify(token)", "auth(scope), out of the header"
CACHE = "a token of {} bytes that was verified before"
REQUESTS = "a request"

Verify = Callable[[Any], Awaitable[object]]


def tokens(algorithm: str, key: Key) -> list[str]:
    now = int(time.time())
    header = {"alg": algorithm, "typ": "JWT", "kid": "1"}
    standard = {"iss": ISSUER, "aud": AUDIENCE, "iat": now, "nbf": now, "exp": now + 86_400, "org_id": "acme"}
    claims = [standard | {"sub": f"user-{n:03}", "jti": f"{n:032x}", "scope": "read write"} for n in range(USERS)]
    return [jws.serialize_compact(header, json.dumps(members), key, [algorithm]) for members in claims]


def by_pyjwt(algorithm: str, key: Key) -> Verify:
    imported = pyjwt.PyJWK(key.as_dict(private=algorithm == "HS256"), algorithm)

    async def verify(token: str) -> object:
        return pyjwt.decode(token, imported, [algorithm], audience=AUDIENCE, issuer=ISSUER)

    return verify


def by_joserfc(algorithm: str, key: Key) -> Verify:
    equal: Any = {"essential": True, "value": ISSUER}
    rules = joserfc_jwt.JWTClaimsRegistry(iss=equal, aud=equal | {"value": AUDIENCE}, exp={"essential": True})

    async def verify(token: str) -> object:
        decoded = joserfc_jwt.decode(token, key, [algorithm])
        rules.validate(decoded.claims)
        return decoded

    return verify


def by_signature(algorithm: str, key: Key) -> Verify:
    async def verify(token: str) -> object:
        return json.loads(jws.deserialize_compact(token, key, [algorithm]).payload)

    return verify


def auth(key: Key, algorithm: str, **options: Any) -> JWTAuth:
    jwk = key.as_dict(private=algorithm == "HS256")
    return JWTAuth(key=jwk, issuer=ISSUER, audience=AUDIENCE, algorithms=[algorithm], tenant="org_id", **options)


def verifying(verify: Verify, batch: list[Any]) -> Prepare:
    async def work(count: int) -> None:
        for number in range(count):
            await verify(batch[number % USERS])

    return lambda turn, count: work(count)


def looking_up(batch: list[bytes]) -> Prepare:
    known = {hashlib.sha256(token).digest(): token for token in batch}

    async def work(count: int) -> None:
        sha256, find = hashlib.sha256, known.get
        for number in range(count):
            find(sha256(batch[number % USERS]).digest())

    return lambda turn, count: work(count)


def extracting(auth: JWTAuth, batch: list[str]) -> Prepare:
    scopes = [{"type": "http", "headers": [(b"authorization", f"Bearer {token}".encode())]} for token in batch]

    async def work(count: int) -> None:
        for number in range(count):
            await auth(scopes[number % USERS])

    return lambda turn, count: work(count)


def requesting(app: App, batch: list[str] | None = None) -> Prepare:
    raw = [REQUEST % number for number in range(USERS)]
    if batch is not None:
        raw = [b"%b\r\nauthorization: Bearer %b" % (raw[n], token.encode()) for n, token in enumerate(batch)]

    async def work(count: int) -> None:
        for number in range(count):
            await app(parse(raw[number % USERS]), receive, send)

    return lambda turn, count: work(count)


def variants() -> Variants:
    made: Variants = {}
    cached: Variants = {}
    for algorithm, make in KEYS.items():
        key = make()
        batch = tokens(algorithm, key)
        # With room for one, none of 100 tokens in turn is found.
        alone, known = auth(key, algorithm, cache_size=1), auth(key, algorithm)
        raw = [token.encode() for token in batch]
        made[algorithm] = {
            PYJWT: verifying(by_pyjwt(algorithm, key), batch),
            SIGNATURE: verifying(by_signature(algorithm, key), batch),
            JOSERFC: verifying(by_joserfc(algorithm, key), batch),
            OURS: verifying(alone.verify, batch),
            CACHED: verifying(known.verify, batch),
        }
        if algorithm in {"HS256", "RS256"}:  # the shortest and the longest
            cached[CACHE.format(len(raw[0]))] = {
                LOOKUP: looking_up(raw),
                VERIFY: verifying(known.verify, raw),
                EXTRACT: extracting(known, batch),
            }
            headers = ContextMiddleware(bare, tenant=from_header("x-tenant-id"), user=from_header("x-user-id"))
            requests = {
                "bare app": requesting(bare, batch),
                "tenant and user from headers": requesting(headers, batch),
                "JWTAuth, from the cache": requesting(ContextMiddleware(bare, identity=known), batch),
            }
    return {**made, **cached, REQUESTS: requests}


def table_beside(runs: list[Run], table: str, base: str, *, ratio: bool) -> None:
    """Print what each takes, beside one of them: how many times that, or how much more."""
    costs = [run[table] for run in runs]
    title = f"x {base}" if ratio else f"above {base}"
    print(f"\n{table:45} {'us':>8} {title:>32} {'(from':>8} {'to)':>6}")
    for name in costs[0]:
        beside = sorted(run[name] / run[base] if ratio else run[name] - run[base] for run in costs)
        cost = statistics.median(run[name] for run in costs)
        print(f"{name:45} {cost:8.2f} {statistics.median(beside):32.2f} {beside[0]:8.2f} {beside[-1]:6.2f}")


def main() -> None:
    runs = measured(variants, __doc__, "tokens", rounds=20, count=200)
    for table in runs[0]:
        if table in KEYS:
            table_beside(runs, table, JOSERFC, ratio=True)
        else:
            table_beside(runs, table, "bare app" if table == REQUESTS else LOOKUP, ratio=False)


if __name__ == "__main__":
    main()
