"""What orbax and its storage print of their inner workings, kept from people who wait for one sentence."""

from __future__ import annotations

import functools
import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any

# These files of orbax log, with its whole traceback and for each thread, what they then raise.
_RAISED_AGAIN = {"async_checkpointer.py", "checkpoint_manager.py", "future.py"}


def quiet_storage() -> None:
    """Lets orbax speak of errors alone, and only of those that are not raised anyway; holds until the process ends.

    Until then, because the threads and coroutines of a write that failed come to an end as late as that.
    """
    logger = logging.getLogger("absl")  # imported by now: it must be absl itself that makes this logger
    logger.setLevel(logging.ERROR)
    logger.addFilter(_news)
    # of the many pieces of a failed write the first is raised; nobody asks the others, which are of no other opinion
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", message="coroutine .* was never awaited", category=RuntimeWarning)
    sys.unraisablehook = functools.partial(_unraisable, sys.unraisablehook)


def _news(record: logging.LogRecord) -> bool:
    return record.exc_info is None or record.filename not in _RAISED_AGAIN


def _unraisable(otherwise: Callable[[Any], Any], event: Any) -> None:
    if not (isinstance(event.exc_value, RuntimeError) and str(event.exc_value) == "Event loop is closed"):
        otherwise(event)
