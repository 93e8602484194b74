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
    └── RuntimeSetupError device or precision that this machine does not have

Each message is plain text for people: what was wrong, with the value; what would be right; what to
do. The boundary in `cli/app.py` prints it to stderr and exits with 1. Anything else is a bug and
keeps its traceback.
"""


class AirnetError(Exception):
    """A request that can't be carried out; the message says why and what to do."""


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
    """A device or precision that this machine does not have."""
