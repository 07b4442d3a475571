"""The ready rewards by their names."""

from functools import partial

from chatsmith.rewards import constraints, numbers, shape
from chatsmith.rewards.form import Form
from chatsmith.rewards.judged import Ready, each
from chatsmith.rewards.mathematics import Mathematics
from chatsmith.rewards.service import Service
from chatsmith.rewards.spec import is_service


def ready(target: str, *, limit: int) -> Ready | None:
    """The ready reward of this name or at this address; None for anything else.

    Args:
        limit: tokens of the longest answer.
    Raises:
        ConfigError: if a package for it is not installed, or the address cannot be one.
        RewardError: if the service there does not answer.
    """
    if is_service(target):
        return Ready(Service(target))
    match target:
        case "number":
            return Ready(each(numbers.number), numbers.unfit)
        case "math":
            mathematics = Mathematics()
            return Ready(mathematics, mathematics.unfit)
        case "format":
            form = Form()
            return Ready(form, form.unfit)
        case "constraints":
            return Ready(each(constraints.share), constraints.unfit, constraints.unjudged)
        case "constraints-strict":
            return Ready(each(constraints.strict), constraints.unfit, constraints.unjudged)
        case "repetition":
            return Ready(each(lambda sample: shape.repetition(sample.answer)))
        case "overlong":
            return Ready(partial(shape.overlong, limit=limit))
    return None
