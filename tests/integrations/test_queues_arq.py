"""The recipe for arq, with a real worker."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from importlib import import_module
from typing import Any

import pytest
import redis_servers
from arq import create_pool
from queue_recipes import SECONDS, SECRET, recipe, worker

from asgi_context import Identity, bind_context
from asgi_context.errors import (
    CarrierAudienceError,
    CarrierError,
    CarrierExpiredError,
    CarrierFormatError,
    CarrierSignatureError,
    CarrierUnsignedError,
    ContextNotBoundError,
)
from asgi_context.propagation import CarrierKey, to_carrier

pytestmark = pytest.mark.anyio

ANN = Identity("acme", "ann")
BOB = Identity("bolt", "bob")
PEOPLE = [Identity(f"tenant{number}", f"user{number}") for number in range(8)]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
