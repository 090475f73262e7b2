"""Our part of a model version's description in MLflow: a block of our own beside a person's text.

The block stands between two markers, and the first carries a digest of what lies between. A block
whose digest does not fit was edited by a person: it is their text now, and stays as it is.
"""

import hashlib
import re

LONGEST = 5_000  # characters of a version's description; PostgreSQL refuses more
_START, _END = "<!-- fairlead:rollout {digest} -->", "<!-- /fairlead:rollout -->"
_BLOCK = re.compile(
    r"<!-- fairlead:rollout (?P<digest>[0-9a-f]{12}) -->"
    r"(?P<body>(?:(?!<!-- fairlead:rollout ).)*?)"
    r"<!-- /fairlead:rollout -->",
    re.DOTALL,
)


def with_block(description: str, summary: str, why: str) -> str | None:
    """Return a description with our block in it: in the place of our last one, or at the end.

    Args:
        description: The description as it is.
        summary: The block's first sentence.
        why: Its second paragraph; it is cut if it does not fit.

    Returns:
        The new description; None where a person's text leaves no room for a block.
    """
    before, after = _around(description)
    room = LONGEST - len(before) - len(after) - len(_block(summary, ""))
    if room < 0:
        return None
    text = why if len(why) <= room else why[: max(0, room - 1)] + "…"[:room]
    return before + _block(summary, text) + after


def _around(description: str) -> tuple[str, str]:
    """Return what stands before and after the place for our block."""
    ours = [m for m in _BLOCK.finditer(description) if m["digest"] == _digest(m["body"])]
    if ours:
        return description[: ours[-1].start()], description[ours[-1].end() :]
    return (f"{description.rstrip()}\n\n" if description.strip() else ""), ""


def _block(summary: str, why: str) -> str:
    body = "\n".join(_without_tags(part) for part in (f"**{summary}**", why))
    return f"{_START.format(digest=_digest(body))}\n{body}\n{_END}"


def _without_tags(text: str) -> str:
    """Take out what Markdown would read as HTML: it may be the words of a foreign program."""
    return text.replace("<", "‹").replace(">", "›")


def _digest(body: str) -> str:
    """Return a digest that does not depend on spaces and line ends, which editors change."""
    return hashlib.sha256(" ".join(body.split()).encode()).hexdigest()[:12]
