"""Everything that can go wrong, as a tree: each class is an exit code, each message a short letter.

TallgrassError
├── RunFailed (1)              the computation broke: a worker died again and again
│   └── OutOfMemory            what killed the worker was that it took too much memory
├── JobFileError (2)           the job file, the cluster file or the command says something that cannot be
├── PlanRefused (3)            it cannot fit or cannot be done; said before any data is read
├── BadData (4)                the data is missing, damaged, not finite, or not the shape that the job needs
│   └── InputChanged           the data is not what an interrupted run has read
├── ClusterUnreachable (5)     the scheduler does not answer, or runs other versions than we do
├── WaitTimedOut (6)           a wait for something that goes on by itself took too long
├── JobCancelled (7)           somebody stopped the job
├── CertificateFallsShort (8)  the job finished, but its certificate does not reach what the job file requires
├── Stalled (9)                nothing moved for as long as the job file allows: interrupted, to be gone on with
└── Interrupted (130)          Ctrl-C
"""


class TallgrassError(Exception):
    """A short letter to the person who can fix it: what was found, what was needed, one thing to do next."""

    exit_code = 1


class RunFailed(TallgrassError):
    """The computation broke: a worker died again and again."""

    exit_code = 1


class OutOfMemory(RunFailed):
    """A task took more memory than its workers have."""

    found = "killed by SIGKILL, as the kernel does"
    """In a few words, what says that it was memory."""


class JobFileError(TallgrassError):
    """The job file, the cluster file or the command says something that cannot be."""

    exit_code = 2


class PlanRefused(TallgrassError):
    """It cannot fit or cannot be done; said before any data is read."""

    exit_code = 3


class BadData(TallgrassError):
    """The data is missing, damaged, not finite, or not the shape that the job needs."""

    exit_code = 4


class InputChanged(BadData):
    """The data is not what an interrupted run, which this one would go on with, has read."""


class ClusterUnreachable(TallgrassError):
    """The scheduler does not answer, or runs other versions than we do."""

    exit_code = 5


class WaitTimedOut(TallgrassError):
    """A wait for something that goes on by itself took too long."""

    exit_code = 6


class JobCancelled(TallgrassError):
    """Somebody stopped the job."""

    exit_code = 7


class CertificateFallsShort(TallgrassError):
    """The job finished, but its certificate does not reach what the job file requires."""

    exit_code = 8


class Stalled(TallgrassError):
    """Nothing moved for as long as the job file allows: interrupted, to be gone on with."""

    exit_code = 9


class Interrupted(TallgrassError):
    """Ctrl-C."""

    exit_code = 130
