"""Marks of a part's settings, on its dataclass fields: what may be published, and what may change when a run resumes.

    path: str = field(metadata=PLACE)
    base_url: str = field(metadata=SECRET | SPEED)

Unmarked settings of dpsyn's own parts are public. Unmarked settings of other parts are not published.
"""

PUBLIC = {"publish": "whole"}
"""Published as it is. Every part of dpsyn's own may leave it out."""

PLACE = {"publish": "name"}
"""A file, a folder or a name: a name on the hub is published, and the last part of an https address; no local place,
and nothing at all of the private data."""

SECRET = {"publish": "never"}
"""Never published: addresses, keys, and what is passed on unread."""

SPEED = {"resume": "another"}
"""How and where it works, not what: a run resumes with another value."""
