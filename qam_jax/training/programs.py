"""Compiled programs, kept from one start to the next."""

import hashlib
import logging
import os
import platform
from pathlib import Path

import jax

from qam_jax.files import ensure_writable_dir

_logger = logging.getLogger(__name__)


def keep_programs(folder: str | os.PathLike) -> None:
    """Lets JAX keep compiled programs in a folder, so that later processes need not compile them.

    Nothing changes where JAX has such a folder already, as by `JAX_COMPILATION_CACHE_DIR`. Where
    the folder cannot be written to, that is logged, and programs are compiled each time.

    Args:
      folder: shared by all processes; machines of other processors have one of their own in it.
        Empty: none.
    """
    if not str(folder) or jax.config.jax_compilation_cache_dir:
        return
    try:
        path = ensure_writable_dir(Path(folder).expanduser() / _processor())
    except OSError as error:
        _logger.warning("Compiled programs are not kept: %s", error)
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # the many small ones too
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _processor() -> str:
    """A name for what this processor can execute: a program for another one may crash here."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        facts = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        facts = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(facts.encode()).hexdigest()[:8]}"
