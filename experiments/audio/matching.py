"""Finds the recordings that tables mean, by paths with other folders, capitals, accents or suffixes."""

import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from experiments.audio.recordings import FOREIGN_SUFFIXES, SUFFIXES

_SUFFIXES = frozenset((*SUFFIXES, *FOREIGN_SUFFIXES))


def normalize(text: str) -> str:
    """Returns a text with its accents in one form (NFC): names on macOS often have the other one."""
    return unicodedata.normalize("NFC", text)


class NameIndex:
    """Recordings by the ends of their paths.

    Example:
        >>> index = NameIndex(["s1/a.wav", "s2/a.wav"])
        >>> index.find("/old/S2/A.mp3"), index.find("a.wav")
        ((['s2/a.wav'], 2), (['s1/a.wav', 's2/a.wav'], 1))
    """

    def __init__(self, names: Iterable[str], folder: str = ""):
        self._folder = folder
        self._names_by_end: dict[str, list[str]] = {}
        for name in names:
            for end in _list_ends(_strip_suffix(_fold(self._join(name)))):
                self._names_by_end.setdefault(end, []).append(name)

    def find(self, path: str) -> tuple[list[str], int]:
        """Returns the recordings that share the longest end with a path, and its number of parts.

        Capitals, the form of accents and the suffix only decide between several.
        """
        parts = path.split("/")
        for at, end in enumerate(_list_ends(_strip_suffix(_fold(path)))):
            if names := self._names_by_end.get(end):
                for form in (_fold, str) if len(names) > 1 else ():
                    whole = f"/{form('/'.join(parts[at:]))}"
                    same = [n for n in names if f"/{form(self._join(n))}".endswith(whole)]
                    names = same or names
                return names, len(parts) - at
        return [], 0

    def find_owners(self, tables: Iterable[Path]) -> dict[Path, str]:
        """Returns the recording that each table's name begins with, the longest of several; '' for none.

        Of tables in several folders, those belong to it whose folders are most like its own.

        Example:
            >>> index = NameIndex(["a/s1.wav", "a/s1_0600.wav"])
            >>> list(index.find_owners([Path("s1_0600.BirdNET.results.txt")]).values())
            ['a/s1_0600.wav']
        """
        found = {table: self._find_owner(table) for table in tables}
        longest: dict[str, int] = {}
        for name, length in found.values():
            longest[name] = max(length, longest.get(name, 0))
        return {
            table: name if length == longest[name] else ""
            for table, (name, length) in found.items()
        }

    def _find_owner(self, table: Path) -> tuple[str, int]:
        stem = table.name
        while stem:
            names, length = self.find(f"{table.parent.as_posix()}/{stem}")
            if names:
                return (names[0], length) if len(names) == 1 else ("", 0)
            stem = stem.rpartition(".")[0]
        return "", 0

    def _join(self, name: str) -> str:
        return f"{self._folder}/{name}" if self._folder else name


def match_files(
    files: Iterable[str], folder: Path, names: Iterable[str]
) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Returns the recording of each file that a table names, and name and reason for the other files.

    It is the one below the folder with the longest end of the path in common, if that is a single one and no
    file with another path fits it as well: recorders give the same names in all folders.
    """
    top = folder.absolute().as_posix().rstrip("/")
    index = NameIndex(names, PurePosixPath(top).name)
    paths, found = {}, {}
    for file in files:
        path = file.replace("\\", "/").removeprefix("file://")
        paths[file] = f"{top}{path[1:]}" if path.startswith("./") else path
        found[file] = index.find(paths[file])
    certain = {candidates[0] for candidates, _ in found.values() if len(candidates) == 1}
    matched, skipped, ranks = {}, [], {}
    for file, (candidates, length) in found.items():
        if len(candidates) > 1:
            # A name without folders is that of a recording without, if the others are named with theirs.
            left = [name for name in candidates if name not in certain]
            candidates = left if left == [paths[file]] else candidates
        if len(candidates) == 1:
            matched[file] = candidates[0]
            has_suffix = _fold(file).endswith(_fold(PurePosixPath(candidates[0]).suffix))
            ranks[file] = (paths[file].startswith(f"{top}/"), length, has_suffix)
        else:
            problem = "more than one recording has" if candidates else "no recording has"
            skipped.append((file, f"it is annotated, but {problem} this name"))
    files_by_name: dict[str, list[str]] = {}
    for file, name in matched.items():
        files_by_name.setdefault(name, []).append(file)
    for name, rivals in files_by_name.items():
        whole = {file: _complete(paths[file], name) for file in rivals}
        for file in rivals:
            for other in rivals:
                if ranks[other] >= ranks[file] and not _is_same(whole[file], whole[other]):
                    reason = f"it is annotated, but the only recording of this name may be {other}"
                    skipped.append((file, reason))
                    del matched[file]
                    break
    return matched, skipped


def _complete(path: str, name: str) -> str:
    """Returns a folded path, with the suffix of its recording if it has none."""
    path = _fold(path)
    return path if _strip_suffix(path) != path else path + _fold(PurePosixPath(name).suffix)


def _is_same(path: str, other: str) -> bool:
    """Returns whether one of two paths is the end of the other."""
    return f"/{path}".endswith(f"/{other}") or f"/{other}".endswith(f"/{path}")


def _fold(text: str) -> str:
    return normalize(normalize(text).casefold())


def _strip_suffix(path: str) -> str:
    """Returns a folded path without the suffix of a sound file."""
    stem, dot, suffix = path.rpartition(".")
    return stem if dot + suffix in _SUFFIXES else path


def _list_ends(path: str) -> Iterator[str]:
    """Yields the path, then without its first part, and so on."""
    parts = path.split("/")
    for at in range(len(parts)):
        yield "/".join(parts[at:])
