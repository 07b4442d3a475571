"""What a reward of `rl.rewards` may be called, and which go together. Loads nothing."""

from collections.abc import Sequence
from pathlib import Path

from chatsmith.errors import ConfigError

READY = ("number", "math", "format", "constraints", "constraints-strict", "repetition", "overlong")
BELOW_ZERO = ("repetition", "overlong")
LARGEST_FORMAT = 0.1  # of the other rewards: alone or heavy, form is learned in some steps and then pays for nothing


def factors(target: str) -> list[str]:
    """The rewards that a target multiplies: `number*format` is two, a path that is there is one whatever its name."""
    return [target] if Path(target).exists() else target.split("*")


def is_service(target: str) -> bool:
    return target.startswith(("http://", "https://"))


def is_code(target: str) -> bool:
    """Whether it names a function of the user's."""
    return ":" in target and not is_service(target) and not Path(target).is_dir()


def check(rewards: Sequence[tuple[str, float]]) -> None:
    """
    Args:
        rewards: targets and their weights.
    Raises:
        ConfigError: if a product has a factor that cannot be one, or if a reward for form alone weighs too much.
    """
    form, others = 0.0, 0.0
    for target, weight in rewards:
        parts = factors(target)
        for part in parts if len(parts) > 1 else ():
            if (part not in READY and not is_service(part) and not is_code(part)) or part in BELOW_ZERO:
                raise ConfigError(
                    f"reward {target!r}: {part!r} cannot be a factor. A product is of rewards that are never below 0: "
                    "number, math, format, constraints, a function, an address. Add the others, each with a weight."
                )
        if all(part == "format" for part in parts):
            form += abs(weight)
        else:
            others += abs(weight)
    if form > LARGEST_FORMAT * others + 1e-9:
        raise ConfigError(
            f"reward 'format' has a weight of {form:g}, and the others together have {others:g}: it may have at most "
            f"{LARGEST_FORMAT:g} of theirs, or it is learned in their place. Multiply it, as in --reward "
            f"'number*format', or add it as format@{LARGEST_FORMAT * others or LARGEST_FORMAT:g} beside another reward."
        )
