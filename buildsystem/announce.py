"""What a build says while it runs. pip keeps the output of a build to itself: there it goes to the terminal."""

from __future__ import annotations

_behind_pip = False


def behind_pip() -> None:
    """From now on `say` looks for the terminal: the hooks of the build backend call this."""
    global _behind_pip
    _behind_pip = True


def say(text: str) -> None:
    """A line for the person who installs, and for pip's record of the build."""
    line = f"fasttx: {text}"
    print(line, flush=True)
    if _behind_pip:
        try:
            with open("/dev/tty", "w", encoding="utf-8") as terminal:
                terminal.write(f"\n{line}")  # on a line of its own: pip draws a spinner at the end of the last one
        except OSError:
            pass  # no terminal: `pip install -v` shows the record
