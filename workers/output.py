"""What commands print: one thing on stdout, for people or (--json) for scripts; hints on stderr."""

import errno
import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import click

from pipelines.errors import RunFailed

Function = Callable[..., Any]


def command(*examples: str, name: str | None = None) -> Callable[[Function], click.Command]:
    """A command with the options that all have, whose help ends with examples."""

    def decorate(function: Function) -> click.Command:
        made = click.command(name, epilog="\b\nExamples:\n  " + "\n  ".join(examples))(function)
        for flags, meaning in (
            (["--json"], "Print one JSON document on stdout."),
            (["--quiet", "-q"], "No progress and no hints on stderr; errors still."),
            (["--debug"], "Show the traceback of an error."),
        ):
            option = click.Option(flags, is_flag=True, expose_value=False, callback=_remember, help=meaning)
            made.params.append(option)
        return made

    return decorate


def _remember(context: click.Context, option: click.Parameter, asked: bool) -> None:
    context.meta[f"tallgrass.{option.name}"] = asked


def asked(name: str) -> bool:
    """Whether the command that runs now was given --json or --quiet."""
    return bool(click.get_current_context().meta.get(f"tallgrass.{name}"))


def print_one(document: Any, text: str) -> None:
    """One thing on stdout: a JSON document, or text."""
    answer(json.dumps(_json_ready(document), indent=2, ensure_ascii=False) if asked("json") else text)


def answer(text: str) -> None:
    """Something on stdout; a reader that has gone away, like `head`, is no error.

    Raises:
        RunFailed: the place that stdout goes to is full, or cannot be written.
    """
    try:
        click.echo(text)
    except OSError as error:
        # What is left in the buffer would fail once more when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        click.get_current_context().meta["tallgrass.deaf"] = True
        if error.errno != errno.EPIPE:
            raise RunFailed(
                f"The answer could not be printed: {error.strerror}. Send stdout to another place and run it again; a "
                "result that was stored is there."
            ) from error


def deaf() -> bool:
    """Whether the reader of stdout has gone away: what would go on printing may end."""
    return asked("deaf")


def say(text: str) -> None:
    """A line on stderr, which no work depends on: where it cannot be written, the work goes on."""
    with suppress(OSError, ValueError, AttributeError):
        click.echo(text, err=True)


def end_stderr() -> None:
    """Before the program ends: Python makes of a buffer that cannot be written an exit code of its own, 120."""
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _json_ready(value: Any) -> Any:
    """JSON has no NaN and no infinity; null stands for them."""
    if isinstance(value, Mapping):
        return {str(key): _json_ready(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_json_ready(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def hint(text: str) -> None:
    """A line for a person on stderr, such as what to do next."""
    if not (asked("quiet") or asked("json")):
        say(text)


def error_document(error: Exception, message: str | None = None) -> dict[str, Any]:
    """An error for scripts."""
    return {"error": described(error, message)}


def described(error: BaseException, message: str | None = None) -> dict[str, Any]:
    """An error for scripts, and as the queue keeps it."""
    code = getattr(error, "exit_code", 1)
    return {"kind": type(error).__name__, "message": message or str(error), "exit_code": code}


def unforeseen(error: BaseException) -> str:
    """What to say of an error that is none of ours."""
    detail = f"{type(error).__name__}: {error}".rstrip(": ")
    return f"something went wrong that Tallgrass did not foresee: {detail}."
