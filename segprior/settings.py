"""A file with settings, as one word on the command line: FILE:name=value,name=value."""

import re
from collections.abc import Collection

from segprior.errors import SettingError


def parsed(text: str, known: Collection[str]) -> tuple[str, dict[str, str]]:
    """Split FILE:name=value,... into the file and its settings. Raises SettingError for a setting not in `known`."""
    found = re.fullmatch(r"(?P<path>.+?)(?::(?P<settings>\w+=[^:]*))?", text)
    names = ",".join(f"{name}=..." for name in known)
    if found is None:
        raise SettingError(f"wanted FILE:{names}, got nothing")
    pairs = [part.partition("=")[::2] for part in (found["settings"] or "").split(",") if part]
    settings = {key.strip(): value.strip() for key, value in pairs}
    if strange := settings.keys() - set(known):
        got = ", ".join(sorted(strange))
        raise SettingError(f"wanted {', '.join(known)} after the file, got {got} in {text!r}")
    return found["path"], settings
