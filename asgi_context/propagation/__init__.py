"""The context across processes, queues and HTTP calls, as a carrier: plain strings, signed.

A carrier is a mapping of one name, ``asgi-context``, to a str of printable ASCII without spaces, so it can stand in
JSON, in the properties of a message and in the headers of a request. Whoever sees it can read what is in it; signed, it
cannot be made or changed without the key. Until it expires it is believed however often it comes, as a bearer token is:
send it over what others cannot read, and let it live no longer than a job may wait.
"""

from asgi_context.propagation._carrier import from_carrier, to_carrier
from asgi_context.propagation._headers import context_headers, from_carrier_header
from asgi_context.propagation._keys import CarrierKey

__all__ = ["CarrierKey", "context_headers", "from_carrier", "from_carrier_header", "to_carrier"]
