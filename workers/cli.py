"""The command line, `tallgrass COMMAND`: data on stdout, messages on stderr, an exit code for each outcome.

Nothing heavy is imported here: `--help`, `check` and `show` answer before NumPy would have been loaded.
"""

import gc
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

import click

from pipelines.errors import Interrupted, JobFileError, RunFailed, TallgrassError
from workers import administration, commands, service
from workers.output import answer, end_stderr, error_document, say, unforeseen

# A fifth of the time that `check` takes would go into looking for garbage among modules that were just imported, and
# into a search of all installed packages for plug-ins of pydantic.
gc.set_threshold(50_000)
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

EPILOG = """\b
Examples:
  tallgrass check configs/jobs/flights.yaml     is the job file right?
  tallgrass plan configs/jobs/flights.yaml      what will it cost?
  tallgrass run configs/jobs/flights.yaml       run it on this machine
  tallgrass show results/flights.zarr           what came out, and how far to trust it
  tallgrass serve                               take jobs from others, and run them in turn
  tallgrass submit configs/jobs/flights.yaml    give a job to a server; then status, logs, wait, result

\b
Exit codes:
  0  done                                  5  the cluster or server cannot be reached
  1  the run failed                        6  a wait timed out
  2  the job file or the command is wrong  7  the job was cancelled
  3  the plan refuses                      8  the certificate falls short of the job's `require`
  4  the data is bad                       9  nothing moved any more: interrupted, the same command goes on
                                         130  interrupted
"""


class Tallgrass(click.Group):
    """A group of commands whose errors are short letters with their exit codes, never tracebacks."""

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> NoReturn:  # type: ignore[override]
        words = list(sys.argv[1:] if args is None else args)
        try:
            with _signals(words, last=args is None):
                code = super().main(words, prog_name or "tallgrass", **(extra | {"standalone_mode": False}))
        except (click.Abort, KeyboardInterrupt) as end:
            code = _report_end(end, words)
        except click.UsageError as error:
            code = _report(JobFileError(_usage_letter(error)), words)
        except click.ClickException as error:
            code = _report(JobFileError(error.format_message()), words)
        except Exception as error:  # noqa: BLE001 - the last line of defence: whatever comes, a letter and an exit code
            code = _report(error, words)
        if args is None:
            end_stderr()
        sys.exit(code if isinstance(code, int) else 0)


class Stopped(KeyboardInterrupt):
    """SIGTERM or SIGHUP: the same end as Ctrl-C, with the exit code that shells give for the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = signal.Signals(number)


@contextmanager
def _signals(words: Sequence[str], *, last: bool) -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP end a command in an orderly way.

    When it is the `last` thing that a program does, they are ignored afterwards: they would change its exit code.
    """
    with (
        _stopped_by(signal.SIGTERM, words, last),
        _stopped_by(signal.SIGHUP, words, last),
        _quiet_interrupts(words, last),
    ):
        yield


@contextmanager
def _stopped_by(number: signal.Signals, words: Sequence[str], last: bool) -> Iterator[None]:
    def stop(found: int, _: FrameType | None) -> None:
        _hush(words)
        raise Stopped(found)

    before = signal.getsignal(number)
    if before is not signal.SIG_DFL or threading.current_thread() is not threading.main_thread():
        yield  # ignored, as with nohup, or somebody else's
        return
    signal.signal(number, stop)
    try:
        yield
    finally:
        signal.signal(number, signal.SIG_IGN if last else before)


def _hush(words: Sequence[str]) -> None:
    import logging

    if "--debug" not in words:
        logging.disable(logging.CRITICAL)


@contextmanager
def _quiet_interrupts(words: Sequence[str], last: bool) -> Iterator[None]:
    """On Ctrl-C, what dies half-started keeps quiet: worker processes and connections log their own ends."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        _hush(words)
        signal.default_int_handler(number, frame)

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # ignored, as with nohup, or somebody else's
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    hook, sys.unraisablehook = sys.unraisablehook, _never_lost(sys.unraisablehook)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN if last else before)
        sys.unraisablehook = hook


def _never_lost(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Ctrl-C during a callback of the garbage collector (Dask has one) would be ignored: it comes again soon after."""

    def again(found: Any) -> None:
        if found.exc_type is KeyboardInterrupt:
            main_thread = threading.main_thread().ident or 0
            threading.Timer(0.02, signal.pthread_kill, (main_thread, signal.SIGINT)).start()
        else:
            hook(found)

    return again


def _report_end(end: BaseException, words: Sequence[str]) -> int:
    """Tell that a signal ended the command, and which; click wraps what it meets."""
    stop = end.__cause__ if isinstance(end, click.Abort) else end
    if isinstance(stop, Stopped):
        return _report(Interrupted(f"Stopped by {stop.signal.name}. No result was written."), words, 128 + stop.signal)
    return _report(Interrupted("Interrupted. No result was written."), words)


def _report(error: Exception, words: Sequence[str], code: int | None = None) -> int:
    """Tell an error on stderr, and as a document on stdout under --json; its exit code."""
    if "--debug" in words:
        traceback.print_exception(error)
    message = str(error) if isinstance(error, TallgrassError) else _unexpected(error)
    say(message)
    if "--json" in words:
        with suppress(RunFailed):  # stdout cannot be written, which may be the very error
            answer(json.dumps(error_document(error, message), indent=2, ensure_ascii=False))
    return code if code is not None else int(getattr(error, "exit_code", 1))


def _unexpected(error: Exception) -> str:
    return f"{unforeseen(error)} Run it again with --debug for the traceback, and please report it."


def _usage_letter(error: click.UsageError) -> str:
    context = error.ctx
    command = context.command_path if context else "tallgrass"
    return f'{command}: {error.format_message()} See "{command} --help".'


def _print_version(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        click.echo(f"tallgrass {commands.version()}")
        context.exit()


@click.group(
    cls=Tallgrass,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EPILOG,
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version.",
)
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
@click.pass_context
def main(context: click.Context) -> None:
    """Linear algebra on matrices larger than memory, with answers that say how far to trust them."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for command in (*commands.ALL, *administration.ALL, *service.ALL):
    main.add_command(command)

if __name__ == "__main__":
    main()
