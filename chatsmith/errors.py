"""The one tree of errors a user can meet.

    ChatsmithError
    ├── ConfigError      a recipe, an override or a command-line argument is wrong
    ├── DataError        a data source cannot be read or a record is malformed
    ├── ModelError       a model or tokenizer directory cannot serve the purpose
    │   └── ConversationError  its chat template or tokenizer cannot carry one conversation as it is
    ├── RewardError      a reward function failed or returned something that is no reward
    ├── RunError         the run directory cannot be used as asked
    ├── RequestError     a conversation cannot be answered as asked
    ├── EndpointError    an endpoint that is asked for text cannot be reached, refuses, or says nothing of use
    ├── GateFailed       a stage finished, but its result is not good enough to build on
    └── TrainingStopped  training cannot sensibly go on (non-finite losses, rollout mismatch)

Every message says what is wrong, where (file and line, or key), and how to mend it. The command line prints the
message alone, without a traceback, and exits with `exit_code`. To add one: subclass here, add it to the tree above.

What other people's code raises is known to nobody: it is called inside `foreign()`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from chatsmith.screen.text import unbroken


class ChatsmithError(Exception):
    """Base of everything chatsmith raises on purpose. Its message is one line, whatever is quoted in it."""

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(unbroken(message))


class ConfigError(ChatsmithError):
    """A recipe, an override or an argument is wrong."""


class DataError(ChatsmithError):
    """A data source cannot be read, or a record in it is malformed."""


class ModelError(ChatsmithError):
    """A model or tokenizer directory is missing something or has the wrong architecture."""


class ConversationError(ModelError):
    """The chat template or the tokenizer of a model cannot carry one conversation, which others need not notice."""


class RewardError(ChatsmithError):
    """A reward function raised, or too many of its values are not finite."""


class RunError(ChatsmithError):
    """The run directory belongs to another configuration, is in use, or cannot be written."""


class RequestError(ChatsmithError):
    """A conversation is malformed or too long for the model, or a setting of the answer is out of range."""


class EndpointError(ChatsmithError):
    """An endpoint that is asked for text cannot be reached, refuses, or says nothing that can be used."""


class GateFailed(ChatsmithError):
    """A stage's result is not good enough to build the next stage on."""

    exit_code = 2


class TrainingStopped(ChatsmithError):
    """Training cannot go on: steps refused in a row, or rollout and training disagree."""

    exit_code = 2


class ForeignError(Exception):
    """What other people's code raised, of whatever kind: for our own to make sense of, not for a user."""


@contextmanager
def foreign() -> Iterator[None]:
    """For calls of code that came with a model, or that reads what strangers wrote: what it raises is a ForeignError.

    A panic of a library in Rust is one too, although Python counts it among the interrupts. These pass.
    """
    try:
        yield
    except (ChatsmithError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ForeignError(f"{type(error).__name__}: {error}") from error
