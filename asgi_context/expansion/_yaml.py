"""YAML, read from the events of PyYAML's parser, with the scalars of its safe loader.

PyYAML's own way from events to objects calls itself for each level, takes the last of several equal keys, and copies
merged mappings into each other until there is no memory left. Here, nothing is nested on the stack, and all else that
could be meant in two ways is refused.
"""

import re
from typing import IO, Any, Final, NoReturn, TypeAlias, cast

import yaml

from asgi_context._shown import type_name
from asgi_context.errors import ExpansionDocumentError
from asgi_context.expansion._limits import DEEPEST, MOST_VALUES

Stream: TypeAlias = str | bytes | IO[str] | IO[bytes]

_Mark: TypeAlias = Any
"""Where an event begins; of two classes, which share no base."""

_Kind: TypeAlias = tuple[type, object]
"""A key with its type: ``1 == True``."""

_LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""That of libyaml, where PyYAML was built with it."""

_LONGEST: Final = 400
"""Characters of a scalar that is no text: an ``int`` in base 60 takes time by the square of its length."""

_TAG: Final = "tag:yaml.org,2002:"
_TEXT: Final = _TAG + "str"
_MERGE_TAG: Final = _TAG + "merge"
_BINARY: Final = _TAG + "binary"
_TYPED: Final = frozenset(_TAG + name for name in ("null", "bool", "int", "float", "binary", "timestamp"))
_AS_TEXT: Final = frozenset({_TEXT, _MERGE_TAG, _TAG + "value"})
"""Tags of text; ``<<`` is one where it is no key, and ``=`` always, for which PyYAML has no type."""

_SURROGATE: Final = re.compile("[\ud800-\udfff]").search

_MERGE: Final = object()
_NO_KEY: Final = object()
_NO_ROOT: Final = object()
_NO_ANCHOR: Final = object()
_UNFINISHED: Final = object()
"""What the anchor of a mapping or list stands for inside of it."""


def read_yaml(stream: Stream, max_bytes: int) -> object:
    """Read a document.

    Args:
        stream: YAML, as text, as UTF-8, or as a file of either.
        max_bytes: how much of it is read, at most, in bytes of UTF-8.

    Returns:
        The document; ``None`` where there is none.

    Raises:
        ExpansionDocumentError: it is too large, or not one document that can be read in one way alone.
        TypeError: the stream, or ``max_bytes``, is of another type.
        ValueError: ``max_bytes`` is too small.
    """
    text = _text_of(stream, max_bytes)
    try:
        loader = _LOADER(text)
        try:
            return _Builder(loader).document()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        _refuse(error.problem_mark, f"it is not YAML: {error.problem}")
    except yaml.YAMLError:
        raise ExpansionDocumentError("the document", "it holds a character that YAML does not allow") from None


def _text_of(stream: Stream, max_bytes: int) -> str:
    if type(max_bytes) is not int:
        message = f"max_bytes must be an int, not {type_name(max_bytes)}"
        raise TypeError(message)
    if max_bytes < 1:
        message = f"max_bytes must be at least 1, not {max_bytes}"
        raise ValueError(message)
    if not isinstance(stream, str | bytes) and (isinstance(stream, type) or not hasattr(stream, "read")):
        message = f"a stream of YAML is text, bytes or an open file, not {type_name(stream)}"
        raise TypeError(message)
    try:
        raw = _raw(stream) if isinstance(stream, str | bytes) else _read(stream, max_bytes)
        if len(raw) > max_bytes:
            raise ExpansionDocumentError("the document", f"it is larger than max_bytes={max_bytes}")
        return raw.decode()
    except UnicodeError:
        raise ExpansionDocumentError("the document", "it is not UTF-8") from None


def _read(stream: IO[str] | IO[bytes], max_bytes: int) -> bytes:
    read = bytearray()
    while len(read) <= max_bytes:  # a pipe gives what has come: the rest would be cut off, and still be YAML
        chunk = _raw(stream.read(max_bytes + 1 - len(read)))
        if not chunk:
            break
        read += chunk
    return bytes(read)


def _raw(data: object) -> bytes:
    raw = data.encode() if isinstance(data, str) else data
    if not isinstance(raw, bytes):
        message = f"a stream of YAML gives text or bytes, not {type_name(raw)}"
        raise TypeError(message)
    return raw


class _Open:
    """A mapping or list whose end was not read yet."""

    __slots__ = ("anchor", "is_mapping", "items", "key", "mark", "members", "merged")

    def __init__(self, anchor: str | None, mark: _Mark, *, is_mapping: bool) -> None:
        self.anchor = anchor
        self.mark = mark
        self.is_mapping = is_mapping
        self.items: list[object] = []  # of a list
        self.members: dict[object, object] = {}
        self.key: object = _NO_KEY  # read already, its value not
        self.merged: dict[object, object] | None = None


class _Builder:
    """Makes one document of a parser's events."""

    def __init__(self, loader: Any) -> None:  # noqa: ANN401 - one of two classes, which share no base
        self._loader = loader
        self._root: object = _NO_ROOT
        self._opened: list[_Open] = []
        self._anchors: dict[str | None, object] = {}
        self._merges = 0

    def document(self) -> object:
        for event in iter(self._loader.get_event, None):
            if isinstance(event, yaml.ScalarEvent):
                self._add(self._scalar(event), event.start_mark)
            elif isinstance(event, yaml.AliasEvent):
                self._add(self._aliased(event), event.start_mark)
            elif isinstance(event, yaml.CollectionStartEvent):
                self._open(event)
            elif isinstance(event, yaml.CollectionEndEvent):
                self._close()
            elif isinstance(event, yaml.DocumentStartEvent) and self._root is not _NO_ROOT:
                _refuse(event.start_mark, "a second document begins: give one at a time")
        return None if self._root is _NO_ROOT else self._root

    def _add(self, value: object, mark: _Mark) -> None:
        if not self._opened:
            self._root = value
            return
        to = self._opened[-1]
        if not to.is_mapping:
            to.items.append(value)
        elif to.key is _NO_KEY:
            self._take_key(to, value, mark)
        else:
            if to.key is _MERGE:
                to.merged = self._merged(value, mark)
            else:
                to.members[to.key] = value
            to.key = _NO_KEY

    def _take_key(self, to: _Open, key: object, mark: _Mark) -> None:
        if isinstance(key, dict | list):
            _refuse(mark, "a key must be a scalar")
        if key in to.members or (key is _MERGE and to.merged is not None):
            _refuse(mark, "the mapping has that key already")
        to.key = key

    def _merged(self, value: Any, mark: _Mark) -> dict[object, object]:  # noqa: ANN401 - of a document
        sources: list[Any] = value if type(value) is list else [value]  # pyright: ignore[reportUnknownVariableType]
        merged: dict[object, object] = {}
        kinds: set[_Kind] = set()
        for source in reversed(sources):  # the first that has a key counts
            if type(source) is not dict:
                _refuse(mark, "<< takes a mapping, or a list of mappings")
            members = cast("dict[object, object]", source)
            self._merges += 1 + len(members)
            if self._merges > MOST_VALUES:  # mappings that merge each other take time by the cube of their number
                _refuse(mark, f"more than {MOST_VALUES} mappings and members are merged")
            _lay(members, merged, kinds, mark)
        return merged

    def _open(self, event: yaml.CollectionStartEvent) -> None:
        is_mapping = isinstance(event, yaml.MappingStartEvent)
        if event.tag not in {None, "!", _TAG + ("map" if is_mapping else "seq")}:
            _refuse(event.start_mark, "a tag that makes a mapping or list anything else")
        if len(self._opened) == DEEPEST:
            _refuse(event.start_mark, f"it is nested more than {DEEPEST} deep")
        self._name(event, _UNFINISHED)
        self._opened.append(_Open(event.anchor, event.start_mark, is_mapping=is_mapping))

    def _close(self) -> None:
        closed = self._opened.pop()
        value: object = closed.items
        if closed.is_mapping:
            value = closed.members
            if closed.merged:
                value = closed.merged
                _lay(closed.members, value, {(type(key), key) for key in value}, closed.mark)
        if closed.anchor is not None:
            self._anchors[closed.anchor] = value
        self._add(value, closed.mark)

    def _scalar(self, event: yaml.ScalarEvent) -> object:
        text, tag = event.value, event.tag
        if _SURROGATE(text):  # PyYAML's own parser makes them of escapes, and nothing could encode them
            _refuse(event.start_mark, "an escape that is no character")
        if tag in {None, "!"}:
            tag = self._loader.resolve(yaml.ScalarNode, text, event.implicit)
        if tag in _AS_TEXT:
            self._name(event, text)
            to = self._opened[-1] if self._opened else None
            is_key = to is not None and to.is_mapping and to.key is _NO_KEY
            return _MERGE if is_key and tag == _MERGE_TAG else text
        if tag not in _TYPED:
            _refuse(event.start_mark, "a tag that is none of a safe document's")
        if len(text) > _LONGEST and tag != _BINARY:
            _refuse(event.start_mark, f"a scalar that is no text has more than {_LONGEST} characters")
        try:
            value: object = self._loader.yaml_constructors[tag](self._loader, yaml.ScalarNode(tag, text))
        except Exception:  # noqa: BLE001 - what is no number, or no date, meets code that fails in whatever way
            _refuse(event.start_mark, f"it is no {tag.removeprefix(_TAG)}")
        self._name(event, value)
        return value

    def _aliased(self, event: yaml.AliasEvent) -> object:
        value = self._anchors.get(event.anchor, _NO_ANCHOR)
        if value is _NO_ANCHOR:
            _refuse(event.start_mark, "an alias to what was not named before")
        if value is _UNFINISHED:
            _refuse(event.start_mark, "the document holds itself")
        return value

    def _name(self, event: yaml.NodeEvent, value: object) -> None:
        if event.anchor is None:
            return
        if event.anchor in self._anchors:
            _refuse(event.start_mark, "the document has that anchor already")
        self._anchors[event.anchor] = value


def _lay(members: dict[object, object], over: dict[object, object], kinds: set[_Kind], mark: _Mark) -> None:
    for key in members:
        if (
            key in over and (type(key), key) not in kinds
        ):  # of 1 and true, Python would keep one, with the other's value
            _refuse(mark, "keys that are equal, but not the same, are merged")
        kinds.add((type(key), key))
    over.update(members)


def _refuse(mark: _Mark, reason: str) -> NoReturn:
    place = f"line {mark.line + 1}, column {mark.column + 1}"
    raise ExpansionDocumentError(place, reason) from None
