"""Where a checkpoint's files are: a folder on disk, or one commit of a hub repository.

A branch may move at any time, so it is resolved to a commit once, in `find`, and everything is fetched of that commit.
huggingface_hub, which does the downloads, is imported only when there is something to download. Its cache is a folder
of each repository with

    refs/REVISION              the commit that a branch or tag was, when it was last asked for
    snapshots/COMMIT/FILE      what was downloaded of a commit
    .no_exist/COMMIT/FILE      an empty file for each name that was asked for and that the commit lacks

Source: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from altclip_jax.files.whole import settle

_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_INSTEAD = "To use files on disk instead, pass the path of a folder that holds the repository's files."

# The client's transport differs between its versions, requests or httpx: their errors are told by name.
_TRANSPORTS = frozenset({"RequestException", "TransportError"})
_NO_ANSWER = frozenset({"ConnectionError", "Timeout", "ChunkedEncodingError", "TransportError"})
_SET_UP_WRONG = frozenset({"SSLError", "ProxyError"})

_logger = logging.getLogger(__name__)


class Files(NamedTuple):
    """Files of one purpose.

    Attributes:
        purpose: What errors call them.
        forms: What they may be, best first, each some names (a * stands for anything). Those of the first form are
            fetched of which any name without a * is there.
    """

    purpose: str
    forms: tuple[tuple[str, ...], ...]

    def names(self) -> list[str]:
        """Returns the names in all forms, without those that have a *."""
        return [name for form in self.forms for name in form if "*" not in name]

    def among(self, names: frozenset[str]) -> list[str]:
        """Returns which of these names are fetched."""
        form = next((form for form in self.forms if not names.isdisjoint(form)), ())
        return sorted(name for name in names if any(fnmatchcase(name, wanted) for wanted in form))


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Files that belong together: those of a folder, or of one commit of a hub repository.

    Attributes:
        folder: Where they are, once they were fetched.
        commit: Of the repository; None for a folder of the user's.
    """

    folder: Path
    commit: str | None = None

    def fetch(self, *wanted: Files) -> Path:
        """Returns the folder with what is wanted; what is not in the repository is left out.

        Raises:
            FileNotFoundError: not downloaded yet, and the network is not to be used or does not answer.
            OSError: the repository is gated, or the network failed.
        """
        return self.folder


def find(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Snapshot:
    """Returns a folder as it is, and of a hub repository the commit that a revision is now.

    Where the hub does not answer it is the commit that the revision was when it was last downloaded. Where the hub
    answers that there is no such repository or revision, or that this user may not have it, what was downloaded is
    not used either.

    Args:
        source: A folder, or a repository id such as "BAAI/AltCLIP".
        revision: Branch, tag or commit.
        local_files_only: Use what has been downloaded before, never the network.
        cache_dir: Where downloads are kept, instead of the hub's usual place.

    Raises:
        FileNotFoundError: neither a folder nor a repository, or no such revision; or not downloaded yet and the network
            is not to be used or does not answer.
        OSError: the repository is gated, or the network failed.
    """
    path = Path(source)
    if path.is_dir():
        settle(path)
        return Snapshot(path)
    if path.exists():
        raise FileNotFoundError(f"{path} is a file; expected the folder that holds it with its config.json.")
    if not isinstance(source, str) or not _ID.fullmatch(source) or source.startswith("."):
        raise FileNotFoundError(f"There is no folder {source}, and it is not a hub id such as 'BAAI/AltCLIP' either.")
    return _find_on_hub(source, revision or "main", local_files_only, cache_dir)


def fetch(source: str | os.PathLike[str], *wanted: Files, **where: Any) -> Path:
    """Returns a folder with everything that is wanted of a source; see `find` and `Snapshot.fetch`."""
    return find(source, **where).fetch(*wanted)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Commit(Snapshot):
    commit: str
    repository: str
    revision: str
    names: frozenset[str] | None  # all files of the commit; None: the hub was not asked, or did not answer

    def fetch(self, *wanted: Files) -> Path:
        if self.names is None:
            self._require_downloaded(*wanted)
            return self.folder
        names = [name for files in wanted for name in files.among(self.names)]
        missing = [name for name in names if not (self.folder / name).is_file()]
        with _explained(self.repository, self.revision), ThreadPoolExecutor(8, "altclip-hub") as pool:
            if missing:
                list(pool.map(self._download, missing))
            elif names:
                self._require_permission(names[0])
        self._note([name for files in wanted for name in files.names() if name not in self.names])
        return self.folder

    @property
    def _storage(self) -> Path:
        return self.folder.parent.parent

    def _download(self, name: str) -> None:
        import huggingface_hub

        huggingface_hub.hf_hub_download(
            self.repository, name, revision=self.commit, cache_dir=str(self._storage.parent)
        )

    def _require_permission(self, name: str) -> None:
        """Asks for a file that is here already: a gated repository tells anyone what it has, and gives it to few."""
        import huggingface_hub
        from huggingface_hub import constants

        url = huggingface_hub.hf_hub_url(self.repository, name, revision=self.commit)
        try:
            huggingface_hub.get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        except Exception as error:
            if not _unanswered(error):
                raise
            _tell(self, error)

    def _require_downloaded(self, *wanted: Files) -> None:
        for files in wanted:
            names = files.names()
            there = any((self.folder / name).is_file() for name in names)
            if not there and not all((self._storage / ".no_exist" / self.commit / name).is_file() for name in names):
                raise FileNotFoundError(
                    f"{_where(self.repository, self.revision)} has been downloaded before, but not its {files.purpose}"
                    f" ({' or '.join(names[:3])}), and the network was not to be used or did not answer. {_INSTEAD}"
                )

    def _note(self, lacking: list[str]) -> None:
        """Notes in the cache what the revision is and what it lacks, last of all: so what is noted there is whole."""
        with contextlib.suppress(OSError):  # a cache that cannot be written to is used as it is
            for name in lacking:
                mark = self._storage / ".no_exist" / self.commit / name
                if not mark.is_file():
                    mark.parent.mkdir(parents=True, exist_ok=True)
                    mark.touch()
            if _noted(self._storage, self.revision) != self.commit:
                reference = self._storage / "refs" / self.revision
                reference.parent.mkdir(parents=True, exist_ok=True)
                reference.write_text(self.commit, encoding="ascii")


def _find_on_hub(
    repository: str, revision: str, local_files_only: bool, cache_dir: str | os.PathLike[str] | None
) -> Snapshot:
    import huggingface_hub
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE if cache_dir is None else cache_dir)
    storage = cache / f"models--{repository.replace('/', '--')}"
    made = functools.partial(_Commit, repository=repository, revision=revision)
    reason: Exception | None = None
    if not local_files_only and not constants.HF_HUB_OFFLINE:
        with _explained(repository, revision):
            try:
                info = huggingface_hub.HfApi().model_info(
                    repository, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT
                )
            except Exception as error:
                if not _unanswered(error):
                    raise
                reason = error
            else:
                names = frozenset(file.rfilename for file in info.siblings or ())
                return made(_snapshot(storage, str(info.sha)), commit=str(info.sha), names=names)
    commit = _noted(storage, revision)
    if commit is None or not _snapshot(storage, commit).is_dir():
        raise FileNotFoundError(
            f"{_where(repository, revision)} has not been downloaded before, and the network was not to be used or did"
            f" not answer. {_INSTEAD}"
        ) from reason
    found = made(_snapshot(storage, commit), commit=commit, names=None)
    if reason is not None:
        _tell(found, reason)
    return found


