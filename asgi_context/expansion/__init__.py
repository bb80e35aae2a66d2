"""Configuration whose ``${NAME}`` are filled for each request: `expand`, `load_yaml`, `Template`.

A document is parsed first; then the references in its texts are filled, in one pass, by the syntax of the Compose
specification ("Interpolation"). What is filled in is never parsed: no value can change the document's structure, hold
a reference, or reach another variable.

Needs the extra ``expansion``: PyYAML reads the documents of `load_yaml`.

============================  ==========================================================================
``${NAME}``, ``$NAME``        the value; it must be set
``${NAME:-word}``             the word where the value is not set, or is empty
``${NAME-word}``              the word where it is not set
``${NAME:?message}``          the value; not set or empty, it is an error with that message
``${NAME?message}``           the value; not set, it is an error with that message
``${NAME:+word}``             the word where the value is set and not empty, else nothing
``${NAME+word}``              the word where it is set, else nothing
``${env:NAME}``               a variable of the environment, with any of the operators above
``${context:NAME}``           ``tenant``, ``user`` or ``request_id`` of what is bound here, or else a value of the
                              request (`asgi_context.values`), with any of the operators above
``$$``                        a dollar sign; so is a ``$`` before anything but ``{``, a letter, ``_`` or another ``$``
============================  ==========================================================================

- A name is one of ASCII letters, digits and underscores, and does not begin with a digit. Without ``env:`` or
  ``context:``, it is looked for among the request's values, and then in the environment. ``tenant``, ``user`` and
  ``request_id`` are never looked for without: it must be said whether the identity is meant.
- Words may hold references (``${A:-${B:-word}}``), which are looked up only where the word is taken, and no ``{`` of
  their own: they end at the first ``}``. The message of ``?`` may hold some too, but is shown as it is written.
- A name that has no value is an error, where Compose warns and takes it for empty; as in Compose, so is a ``${`` that
  begins no reference.
- A text that is one reference and nothing else becomes its value, of the value's type: ``int``, ``float``, ``bool``,
  ``str`` or ``None``. What comes from the environment, and a word, is text: ``${PORT:-80}`` is ``"80"`` where ``PORT``
  is not set. Inside of a text, ``True`` is written ``true``, as YAML and JSON do, and ``None`` is refused.
- Empty are ``""`` and ``None``; ``0`` and ``False`` are not.
- Keys of mappings stay as they are, as in Compose.
"""

from asgi_context.expansion._template import Template, expand, load_yaml

__all__ = ["Template", "expand", "load_yaml"]
