"""What can be wrong with a document whose references are filled. None of it shows a value."""

from asgi_context.errors._root import AsgiContextError


class ExpansionError(AsgiContextError):
    """The root of what expanding a document raises."""


class ExpansionDocumentError(ExpansionError, ValueError):
    """A document is not one that can be expanded, whatever its references say.

    Args:
        place: where in it, such as ``"servers[2].url"`` or ``"line 3, column 5"``.
        reason: what is wrong there, in words.
    """

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(place, reason)
        self.place = place
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


class ExpansionSyntaxError(ExpansionError, ValueError):
    """A text of the document is not by the syntax of references.

    Args:
        place: where the text stands, such as ``"servers[2].url"``.
        character: which character of the text it is, counted from 1.
        reason: what is wrong there, in words.
    """

    def __init__(self, place: str, character: int, reason: str) -> None:
        super().__init__(place, character, reason)
        self.place = place
        self.character = character
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.place}, character {self.character}: {self.reason}"


class ExpansionForbiddenError(ExpansionError, LookupError):
    """A reference names what the caller has not listed.

    Args:
        place: where the reference stands, such as ``"servers[2].url"``.
        name: what it names.
        option: where it would have to be listed.
    """

    def __init__(self, place: str, name: str, option: str) -> None:
        super().__init__(place, name, option)
        self.place = place
        self.name = name
        self.option = option

    def __str__(self) -> str:
        return f"{self.place}: {self.name} is not listed: list it in {self.option}, if the document may read it"


class ExpansionUnsetError(ExpansionError, LookupError):
    """There is no value for a reference that needs one.

    Args:
        place: where the reference stands, such as ``"servers[2].url"``.
        name: what it names.
        empty: whether there is a value that is empty, where the reference wants one that is not.
        message: what the document says about it after ``?`` or ``:?``, as it is written there.
    """

    def __init__(self, place: str, name: str, *, empty: bool = False, message: str = "") -> None:
        super().__init__(place, name, empty, message)
        self.place = place
        self.name = name
        self.empty = empty
        self.message = message

    def __reduce__(self) -> tuple[object, ...]:
        return _unset, (self.place, self.name, self.empty, self.message)

    def __str__(self) -> str:
        fault = "is empty" if self.empty else "is not set"
        return f"{self.place}: {self.name} {fault}: {self.message or 'set it, or write a default: ${NAME:-default}'}"


def _unset(place: str, name: str, empty: bool, message: str) -> ExpansionUnsetError:  # noqa: FBT001 - for pickle alone
    return ExpansionUnsetError(place, name, empty=empty, message=message)


class ExpansionAmbiguousError(ExpansionError, LookupError):
    """A name is both a value of the request and a variable of the environment.

    Args:
        place: where the reference stands, such as ``"servers[2].url"``.
        name: what it names.
    """

    def __init__(self, place: str, name: str) -> None:
        super().__init__(place, name)
        self.place = place
        self.name = name

    def __str__(self) -> str:
        return (
            f"{self.place}: {self.name} is both a value of the request and a variable of the environment: write "
            f"${{context:{self.name}}} or ${{env:{self.name}}}, or list it in request_names="
        )


class ExpansionTypeError(ExpansionError, TypeError):
    """A value, or a part of the document, is of a type that cannot stand where it does.

    Args:
        place: where, such as ``"servers[2].url"``.
        reason: what is wrong with it, in words, without the value.
    """

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(place, reason)
        self.place = place
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"
