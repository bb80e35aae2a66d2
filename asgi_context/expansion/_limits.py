"""How large a document may be: what comes out must not be too much for whoever walks it."""

from typing import Final

DEEPEST: Final = 64
"""Mappings and lists inside of each other. What expands them calls itself once for each."""

MOST_VALUES: Final = 100_000
"""Values, where what stands in several places is counted in each: the size that a JSON text of the document has."""

LONG: Final = 1_000
"""Characters of a text, or of a key, that count as one value more."""
