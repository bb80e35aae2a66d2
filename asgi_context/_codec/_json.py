"""JSON text of trees that every encoder writes and reads alike.

Such a tree holds ``None``, ``bool``, ``int`` of 64 bits with sign, ``float`` that is finite, ``str``, and ``list`` and
``dict`` of these with ``str`` keys: beyond, encoders differ (a larger int is read as a float by some, NaN is written as
null), so what is beyond must be tagged before.
"""

from collections.abc import Callable
from importlib import import_module
from math import isfinite
from typing import Any, Final

ATOMS: Final = frozenset({str, bool, type(None)})
"""Types of leaves that stand in the text as they are, whatever they hold."""

Dumps = Callable[[Any], bytes]
Loads = Callable[[bytes], Any]


def _orjson() -> tuple[Dumps, Loads]:
    module = import_module("orjson")
    return module.dumps, module.loads


def _msgspec() -> tuple[Dumps, Loads]:
    module = import_module("msgspec.json")
    return module.Encoder().encode, module.Decoder().decode


def _stdlib() -> tuple[Dumps, Loads]:
    module = import_module("json")
    write = module.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode

    def dumps(tree: Any) -> bytes:  # noqa: ANN401 - a tree as above
        text: str = write(tree)
        return text.encode()

    def loads(text: bytes) -> Any:  # noqa: ANN401 - a tree as above
        tree = read(text.decode())
        if b"\\u" in text:  # an escape may be half of a character, which the others refuse
            dumps(tree)
        return tree

    def finite(text: str) -> float:
        number = float(text)
        if not isfinite(number):  # 1e400; for the others that is an error, as NaN and Infinity are
            raise ValueError(text)
        return number

    read = module.JSONDecoder(parse_constant=finite, parse_float=finite).decode
    return dumps, loads


ENCODERS: Final = {"orjson": _orjson, "msgspec": _msgspec, "json": _stdlib}
"""Fastest first."""


class Encoder:
    """The fastest encoder that is installed, found at its first use: importing this package imports nobody else's."""

    __slots__ = ("dumps", "loads")

    def __init__(self) -> None:
        self.dumps: Dumps = self._first_dumps
        self.loads: Loads = self._first_loads

    def use(self, *names: str) -> None:
        """Take the first that is installed.

        Args:
            *names: of encoders, from ``ENCODERS``.

        Raises:
            ImportError: none of them is.
        """
        missing = None
        for name in names:
            try:
                self.dumps, self.loads = ENCODERS[name]()
            except ImportError as error:
                missing = error
            else:
                return
        raise missing or ImportError

    def _first_dumps(self, tree: Any) -> bytes:  # noqa: ANN401 - a tree as above
        self.use(*ENCODERS)
        return self.dumps(tree)

    def _first_loads(self, text: bytes) -> Any:  # noqa: ANN401 - a tree as above
        self.use(*ENCODERS)
        return self.loads(text)


encoder: Final = Encoder()
