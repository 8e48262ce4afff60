"""What types do not say: attributes of unknown objects, and exact replacements."""

UNKNOWN: dict[tuple[str, str], str] = {}
"""(path or *, expression or attribute) -> new name, or nothing for: leave it."""
AFTER: list = []
