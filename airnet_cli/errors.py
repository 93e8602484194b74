"""What can go wrong for a user, as one tree. This module imports nothing.

    AirnetError
    ├── UsageError        options that contradict each other or name nothing that exists
    ├── PresetError       a preset that can't be found, read or validated
    ├── DataError         images, archives, tables, manifests
    ├── WeightsError      initial weights: missing file, wrong hash, keys that do not fit
    ├── CheckpointError   a checkpoint or run folder that can't be read or does not fit
    ├── EvaluationError   a problem on which no score can be computed
    ├── TrainingError     a training run that can't go on
    ├── OutputError       a file or folder that can't be written
    └── RuntimeSetupError device, precision or engine that this machine does not have

Each message is plain text for people: what was wrong, with the value; what would be right; what to
do. It is one line, whatever file names and cells are quoted in it; a preset or several runs may
have one line for each problem, each an argument of the error. The boundary in `cli/app.py` prints
it to stderr and exits with 1. Anything else is a bug and keeps its traceback.
"""


def printable(text: str) -> str:
    """`text` on one line, with nothing in it that a terminal obeys or that is no valid Unicode.

    File names may hold line ends, escape sequences and bytes that are no UTF-8 (which Python keeps
    as lone surrogates); they are shown as in Python's own texts.

    >>> printable("a\\nb\\x1b[2J\\udcff Köln")
    'a\\\\nb\\\\x1b[2J\\\\udcff Köln'
    """
    if text.isprintable():
        return text
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode("ascii")
        for sign in text
    )


def quoted(text: object, longest: int = 100) -> str:
    """`text` as a message quotes it, cut where it is long.

    >>> quoted("a" * 200, longest=8)
    "'aaaaa...'"
    """
    words = str(text)
    return repr(words if len(words) <= longest else f"{words[: longest - 3]}...")


def listed(problems: list[str], *, separator: str = ", ") -> str:
    """Join the first ten and count the others.

    >>> listed([str(number) for number in range(13)])
    '0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 3 more'
    """
    more = f" and {len(problems) - 10:,} more" if len(problems) > 10 else ""
    return separator.join(problems[:10]) + more


def one_line(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


class AirnetError(Exception):
    """A request that can't be carried out; the message says why and what to do."""

    def __str__(self) -> str:
        """The message, printable: a line for each argument."""
        return "\n".join(printable(str(line)) for line in self.args)


class UsageError(AirnetError):
    """Options that contradict each other, or that name nothing that exists."""


class PresetError(AirnetError):
    """A preset that can't be found, read or validated; one line for each problem."""


class DataError(AirnetError):
    """Images, archives, tables or manifests that are missing, broken or incomplete."""


class WeightsError(AirnetError):
    """Initial weights that are missing, have the wrong hash, or do not fit the network."""


class CheckpointError(AirnetError):
    """A checkpoint or run folder that can't be read, or that does not fit the request."""


class EvaluationError(AirnetError):
    """A retrieval problem on which no score can be computed."""


class TrainingError(AirnetError):
    """A training run that can't start or go on."""


class OutputError(AirnetError):
    """A file or folder that can't be written: no permission, no room, no such place."""


class RuntimeSetupError(AirnetError):
    """A device, precision or engine that this machine does not have, or that can't be trusted."""
