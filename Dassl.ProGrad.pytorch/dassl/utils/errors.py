"""Errors that are the user's to mend: one class, so that an entry point can print them as one line."""


class UserError(ValueError):
    """Bad input. The message names the thing, what was expected and what is available."""

    def __str__(self):
        return str(self.args[0]) if self.args else ""


class MissingFile(UserError, FileNotFoundError):
    """A file or folder that was asked for is not there."""


class WriteFailed(UserError, OSError):
    """A file could not be written (disk full, no permission). The file that stood there before is whole."""


class WrongType(UserError, TypeError):
    """A value of the right name and the wrong type."""


class UnknownName(UserError, KeyError):
    """A name that no registry knows."""
