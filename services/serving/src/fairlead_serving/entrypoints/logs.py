"""How a serving process logs."""

import logging
import sys

_TEXT = "%(levelname)s %(name)s: %(message)s"


def configure_logging(level: str, form: str) -> None:
    """Log to standard error.

    Args:
        level: The least severe level that is logged.
        form: `text` for people, or `json` for one JSON object a line.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_json_formatter() if form == "json" else logging.Formatter(_TEXT))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)


def _json_formatter() -> logging.Formatter:
    from pythonjsonlogger.orjson import OrjsonFormatter  # noqa: PLC0415  # Text does not need it.

    return OrjsonFormatter(
        "{levelname}{name}{message}",
        style="{",
        timestamp="at",
        rename_fields={"levelname": "level", "name": "logger"},
    )
