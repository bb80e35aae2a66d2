"""Resources: objects made for one binding on first use, by factories registered at start-up, and closed with it.

Invariants:

- What a factory makes belongs to the binding that it was made under, and to no other.
- A factory that waits runs in a task of its own, and so survives that the first caller is cancelled. An asynchronous
  context manager is entered and left in that one task, as cancel scopes and task groups inside of it demand; a plain
  one is entered and left in one Context.
- Closing that waits runs in a task of its own, and so survives that the request is cancelled. It is in reverse order,
  but for the end of the event loop, which cancels all tasks at once: then each closes as soon as it can.
"""

from asgi_context._resources._current import current_resource
from asgi_context._resources._factories import Factory, check_factories
from asgi_context._resources._holder import Closing, Resources, finish_all

__all__ = ["Closing", "Factory", "Resources", "check_factories", "current_resource", "finish_all"]
