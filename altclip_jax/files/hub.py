"""A folder on disk for a folder's path or a hub repository's id.

Downloads go through huggingface_hub, which is imported only when there is something to download.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


def fetch(
    source: str | os.PathLike[str],
    choices: Sequence[Sequence[str]],
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """Returns `source` itself if it is a folder, else the folder into which the repository's files were downloaded.

    Args:
        source: A folder, or a repository id such as "BAAI/AltCLIP".
        choices: Groups of file names (patterns with * are allowed). The first group is always wanted; of the others
            only the first whose first name exists. Names that the repository lacks are left out.
        revision: Branch, tag or commit.
        local_files_only: Use what has been downloaded before, never the network.
        cache_dir: Where downloads are kept, instead of the hub's usual place.

    Raises:
        FileNotFoundError: neither a folder nor a repository; or not downloaded yet and the network is not to be used.
        OSError: the repository is gated or the network failed.
    """
    path = Path(source)
    if path.is_dir():
        return path
    if path.exists():
        raise FileNotFoundError(f"{path} is a file; expected the folder that holds it with its config.json.")
    if not isinstance(source, str) or not _ID.fullmatch(source) or source.startswith("."):
        raise FileNotFoundError(f"There is no folder {source}, and it is not a hub id such as 'BAAI/AltCLIP' either.")
    return _download(source, choices, revision, local_files_only, cache_dir)


def fetch_files(
    source: str | os.PathLike[str],
    names: Sequence[str],
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """Returns a folder with those of `names` that exist; see `fetch`."""
    return fetch(source, [names], revision=revision, local_files_only=local_files_only, cache_dir=cache_dir)


def _download(
    repository: str,
    choices: Sequence[Sequence[str]],
    revision: str | None,
    local_files_only: bool,
    cache_dir: str | os.PathLike[str] | None,
) -> Path:
    import huggingface_hub
    from huggingface_hub import constants, errors

    instead = "To use files on disk instead, pass the path of a folder that holds the repository's files."
    where = f"{repository!r}" + (f" at revision {revision!r}" if revision else "")
    try:
        if local_files_only or constants.HF_HUB_OFFLINE:
            return _downloaded_before(repository, choices, revision, cache_dir)
        files = huggingface_hub.HfApi().list_repo_files(repository, revision=revision)
        return _snapshot(repository, _chosen(choices, files), revision, cache_dir, local_files_only=False)
    except errors.GatedRepoError as error:
        raise PermissionError(
            f"The hub repository {where} asks for permission: accept its terms on its page and log in. {instead}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f"The hub repository {repository!r} has no revision {revision!r}. {instead}") from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"There is no folder {repository!r} here and no public repository of that name on the hub. {instead}"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise FileNotFoundError(
            f"{where} has not been downloaded before, and the network was not to be used or did not answer. {instead}"
        ) from error
    except errors.HFValidationError as error:
        raise FileNotFoundError(
            f"{repository!r} is neither a folder nor a valid hub id ({error}). {instead}"
        ) from error
    except Exception as error:
        # the client's transport differs between its versions: requests, whose errors are OSErrors, or httpx
        if not isinstance(error, OSError) and not type(error).__module__.startswith("httpx"):
            raise
        raise ConnectionError(f"Downloading {where} from the hub failed ({type(error).__name__}). {instead}") from error


def _snapshot(
    repository: str,
    names: Sequence[str],
    revision: str | None,
    cache_dir: str | os.PathLike[str] | None,
    *,
    local_files_only: bool,
) -> Path:
    import huggingface_hub

    folder = huggingface_hub.snapshot_download(
        repository,
        revision=revision,
        allow_patterns=list(names),
        local_files_only=local_files_only,
        cache_dir=None if cache_dir is None else Path(cache_dir),
    )
    return Path(folder)


def _downloaded_before(
    repository: str, choices: Sequence[Sequence[str]], revision: str | None, cache_dir: str | os.PathLike[str] | None
) -> Path:
    """Asks for one alternative after the other: the client may refuse a snapshot that lacks a file it is asked for."""
    from huggingface_hub import errors

    always, *alternatives = choices
    for group in alternatives or [()]:
        try:
            folder = _snapshot(repository, [*always, *group], revision, cache_dir, local_files_only=True)
        except errors.LocalEntryNotFoundError:
            continue
        if not group or any(folder.glob(group[0])):
            return folder
    raise errors.LocalEntryNotFoundError(f"{repository} is not in the cache")


def _chosen(choices: Sequence[Sequence[str]], files: Sequence[str]) -> list[str]:
    always, *alternatives = choices
    for group in alternatives:
        if any(fnmatch(file, group[0]) for file in files):
            return [*always, *group]
    return list(always)
