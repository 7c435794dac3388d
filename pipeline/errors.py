"""The errors that a user can cause and fix.

The command line prints the message on one line and exits with 2. Any other exception is a bug and
keeps its traceback.

    UserError
    ├── SettingError        a setting is wrong, or two settings contradict each other
    ├── DataError           input breaks its format
    ├── SourceUnreachable   no mirror of a data set answered
    ├── StorageError        storage could not be read or written
    ├── ArtifactMissing     an artifact does not exist or is not finished
    ├── ArtifactDamaged     a file differs from its manifest, or a manifest is not valid
    ├── ArtifactTooNew      an artifact has a format that this version does not read
    ├── ModelRejected       a model cannot be exported, breaks the tensor contract or fails a check
    ├── ResourcesMissing    the cluster or machine lacks what was asked for
    └── TrainingFailed      training diverged, or lost its workers too often

To add one: subclass UserError here. docs/reference/errors.md is generated from this module.
"""

from __future__ import annotations


class UserError(Exception):
    """Base of all errors that a user can fix. The message alone is shown."""


class SettingError(UserError):
    """A setting is wrong, or two settings contradict each other."""


class DataError(UserError):
    """Input breaks its format."""


class SourceUnreachable(UserError):
    """No mirror of a data set answered."""


class StorageError(UserError):
    """Storage could not be read or written."""


class ArtifactMissing(UserError):
    """An artifact does not exist, or is not finished."""


class ArtifactDamaged(UserError):
    """A file differs from its manifest or is missing, or a manifest or alias is not valid."""


class ArtifactTooNew(UserError):
    """An artifact was written by a later version of this project, in a format that is not known."""


class ModelRejected(UserError):
    """A model cannot be exported, breaks the contract, or fails the parity gate or a self-test."""


class ResourcesMissing(UserError):
    """The cluster or the machine lacks what was asked for."""


class TrainingFailed(UserError):
    """Training diverged, or lost its workers too often."""
