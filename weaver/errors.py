"""Every error weaver raises on purpose. Each also inherits the builtin it refines.

    WeaverError
    ├── UserError                 what was asked cannot be done; asking differently can
    │   ├── InvalidInput          (ValueError)        a field is missing, unread, out of range or of the wrong shape
    │   ├── SequenceRefused       (ValueError)        a sequence number is taken by another request, or was given up
    │   ├── AlreadyExists         (FileExistsError)   a snapshot never changes: its name is taken
    │   ├── UnknownName           (LookupError)       no model, loss, session, checkpoint ... of that name
    │   ├── Forgotten             (LookupError)       it was there and is gone: a dropped result, an ended session
    │   ├── NotAuthenticated      (PermissionError)   the key is missing or wrong
    │   └── NotAllowed            (PermissionError)   a signed link was changed, or its time is over
    └── ServerError               what was asked is right and could not be done
        ├── PluginBroken          (TypeError)         a plugin breaks a contract; the message names it
        ├── LossFailed            (RuntimeError)      a loss function raised or returned something unusable
        ├── MissingPackage        (ImportError)       an optional package is not installed; the message has the command
        ├── CheckpointDamaged     (OSError)           files are missing or differ from their manifest
        ├── WorkerLost            (ChildProcessError) processes of a backend ended while they ran this, twice
        └── Stopped               (RuntimeError)      the engine or server is shutting down

Errors know nothing of HTTP: `weaver.server` holds the one table from class to status.
"""


class WeaverError(Exception):
    """Base of every error weaver raises on purpose."""


class UserError(WeaverError):
    """What was asked cannot be done; the message names the field and what to do."""


class ServerError(WeaverError):
    """What was asked is right and could not be done."""


class InvalidInput(UserError, ValueError):
    """A field is missing, unread, out of range or of the wrong shape."""


class SequenceRefused(UserError, ValueError):
    """A sequence number is taken by a different request, or was given up as lost."""


class AlreadyExists(UserError, FileExistsError):
    """The name of a checkpoint is taken; snapshots never change."""


class UnknownName(UserError, LookupError):
    """Nothing of that name exists here; the message lists the names there are."""


class Forgotten(UserError, LookupError):
    """It existed and is gone: a dropped result or an ended session."""


class NotAuthenticated(UserError, PermissionError):
    """The API key is missing or wrong."""


class NotAllowed(UserError, PermissionError):
    """A signed link was changed or its time is over."""


class PluginBroken(ServerError, TypeError):
    """A plugin breaks a contract; the message names the package."""


class LossFailed(ServerError, RuntimeError):
    """A loss function raised, or returned something that cannot be differentiated; names the loss and the datum."""


class MissingPackage(ServerError, ImportError):
    """An optional package is not installed; the message has the command that installs it."""


class CheckpointDamaged(ServerError, OSError):
    """A checkpoint's files are missing or differ from its manifest."""


class WorkerLost(ServerError, ChildProcessError):
    """Processes that a backend runs in ended, or could not be started; the operation did not happen."""


class Stopped(ServerError, RuntimeError):
    """The engine or the server is shutting down."""
