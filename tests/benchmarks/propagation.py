"""What it takes to make and to read a carrier, beside itsdangerous and joserfc, which sign with the same hash.

Run by ``python tests/benchmarks/propagation.py``; how it is measured stands in ``turns.py``. All carry tenant, user,
request id, an end and an audience of 100 users, signed by HMAC-SHA-256, and give or take strings. The peers get them as
a dictionary and check the signature; joserfc checks the end and the audience besides, itsdangerous the age. Ours takes
the bound context, and gives one that can be bound. "By hand" is ``hmac`` and ``json`` alone, and checks the signature.
"""

import hashlib
import hmac
import json
import statistics
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from typing import Any

import httpx
from itsdangerous import URLSafeTimedSerializer
from joserfc import jwt
from joserfc.jwk import OctKey
from turns import Prepare, Run, Variants, measured

from asgi_context import Identity, bind_context
from asgi_context.httpx import context_hook
from asgi_context.propagation import CarrierKey, context_headers, from_carrier, from_carrier_header, to_carrier

SECRET = b"0123456789abcdef0123456789abcdef"
KEY = CarrierKey("2026-11", SECRET)
AUDIENCE = "billing"
USERS = 100
MAKING, READING, REQUESTS = "to make one", "to read one", "on a request"
BY_HAND, ITSDANGEROUS, JOSERFC = "hmac and json by hand", "itsdangerous", "joserfc, HS256"

Call = Callable[[Any], object]


def members(number: int) -> dict[str, Any]:
    until = time.time() + 86_400
    return {
        "tenant": "acme",
        "user": f"user-{number:03}",
        "request_id": f"{number:032x}",
        "until": until,
        "aud": AUDIENCE,
        "exp": int(until),
    }


def sign(content: dict[str, Any]) -> str:
    text = urlsafe_b64encode(json.dumps(content).encode())
    return f"{text.decode()}.{urlsafe_b64encode(hmac.digest(SECRET, text, 'sha256')).decode()}"


def verify(text: str) -> object:
    packed, signature = text.encode().split(b".")
    if not hmac.compare_digest(hmac.digest(SECRET, packed, "sha256"), urlsafe_b64decode(signature)):
        raise ValueError(text)
    return json.loads(urlsafe_b64decode(packed))


def calling(call: Call, batch: list[Any]) -> Prepare:
    async def work(count: int) -> None:
        for number in range(count):
            call(batch[number % USERS])

    return lambda turn, count: work(count)


def bound(call: Callable[[], object]) -> Prepare:
    """What is bound once serves all: making a binding is measured elsewhere."""

    async def work(count: int) -> None:
        with bind_context(Identity("acme", "user-001"), request_id="0" * 31 + "1"):
            for _ in range(count):
                call()

    return lambda turn, count: work(count)


def variants() -> Variants:
    contents = [members(number) for number in range(USERS)]
    carriers = [
        to_carrier(Identity(c["tenant"], c["user"]), key=KEY, audience=AUDIENCE, lifetime=86_400) for c in contents
    ]
    serializer = URLSafeTimedSerializer(SECRET, salt="carrier", signer_kwargs={"digest_method": hashlib.sha256})
    key = OctKey.import_key(SECRET)
    header = {"alg": "HS256", "typ": "JWT", "kid": "1"}
    rules = jwt.JWTClaimsRegistry(exp={"essential": True}, aud={"essential": True, "value": AUDIENCE})

    def decode(text: str) -> object:
        token = jwt.decode(text, key, ["HS256"])
        rules.validate(token.claims)
        return token.claims

    extractor = from_carrier_header(key=KEY, audience=AUDIENCE)
    scopes = [{"headers": [(b"asgi-context", carrier["asgi-context"].encode())]} for carrier in carriers]
    hook = context_hook({"api.example.com": AUDIENCE}, key=KEY)
    here, elsewhere = (httpx.Request("GET", f"https://{name}.example.com") for name in ("api", "other"))
    return {
        MAKING: {
            BY_HAND: calling(sign, contents),
            ITSDANGEROUS: calling(serializer.dumps, contents),
            JOSERFC: calling(lambda content: jwt.encode(header, content, key), contents),
            "to_carrier(key=...)": bound(lambda: to_carrier(key=KEY, audience=AUDIENCE)),
            "to_carrier(), not signed": bound(lambda: to_carrier(audience=AUDIENCE)),
            "context_headers(key=...)": bound(lambda: context_headers(key=KEY, audience=AUDIENCE)),
        },
        READING: {
            BY_HAND: calling(verify, [sign(content) for content in contents]),
            ITSDANGEROUS: calling(
                lambda text: serializer.loads(text, max_age=86_400), [serializer.dumps(c) for c in contents]
            ),
            JOSERFC: calling(decode, [jwt.encode(header, content, key) for content in contents]),
            "from_carrier(key=...)": calling(
                lambda carrier: from_carrier(carrier, key=KEY, audience=AUDIENCE), carriers
            ),
            "from_carrier_header(...)(scope)": calling(extractor, scopes),
        },
        REQUESTS: {
            ITSDANGEROUS: calling(serializer.dumps, contents),
            "context_hook, to a named host": bound(lambda: hook(here)),
            "context_hook, to another": bound(lambda: hook(elsewhere)),
        },
    }


def table_beside(runs: list[Run], table: str) -> None:
    """Print what each takes, and how many times what itsdangerous takes."""
    costs = [run[table] for run in runs]
    print(f"\n{table:36} {'us':>8} {'x itsdangerous':>16} {'(from':>8} {'to)':>6}")
    for name in costs[0]:
        ratios = sorted(run[name] / run[ITSDANGEROUS] for run in costs)
        cost = statistics.median(run[name] for run in costs)
        print(f"{name:36} {cost:8.2f} {statistics.median(ratios):16.2f} {ratios[0]:8.2f} {ratios[-1]:6.2f}")


def main() -> None:
    runs = measured(variants, __doc__, "carriers", rounds=20, count=200)
    for table in runs[0]:
        table_beside(runs, table)


if __name__ == "__main__":
    main()
