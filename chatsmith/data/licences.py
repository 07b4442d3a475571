"""Which licences, as sources state them, forbid commercial use."""

import re

# "for commercial and non-commercial use" allows both
_ALLOWED = re.compile(r"\bcommercial(ly)?\s*(,|/|and|or|as well as)\s*non[- ]?commercial", re.IGNORECASE)
_FORBIDDEN = re.compile(
    r"\bcc[-_ ]?by[-_ ]?nc\b|\bby-nc\b|non[-_ ]?commercial|research[- ](use |purposes? )?only|only for research"
    r"|academic[- ](use |purposes? )?only",
    re.IGNORECASE,
)


def non_commercial(licence: str | None) -> bool:
    """Whether a licence, by its name, the hub's id for it or a line of its text, excludes commercial use.

    False says that nothing of the kind was found, not that the data may be used.
    """
    return licence is not None and _FORBIDDEN.search(_ALLOWED.sub("", licence)) is not None
