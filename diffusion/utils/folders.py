"""Walks through the folders of users, the same way for all tools.

Hidden entries and those that systems put there are ignored. Links are followed, but no folder is entered twice.
Everything else that cannot be used is counted and named in the log, and never ends the walk.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from diffusion.utils.text import abbreviate, is_utf8, printable_name

log = logging.getLogger(__name__)

# What Synology, QNAP, NetApp, Windows, macOS and ext4 put beside files; names that begin with a dot are hidden anyway.
SYSTEM_ENTRIES = frozenset(
    (
        *("@eaDir", "@Recycle", "#recycle", "#snapshot", "~snapshot", "$RECYCLE.BIN", "System Volume Information"),
        *("RECYCLER", "__MACOSX", "lost+found", "Thumbs.db", "desktop.ini", "__pycache__"),
    )
)
NAMED_ENTRIES = 3  # of the skipped entries, by reason


class SkippedEntries:
    """Entries that a walk skipped, counted by reason, with a few names of each."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._names: dict[str, list[str]] = {}

    def add(self, reason: str, path: str | Path) -> None:
        """Count an entry under a reason."""
        self._counts[reason] = self._counts.get(reason, 0) + 1
        names = self._names.setdefault(reason, [])
        if len(names) < NAMED_ENTRIES:
            names.append(printable_name(path))

    def lines(self) -> list[str]:
        """Return a line for each reason, with the number of entries and the first names."""
        return [
            f"left out: {reason} ({count}): {abbreviate(self._names[reason])}{' ...' if count > NAMED_ENTRIES else ''}"
            for reason, count in self._counts.items()
        ]

    def report(self) -> None:
        """Log the lines as warnings."""
        for line in self.lines():
            log.warning("%s", line)


def is_hidden(name: str) -> bool:
    """Tell whether an entry is hidden, or a system's own."""
    return name.startswith(".") or name in SYSTEM_ENTRIES


def walk_files(
    folder: Path, skipped: SkippedEntries, enter: Callable[[str], bool] = lambda name: True
) -> Iterator[Path]:
    """Yield the files in a folder and below it, as walk_folders finds them."""
    for place, names in walk_folders(folder, skipped, enter):
        yield from (place / name for name in names)


def walk_folders(
    folder: Path, skipped: SkippedEntries, enter: Callable[[str], bool] = lambda name: True
) -> Iterator[tuple[Path, list[str]]]:
    """Yield a folder and those below it, each with the names of its files, parents first, in natural order.

    Only one folder's entries are in memory at a time. enter: whether to go into a folder of that name. Paths are `folder`
    joined with the names on the way, links among them.
    """
    yield from _Walk(folder, skipped, enter).folders(folder)


class _Walk:
    """The state of a walk: which folders were entered, and whether a link was followed."""

    def __init__(self, root: Path, skipped: SkippedEntries, enter: Callable[[str], bool]):
        self.root, self.skipped, self.enter = Path(os.path.realpath(root)), skipped, enter
        self._entered: set[tuple[int, int]] = set()
        self._followed_links = False

    def folders(self, folder: Path) -> Iterator[tuple[Path, list[str]]]:
        files, folders = [], []
        for entry in self._entries(folder):
            try:
                is_folder, is_file = entry.is_dir(), entry.is_file()
            except OSError:  # a loop of links, or a server that is gone
                is_folder = is_file = False
            if is_folder:
                folders.append(entry)
            elif is_file:
                files.append(entry.name)
            else:
                kind = "links to nothing" if entry.is_symlink() else "entries that are neither file nor folder"
                self.skipped.add(kind, entry.path)
        if files:
            yield folder, files
        for entry in folders:
            if self.enter(entry.name) and self._is_new(entry):
                yield from self.folders(folder / entry.name)

    def _entries(self, folder: Path) -> list[os.DirEntry]:
        """Return the entries that are not hidden, in natural order."""
        try:
            status = os.stat(folder)
            with os.scandir(folder) as entries:
                visible = [entry for entry in entries if not is_hidden(entry.name)]
        except OSError as error:
            self.skipped.add(f"folders that cannot be read ({error.strerror})", folder)
            return []
        if status.st_ino:  # some network drives number nothing
            self._entered.add((status.st_dev, status.st_ino))
        for entry in visible:
            if not is_utf8(entry.name):
                self.skipped.add("entries whose names are not UTF-8 (rename them)", entry.path)
        return sorted((entry for entry in visible if is_utf8(entry.name)), key=lambda entry: natural_key(entry.name))

    def _is_new(self, entry: os.DirEntry) -> bool:
        """Tell whether a folder is to be entered; a link to one that is, or was, entered otherwise is not."""
        if entry.is_symlink():
            target = Path(os.path.realpath(entry.path))
            if self.root.is_relative_to(target):
                self.skipped.add("links that lead back to a folder above them", entry.path)
                return False
            below = target.relative_to(self.root).parts if target.is_relative_to(self.root) else ()
            if below and not any(map(is_hidden, below)) and all(map(self.enter, below)):
                self.skipped.add("links to folders that are there themselves", entry.path)
                return False
            self._followed_links = True
        elif not self._followed_links:  # without links nothing is met twice
            return True
        try:
            status = os.stat(entry.path)
        except OSError:  # it is reported when it is entered
            return True
        if (status.st_dev, status.st_ino) in self._entered:
            self.skipped.add("folders that other links have led to already", entry.path)
            return False
        return True


def natural_key(name: str) -> tuple:
    """Return a key that sorts paths folder by folder, and the numbers in them as numbers; equal ones in plain order."""
    return tuple(_natural_parts(part) for part in name.split("/")), name


def _natural_parts(text: str) -> tuple[tuple[int, str], ...]:
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", text))
