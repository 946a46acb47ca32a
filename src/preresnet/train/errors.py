"""The ways in which a run ends without its result. Each says what stands, and has the exit code of the command."""

from pathlib import Path

STOPPED = "the run stopped; a lower learning rate or float32 may help"


class InterruptedRunError(Exception):
    """A signal ended a run after its checkpoint was saved."""

    def __init__(self, signal_number: int, step: int, out: Path) -> None:
        super().__init__(f"stopped at step {step}; saved in {out}. Continue with the same command and --resume")
        self.exit_code = 128 + signal_number


class NotFiniteError(Exception):
    """The loss, or a weight, became infinite or not a number."""

    exit_code = 1


class LostProcessError(Exception):
    """Another process of the run has ended, so that this one cannot go on; it says why itself."""

    exit_code = 1


class NotWrittenError(Exception):
    """A file could not be written, because the disk is full, say; what was there before stands."""

    exit_code = 1
