"""Byte counts for people."""

_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB")


def format_bytes(count: int) -> str:
    """`512 bytes`, `9.4 GiB (10093173145 bytes)`."""
    return round_bytes(count) + (f" ({count} bytes)" if count >= 1024 else "")


def round_bytes(count: int) -> str:
    """`512 bytes`, `9.4 GiB`."""
    if count < 1024:
        return f"{count} bytes"
    size, unit = count / 1024, 0
    while round(size, 1) >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.1f} {_UNITS[unit]}"
