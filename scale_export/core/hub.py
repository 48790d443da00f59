"""Models and packages on the Hugging Face hub: what names one, and every refusal as one sentence.

A name is sent to the hub only where it can be nothing else: what exists here wins, and what looks like a path is one.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from .errors import UserError
from .options import StrPath

SCHEME: Final = "hf://"
"""Before a hub id where a folder here has the owner's name."""
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_NAME: Final = re.compile(rf"(?P<repo>{_PART}/{_PART})(?:@(?P<revision>[A-Za-z0-9][A-Za-z0-9._/-]*))?")
_LOG_IN: Final = "log in with `hf auth login`, or set HF_TOKEN"


@dataclass(frozen=True, slots=True)
class HubName:
    """A repository of models: its id ``OWNER/NAME``, and a branch, tag or commit of it (None: its main branch)."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


def hub_name(spec: StrPath) -> HubName | None:
    """What ``OWNER/NAME`` or ``OWNER/NAME@REVISION`` names on the hub; None where it names a place on this disk.

    A path object, whatever exists here, and a name in a folder that exists here are places. ``hf://`` before it says
    that it is none.

    Raises:
        UserError: ``hf://`` before something that is no hub id.
    """
    if isinstance(spec, Path):
        return None
    explicit = spec.startswith(SCHEME)
    found = _NAME.fullmatch(spec.removeprefix(SCHEME))
    if found is None:
        if explicit:
            raise UserError(f"{spec} is no hub id: write {SCHEME}OWNER/NAME or {SCHEME}OWNER/NAME@REVISION")
        return None
    if not explicit and (os.path.lexists(spec) or Path(spec).parent.is_dir()):
        return None
    return HubName(found["repo"], found["revision"])


def fetch_file(name: HubName, file: str, what: str) -> Path | None:
    """One file of a repository, in the hub's cache; None where it has none of that name.

    Raises:
        UserError: the hub doesn't give it; ``what`` says in the sentence what was asked for.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    with refusals(name, what):
        try:
            return Path(hf_hub_download(name.repo, file, revision=name.revision))
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            return None


def fetch(name: HubName, what: str, *, files: Sequence[str]) -> Path:
    """The snapshot of a repository in the hub's cache, with the files that one of the patterns matches.

    Raises:
        UserError: as ``fetch_file``.
    """
    from huggingface_hub import snapshot_download

    with refusals(name, what):
        return Path(snapshot_download(name.repo, revision=name.revision, allow_patterns=list(files)))


def stored_sizes(name: HubName) -> Mapping[str, int] | None:
    """Bytes of every file of a repository, by its path; None where the hub doesn't say.

    Whoever fetches next is told why: the cache may have what the hub can't be asked for.
    """
    from huggingface_hub import HfApi

    try:
        with refusals(name, "repository"):
            files = HfApi().model_info(name.repo, revision=name.revision, files_metadata=True).siblings
    except UserError:
        return None
    return {file.rfilename: file.size for file in files or () if file.size is not None}


@contextmanager
def refusals(name: HubName, what: str) -> Iterator[None]:
    """Turn what the hub, its client or the network refuses within into one sentence of a ``UserError``."""
    from huggingface_hub import errors

    try:
        yield
    except (
        errors.HfHubHTTPError,
        errors.HFValidationError,
        errors.LocalEntryNotFoundError,
        errors.OfflineModeIsEnabled,
        _transport_error(),
    ) as error:
        _refuse(error, name, what)


def _transport_error() -> type[Exception]:
    """The base of what the client's HTTP library raises; which library that is differs between its versions."""
    from huggingface_hub.utils import get_session

    library = importlib.import_module(type(get_session()).__module__.partition(".")[0])
    found: type[Exception] = library.HTTPError
    return found


def _refuse(error: Exception, name: HubName, what: str) -> NoReturn:
    from huggingface_hub import errors

    answer = getattr(error, "response", None)
    status = getattr(answer, "status_code", None)
    match error:
        case errors.GatedRepoError():
            why = f"{what} {name} is gated on the hub: ask for access on its page, then {_LOG_IN}"
        case errors.RevisionNotFoundError():
            why = f"{what} {name.repo} has no revision {name.revision!r} on the hub: name a branch, a tag or a commit"
        case errors.RepositoryNotFoundError():
            why = (
                f"the hub has no {what} {name} that you may see: check the name or, where it is private, {_LOG_IN}; "
                f"for a folder on this disk give its path"
            )
        case errors.HFValidationError():
            why = f"{name} is no hub id ({error}): write OWNER/NAME"
        case errors.LocalEntryNotFoundError() | errors.OfflineModeIsEnabled():
            why = (
                f"{what} {name} is not in this machine's hub cache, and the hub cannot be reached: connect (and leave "
                f"HF_HUB_OFFLINE unset), or give a folder on this disk"
            )
        case _ if status in (401, 403):
            why = (
                f"the hub does not let you use {what} {name} in this way ({status}): {_LOG_IN} of one who may"
            )
        case _ if status is not None:
            why = f"the hub answered {status} about {what} {name}: try again later"
        case _:
            why = f"the hub cannot be reached about {what} {name} ({type(error).__name__}): check the network"
    raise UserError(why) from error
