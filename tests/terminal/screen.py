"""A real terminal of 100 x 30, and what a command shows on it."""

import fcntl
import os
import pty
import re
import struct
import sys
import termios
import threading

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Screen:
    """What stands on a terminal after some bytes, and what was ever written to it."""

    def __init__(self, written: str) -> None:
        self.written = written

    @property
    def lines(self) -> list[str]:
        """What is left to read once all is done: lines that were overwritten are gone."""
        lines, row, column = [""], 0, 0
        for piece in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", self.written):
            if piece == "\n":
                row, column = row + 1, 0
                lines += [""] * (row + 1 - len(lines))
            elif piece == "\r":
                column = 0
            elif piece.startswith("\x1b["):
                count = int(re.sub(r"\D", "", piece) or 1)
                if piece.endswith("A"):
                    row = max(0, row - count)
                elif piece.endswith("K"):
                    lines[row] = "" if piece == "\x1b[2K" else lines[row][:column]
            else:
                old = lines[row].ljust(column)
                lines[row] = old[:column] + piece + old[column + len(piece) :]
                column += len(piece)
        return [line.rstrip() for line in lines]

    @property
    def words(self) -> str:
        """All that was ever written, without what steers."""
        return _ESCAPES.sub("", self.written)


def run_on_terminal(*arguments: str, json_too: bool = False) -> tuple[int, Screen]:
    """Run a command of imgcls with all of its three streams on a terminal; return its exit code."""
    pid, there = pty.fork()
    command = [sys.executable, "-m", "imgcls.cli", *arguments, *["--json"] * json_too]
    if pid == 0:
        os.environ |= {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
        os.execv(sys.executable, command)  # noqa: S606  (a shell would be one more thing to trust)
    fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    chunks: list[bytes] = []

    def read_on() -> None:
        try:
            while data := os.read(there, 65536):
                chunks.append(data)
        except OSError:  # the other side is closed
            pass

    reader = threading.Thread(target=read_on)
    reader.start()
    _, status = os.waitpid(pid, 0)
    reader.join(10)
    os.close(there)
    text = b"".join(chunks).decode("utf-8", "replace").replace("\r\n", "\n")
    return os.waitstatus_to_exitcode(status), Screen(text)
