"""The one logger set-up: a file a process in the run's folder, warnings on the terminal."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def set_up_logging(file: Path | None, *, terminal: bool = True) -> None:
    """Log amortis' own messages from INFO on to `file`, and warnings to standard error."""
    handlers: list[logging.Handler] = []
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(file, encoding="utf-8"))
    if terminal:
        screen = logging.StreamHandler(sys.stderr)
        screen.setLevel(logging.WARNING)
        handlers.append(screen)
    logger = logging.getLogger("amortis")
    logger.handlers = handlers
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for handler in handlers:
        handler.setFormatter(logging.Formatter(_FORMAT))


def get_logger(part: str) -> logging.Logger:
    """The logger of one part, e.g. `learner`."""
    return logging.getLogger(f"amortis.{part}")
