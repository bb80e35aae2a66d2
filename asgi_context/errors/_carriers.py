"""What can be wrong with a carrier. The texts are fixed: nothing of what a carrier holds comes back in one."""

from typing import ClassVar

from asgi_context.errors._root import AsgiContextError


class CarrierError(AsgiContextError, ValueError):
    """The root of why a carrier is refused, or cannot be made.

    Attributes:
        code: a stable name for the reason.
    """

    code: ClassVar[str] = "carrier_invalid"
    _text: ClassVar[str] = "the carrier is not acceptable"

    def __str__(self) -> str:
        return self._text


class CarrierContentError(CarrierError):
    """What was to be carried cannot be written as JSON that every parser reads alike."""

    code = "carrier_content"
    _text = (
        "an identifier, a claim or the audience cannot be carried: text must be Unicode without lone surrogates, a "
        "float finite, an int not longer than Python writes one (sys.set_int_max_str_digits), and lists and objects "
        "not nested deeper than Python follows them (sys.setrecursionlimit)"
    )


class CarrierTooLargeError(CarrierError):
    """The carrier is longer than any may be."""

    code = "carrier_too_large"
    _text = "the carrier is longer than 8000 characters: name fewer claims, or look them up where they are needed"


class CarrierFormatError(CarrierError):
    """What was given is no carrier, or not one as `to_carrier` makes it."""

    code = "carrier_malformed"
    _text = (
        "this is no carrier as to_carrier() makes it, one str under the name 'asgi-context': hand from_carrier() that "
        "alone, not the headers or properties of others beside it"
    )


class CarrierVersionError(CarrierError):
    """The carrier is of a version that is not known here."""

    code = "carrier_version"
    _text = "the carrier was made by another version of asgi_context, which writes carriers that this one cannot read"


class CarrierUnsignedError(CarrierError):
    """The carrier is not signed, and only signed ones are believed here."""

    code = "carrier_unsigned"
    _text = "the carrier is not signed: make it by to_carrier(key=...), with one of the keys that are given here"


class CarrierSignatureError(CarrierError):
    """The signature is not that of a key which is known here: the carrier is forged, changed, or somebody else's."""

    code = "carrier_signature"
    _text = "the carrier is signed, but not by a key that was given here as key= under the same id"


class CarrierExpiredError(CarrierError):
    """The carrier has expired, or the identity has that one was to be made of."""

    code = "carrier_expired"
    _text = "the carrier has expired, or the proof of the identity has that it was to carry"


class CarrierAudienceError(CarrierError):
    """The carrier is for another audience, or for none where there must be one, or the other way round."""

    code = "carrier_audience"
    _text = "the carrier was made for another audience: both sides must name the same one as audience=, or both none"