def _snapshot(storage: Path, commit: str) -> Path:
    if not _COMMIT.fullmatch(commit):
        raise OSError(f"the answer names no commit, but {commit!r}")
    return storage / "snapshots" / commit


def _noted(storage: Path, revision: str) -> str | None:
    """Returns the commit that a revision is by what was downloaded before."""
    if _COMMIT.fullmatch(revision):
        return revision
    try:
        commit = (storage / "refs" / revision).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return commit if _COMMIT.fullmatch(commit) else None


def _unanswered(error: Exception) -> bool:
    """Tells whether an error says nothing of the repository: no connection, no answer in time, a server in trouble."""
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        status = 0 if error.response is None else error.response.status_code
        return status >= 500 or status in (408, 429)
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return not kinds.isdisjoint(_NO_ANSWER) and kinds.isdisjoint(_SET_UP_WRONG)


def _tell(found: _Commit, reason: Exception) -> None:
    _logger.info(
        "The hub did not answer (%s): %s is taken as it was downloaded before, commit %s.",
        type(reason).__name__,
        _where(found.repository, found.revision),
        found.commit,
    )


def _where(repository: str, revision: str) -> str:
    return f"{repository!r}" + (f" at revision {revision!r}" if revision != "main" else "")


@contextlib.contextmanager
def _explained(repository: str, revision: str) -> Iterator[None]:
    """Turns whatever the client raises into a sentence."""
    from huggingface_hub import errors

    where = _where(repository, revision)
    try:
        yield
    except errors.GatedRepoError as error:
        raise PermissionError(
            f"The hub repository {where} asks for permission: accept its terms on its page and log in. {_INSTEAD}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"The hub repository {repository!r} has no revision {revision!r}. {_INSTEAD}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"There is no folder {repository!r} here and no public repository of that name on the hub. {_INSTEAD}"
        ) from error
    except errors.HFValidationError as error:
        raise FileNotFoundError(
            f"{repository!r} is neither a folder nor a valid hub id ({error}). {_INSTEAD}"
        ) from error
    except Exception as error:
        if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
            error = error.__cause__  # why the file could not be had
        kinds = {kind.__name__ for kind in type(error).__mro__}
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise PermissionError(
                f"The hub refuses {where} to you ({status}): log in, with a token that is valid and may read it."
                f" {_INSTEAD}"
            ) from error
        if not isinstance(error, OSError) and kinds.isdisjoint(_TRANSPORTS):
            raise
        told = (
            str(error) if kinds.isdisjoint(_TRANSPORTS) else f"{type(error).__name__}{f' {status}' if status else ''}"
        )
        raise ConnectionError(f"Downloading {where} from the hub failed ({told}). {_INSTEAD}") from error
