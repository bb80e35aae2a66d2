"""Time zones that come back as what they were."""

import sys
from datetime import tzinfo
from typing import Any


def is_named(zone: Any) -> bool:  # noqa: ANN401 - any time zone
    """Say whether it is a ZoneInfo with a name.

    Args:
        zone: any time zone, or ``None``.

    Returns:
        Whether it is.
    """
    # Whoever has one has loaded the module; it is large, and few need it.
    module = sys.modules.get("zoneinfo")
    return module is not None and type(zone) is module.ZoneInfo and zone.key is not None


def is_of_its_name(zone: Any) -> bool:  # noqa: ANN401 - a ZoneInfo
    """Say whether a ZoneInfo is the one that its name stands for.

    Args:
        zone: a ZoneInfo with a name.

    Returns:
        Whether `zone_of` gives it back.
    """
    try:
        return zone_of(zone.key) is zone
    except (OSError, ValueError, LookupError):  # there is none of that name
        return False


def zone_of(name: str) -> tzinfo:
    """Give the ZoneInfo of a name.

    Args:
        name: such as ``"Europe/Berlin"``.

    Returns:
        The one that all who ask for it share.

    Raises:
        LookupError: there is none of that name here.
        ValueError: no zone can have that name.
    """
    from zoneinfo import ZoneInfo  # noqa: PLC0415 - as above

    return ZoneInfo(name)


def is_pydantic(zone: tzinfo) -> bool:
    """Say whether it is an offset of pydantic's, which comes back as a ``datetime.timezone``.

    Args:
        zone: any time zone.

    Returns:
        Whether it is what pydantic gives to the moments that it reads.
    """
    return type(zone).__name__ == "TzInfo" and type(zone).__module__.startswith("pydantic_core")
