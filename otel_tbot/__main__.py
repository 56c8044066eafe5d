"""Runs the command `otel-tbot`: `run` in the launcher, every other command in the command line interface."""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> "NoReturn":
    """Runs the command line of this process; never returns."""
    arguments = sys.argv[1:]
    # Before anything else: an interrupt ends this process without a traceback, as it would end the command of `run`.
    import _signal  # type: ignore[import-not-found]  # signal without its enums, which take long to import

    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    if arguments[:1] == ["run"] and sys.platform != "win32":
        command = arguments[2:] if arguments[1:2] == ["--"] else arguments[1:]
        if command and (len(command) < len(arguments) - 1 or not command[0].startswith("-")):
            from otel_tbot.launcher import run

            sys.exit(run(command))
    from otel_tbot.cli.main import main as main_of_cli

    sys.exit(main_of_cli(arguments))


if __name__ == "__main__":
    main()
