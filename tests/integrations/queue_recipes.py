"""The recipes of ``examples/queues.md``, as modules; and workers that run them, as processes of their own."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis_servers
from queue_probes import BOUND_AT_START

from asgi_context import Identity
from asgi_context.errors import (
    CarrierAudienceError,
    CarrierError,
    CarrierExpiredError,
    CarrierFormatError,
    CarrierSignatureError,
    CarrierUnsignedError,
)
from asgi_context.propagation import CarrierKey, to_carrier

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SECRET = "not a secret, since all the world can read this here"
SECONDS = 120  # that a result may take, or the start of a worker
LONGEST = 600  # seconds that a worker may live

ANN = Identity("acme", "ann")
BOB = Identity("bolt", "bob")
PEOPLE = [Identity(f"tenant{number}", f"user{number}") for number in range(8)]

_RECIPES = re.findall(r"```python\n(.*?)```", (ROOT / "examples" / "queues.md").read_text("utf-8"), re.DOTALL)


@contextlib.contextmanager
def recipe(name: str, part: str) -> Iterator[redis_servers.Server]:
    """Make the recipe with that part in it a module of that name, beside a Redis that is its broker."""
    (text,) = (text for text in _RECIPES if part in text)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        (Path(folder) / f"{name}.py").write_text(text, "utf-8")
        server = redis_servers.Server()
        patch.setenv("CARRIER_SECRET", SECRET)
        patch.setenv("REDIS_URL", server.url)
        patch.setenv("PYTHONPATH", os.pathsep.join([folder, str(HERE), str(ROOT), os.environ.get("PYTHONPATH", "")]))
        patch.syspath_prepend(folder)
        try:
            yield server
        finally:
            server.close()
            for imported in [name, f"{name}_probes"]:
                sys.modules.pop(imported, None)


@contextlib.contextmanager
def worker(*command: str, ready: str, bound: bool = False) -> Iterator[Path]:
    """Run a worker until the block ends. Gives the path of its log.

    Args:
        command: for Python.
        ready: what its log says when it is ready.
        bound: whether somebody is bound where it is started, see `queue_probes.bind_at_start`.
    """
    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, *command],
            stdout=log.fileno(),
            stderr=subprocess.STDOUT,
            env=os.environ | ({BOUND_AT_START: "yes"} if bound else {}),
            start_new_session=True,  # to end it together with the processes that it starts
        )
        watchdog = threading.Timer(LONGEST, os.killpg, [process.pid, signal.SIGKILL])
        watchdog.start()
        path = Path(log.name)
        try:
            redis_servers.until(lambda: ready in path.read_text("utf-8") or process.poll() is not None, SECONDS)
            assert process.poll() is None, path.read_text("utf-8")
            yield path
        finally:
            watchdog.cancel()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def carrier(audience: str, person: Identity = ANN, *, secret: str | None = SECRET, **options: Any) -> str:
    """What a recipe makes for that person; signed with another secret, or with none, where that is asked for."""
    key = None if secret is None else CarrierKey("2026-11", secret)
    (text,) = to_carrier(person, key=key, audience=audience, **options).values()
    return text


def transplanted(audience: str) -> str:
    """Bob's content with ann's signature."""
    content, _ = carrier(audience, BOB).rsplit(".", 1)
    _, signature = carrier(audience, ANN).rsplit(".", 1)
    return f"{content}.{signature}"


UNACCEPTABLE: dict[str, tuple[Callable[[str], Any], type[CarrierError]]] = {
    "changed": (transplanted, CarrierSignatureError),
    "forged": (lambda audience: carrier(audience, secret="x" * 32), CarrierSignatureError),
    "not signed": (lambda audience: carrier(audience, secret=None), CarrierUnsignedError),
    "for something else": (lambda _: carrier("something else"), CarrierAudienceError),
    "expired": (lambda audience: carrier(audience, now=lambda: 0.0), CarrierExpiredError),
    "no carrier": (lambda _: "acme/ann", CarrierFormatError),
    "no text": (lambda _: 1, CarrierFormatError),
}
"""What stands in the place of a carrier, made for an audience, and why it is refused."""
