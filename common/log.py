"""The one logger set-up: a file of JSON lines a process in the run's folder, warnings on the terminal."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_context: dict[str, Any] = {}
"""What every line of this process says of it: run, process, adapter version."""


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, process, run, adapter_version, logger, message, exception."""

    def format(self, record: logging.LogRecord) -> str:
        """The record with this process' context."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            **_context,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def set_up_logging(file: Path | None, *, terminal: bool = True, **context: Any) -> None:
    """Log our own messages from INFO on to `file`, warnings to standard error; `context` stands in each line."""
    _context.clear()
    add_log_context(**context)
    logger = logging.getLogger("amortis")
    logger.handlers = []
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(file, encoding="utf-8")
        handler.setFormatter(JsonFormatter())
        logger.addHandler(handler)
    if terminal:
        screen = logging.StreamHandler(sys.stderr)
        screen.setLevel(logging.WARNING)
        screen.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger.addHandler(screen)


def add_log_context(**context: Any) -> None:
    """What the following lines say of this process besides, e.g. the adapter version it serves."""
    _context.update(context)


def log_to(handler: logging.Handler) -> None:
    """Send amortis' messages to one place more, as JSON lines."""
    handler.setFormatter(JsonFormatter())
    logging.getLogger("amortis").addHandler(handler)


def get_logger(part: str) -> logging.Logger:
    """The logger of one part, e.g. `learner`."""
    return logging.getLogger(f"amortis.{part}")
