"""The root of the tree."""


class AsgiContextError(Exception):
    """The root of the tree. An error's ``args`` are the data that it was given, so that it can be pickled."""
