"""Checks of messages that do not depend on their wording."""

import re


def missing(text, names):
    """The names and values that `text` does not contain as whole words."""
    return [name for name in names if not re.search(rf"(?<![\w-]){re.escape(name)}(?!\w|[.-]\w)", text)]
