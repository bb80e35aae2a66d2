"""Documents whose references are filled."""

import os
from collections.abc import Collection, Mapping
from typing import Any

from asgi_context._shown import type_name
from asgi_context.expansion._document import Node, compile_document
from asgi_context.expansion._filling import Filling
from asgi_context.expansion._names import Names
from asgi_context.expansion._yaml import Stream, read_yaml

_MAX_BYTES = 262_144


class Template:
    """A document that is read once, and expanded for each request. It can be used by any thread.

    Args:
        document: dicts, lists and tuples of texts, numbers, booleans, ``None``, bytes, dates and times: what parsers of
            JSON, TOML and YAML give. It is copied: what is changed in it later does not count.
        request_names: the names of the request that it may refer to: values, and ``tenant``, ``user`` and
            ``request_id`` by ``context:``. One that is listed may hide a variable of the same name. ``None`` for any
            name; list them where clients choose the names of values, or where the document is not your own.
        env_names: the variables of the environment that it may refer to; ``None`` for any. List them where the
            document is not your own.

    Raises:
        ExpansionSyntaxError: a text is not by the syntax.
        ExpansionForbiddenError: a text refers to a name that is not listed, be it in a word that would never be taken.
        ExpansionDocumentError: the document holds itself, is nested more than 64 deep, or has more than 100,000
            values, where what stands in several places is counted in each, and a long text or key once more for every
            1,000 characters; or a mapping gives a key twice.
        ExpansionTypeError: the document holds anything else.
        TypeError: names are not given as a collection of ``str``.
        ValueError: names hold what no reference can name.
    """

    __slots__ = ("_root",)

    def __init__(
        self,
        document: object,
        *,
        request_names: Collection[str] | None = None,
        env_names: Collection[str] | None = None,
    ) -> None:
        self._root = compile_document(document, Names(request_names, env_names))

    @classmethod
    def from_yaml(
        cls,
        stream: Stream,
        *,
        request_names: Collection[str] | None = None,
        env_names: Collection[str] | None = None,
        max_bytes: int = _MAX_BYTES,
    ) -> "Template":
        """Read a document of YAML, with the types of PyYAML's safe loader.

        Args:
            stream: the YAML itself, as text or UTF-8; or a file of either, opened.
            request_names: as of `Template`.
            env_names: as of `Template`.
            max_bytes: how large it may be, in bytes of UTF-8.

        Returns:
            A template.

        Raises:
            ExpansionDocumentError: it is not one document of YAML that can be read in one way alone: it is larger, a
                mapping has a key twice, an alias leads to where it stands, a tag makes what is no plain value.
            ExpansionError: as of `Template`.
            TypeError: the stream, or an option, is of the wrong type.
            ValueError: names hold what no reference can name, or ``max_bytes`` is less than 1.
        """
        return cls(read_yaml(stream, max_bytes), request_names=request_names, env_names=env_names)

    def expand(self, *, environ: Mapping[str, str] | None = None) -> Any:  # noqa: ANN401 - a document
        """Fill the references, from what is bound here and from the environment.

        Each name is looked up once, and only where a reference to it is taken.

        Args:
            environ: the environment; without one, that of the process.

        Returns:
            A new document, of the same structure: dicts, lists and tuples are made anew, and what stands in several
            places still does.

        Raises:
            ExpansionUnsetError: there is no value for a reference.
            ExpansionAmbiguousError: a name that is not listed is both of the request and of the environment.
            ExpansionTypeError: a value is no ``str``, ``int``, ``float``, ``bool`` or ``None``, or cannot stand inside
                of a text.
            ContextClosedError: what is bound here has ended.
            TypeError: ``environ`` is no mapping.
        """
        if environ is None:
            environ = os.environ
        elif not isinstance(environ, Mapping):
            message = f"environ must be a mapping, not {type_name(environ)}"
            raise TypeError(message)
        root = self._root
        return root.build(Filling(environ), {}) if isinstance(root, Node) else root


def expand(
    value: object,
    /,
    *,
    request_names: Collection[str] | None = None,
    env_names: Collection[str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Any:  # noqa: ANN401 - a document
    """Fill the references of a document, once. A `Template` does it for many requests, in less time.

    Args:
        value: the document, as of `Template`; it is left as it is.
        request_names: as of `Template`.
        env_names: as of `Template`.
        environ: the environment; without one, that of the process.

    Returns:
        A new document, of the same structure.

    Raises:
        ExpansionError: as of `Template` and `Template.expand`.
        ContextClosedError: what is bound here has ended.
        TypeError: names are not given as a collection of ``str``, or ``environ`` is no mapping.
        ValueError: names hold what no reference can name.

    Example:
        >>> from asgi_context import Identity, bind_context
        >>> from asgi_context.expansion import expand
        >>> with bind_context(Identity("acme", "ann")):
        ...     expand({"folder": "/data/${context:tenant}", "port": "${PORT:-80}"}, environ={})
        {'folder': '/data/acme', 'port': '80'}
    """
    return Template(value, request_names=request_names, env_names=env_names).expand(environ=environ)


def load_yaml(
    stream: Stream,
    /,
    *,
    request_names: Collection[str] | None = None,
    env_names: Collection[str] | None = None,
    environ: Mapping[str, str] | None = None,
    max_bytes: int = _MAX_BYTES,
) -> Any:  # noqa: ANN401 - a document
    """Read a document of YAML, and fill its references, once. `Template.from_yaml` does it for many requests.

    Args:
        stream: the YAML itself, as text or UTF-8; or a file of either, opened.
        request_names: as of `Template`.
        env_names: as of `Template`.
        environ: the environment; without one, that of the process.
        max_bytes: how large the YAML may be, in bytes of UTF-8.

    Returns:
        The document.

    Raises:
        ExpansionError: as of `Template.from_yaml` and `Template.expand`.
        ContextClosedError: what is bound here has ended.
        TypeError: the stream, or an option, is of the wrong type.
        ValueError: names hold what no reference can name, or ``max_bytes`` is less than 1.
    """
    template = Template.from_yaml(stream, request_names=request_names, env_names=env_names, max_bytes=max_bytes)
    return template.expand(environ=environ)
