"""What a person sees of a run that goes on for minutes."""

from __future__ import annotations

import io
from contextlib import redirect_stderr

from ingest.pipeline import Progress
from ingest.run import Display


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def after(files: int) -> Progress:
    return Progress(files, files_total=3, documents=files, pages=0, chunks=0, seconds=1.0, seconds_left=None)


def test_the_bar_follows_stderr_to_another_file_and_back() -> None:
    said: list[str] = []
    display, first, second = Display(said.append), Terminal(), Terminal()
    with redirect_stderr(first):
        display(after(1))
        with redirect_stderr(second):
            display(after(2))
        assert "2 of 3 files" in second.getvalue()
        display(after(3))
        display.close()
    assert "1 of 3 files" in first.getvalue()
    assert "3 of 3 files" in first.getvalue()
    assert "2 of 3 files" not in first.getvalue()
    assert not said
