# SPDX-License-Identifier: Apache-2.0
"""A folder of things that take long to make, found again by the hash of what they are made from.

An entry appears by one rename, so a build that is interrupted leaves nothing half made; a lock file
makes a second process wait for the first instead of building the same thing again.
"""

import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from sparsemac.errors import DeviceError

__all__ = ["cache_folder", "cached", "content_hash"]

_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Returns ``$SPARSEMAC_CACHE``, or ``sparsemac`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if own := os.environ.get("SPARSEMAC_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sparsemac"


def content_hash(parts: Iterable[str | bytes]) -> str:
    """Returns 24 hexadecimal digits that depend on every part and on where each one ends."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:24]


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """Returns the folder ``name`` of the cache; ``make(folder)`` fills it if it is not there yet.

    Raises
    ------
    DeviceError    If the cache cannot be written; names the variable that moves it.
    """
    entry = cache_folder() / name
    if entry.is_dir():
        return entry
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with (entry.parent / f".{entry.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not entry.is_dir():
                _fill(entry, make)
    except OSError as error:
        raise DeviceError(
            f"the build cache in {cache_folder()} cannot be used ({error}): "
            "set SPARSEMAC_CACHE to a folder that can be written"
        ) from error
    return entry


def _fill(entry: Path, make: Callable[[Path], None]) -> None:
    # In the same folder, since a rename does not cross file systems.
    work = Path(tempfile.mkdtemp(prefix=f".{entry.name}.", dir=entry.parent))
    try:
        make(work)
        work.rename(entry)
        _log.debug("cached %s", entry)
    finally:
        shutil.rmtree(work, ignore_errors=True)
