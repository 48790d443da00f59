"""From a package to a repository on the hub, with a model card made from its report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from scale_export.coefficients.file import load_coefficients
from scale_export.core.borders import refusing
from scale_export.core.errors import UserError
from scale_export.core.hub import SCHEME, HubName, fetch_file, hub_name, refusals
from scale_export.core.progress import WorkLog
from scale_export.core.version import __version__
from scale_export.package.manifest import (
    MANIFEST_NAME,
    STRANGERS,
    PackageFiles,
    open_package_files,
    read_manifest,
)
from scale_export.package.stored_report import read_report
from scale_export.report.card import CardFacts, is_card, model_card

from .request import PushRequest

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["Pushed", "push_package"]

CARD: Final = "README.md"
SHOWN: Final = 3
"""How many strangers a refusal lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """Where a package went.

    Attributes:
        url: the repository's page.
        commit: its state with the package.
        removed: files of the package that lay there before.
        card_kept: whether a README that somebody wrote was left as it is.
        licence: of the base model, as the card says; None where it is not known.
    """

    repo: str
    url: str
    commit: str
    files: int
    removed: tuple[str, ...]
    card_kept: bool
    licence: str | None


def push_package(request: PushRequest, log: WorkLog) -> Pushed:
    """Upload a package whose every hash is right, in one commit, with a model card.

    Files of a package that lay there before go. A repository with anything else in it is refused, and a README that
    somebody wrote is kept.

    Raises:
        UserError: not a package, no hub id, a repository that holds other files, or what the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    name = _repository(request.repo)
    with log.stage("check the package"):
        files = open_package_files(request.package)
    api = HfApi(library_name="scale-export", library_version=__version__)
    base = _base(request, files)
    ours = [MANIFEST_NAME, *files.manifest.files]
    with log.stage(f"push to {name}"), refusals(name, "repository"):
        url = str(api.create_repo(name.repo, private=request.private or None, exist_ok=True))
        present = set(api.list_repo_files(name.repo))
        former = _former(name) if MANIFEST_NAME in present else frozenset()
        _check_strangers(name, present - former - {*ours, *STRANGERS, MANIFEST_NAME})
        kept = CARD in present and not _is_ours(name)
        licence = request.license or _licence(api, base)
        operations = [CommitOperationAdd(path, str(files.directory / path)) for path in ours]
        if not kept:
            operations.append(CommitOperationAdd(CARD, _card(name, files, base, licence).encode()))
        removed = sorted(former & present - {*ours})
        operations += [CommitOperationDelete(path) for path in removed]
        message = f"{files.manifest.name}, by scale-export {files.manifest.tool.version}"
        commit = api.create_commit(name.repo, operations, commit_message=message)
        if request.tag is not None:
            api.create_tag(name.repo, tag=request.tag, revision=commit.oid)
    return Pushed(
        repo=name.repo,
        url=url,
        commit=commit.oid,
        files=len(ours),
        removed=tuple(removed),
        card_kept=kept,
        licence=licence,
    )


def _repository(text: str) -> HubName:
    name = hub_name(text if text.startswith(SCHEME) else f"{SCHEME}{text}")
    assert name is not None, "the scheme says that it is one"
    if name.revision is not None:
        raise UserError(f"{text} names a revision, and a push makes a new one: leave out @{name.revision}")
    return name


def _base(request: PushRequest, files: PackageFiles) -> HubName | None:
    """The base model on the hub, as asked or as the package names it."""
    if request.base_model is not None:
        return _repository(request.base_model)
    return hub_name(files.manifest.base_model)


def _former(name: HubName) -> frozenset[str]:
    """The files of the package that lies there; none where its manifest can't be read."""
    place = fetch_file(name, MANIFEST_NAME, "repository")
    try:
        return frozenset() if place is None else frozenset({MANIFEST_NAME, *read_manifest(place).files})
    except UserError:
        return frozenset()


def _check_strangers(name: HubName, strangers: set[str]) -> None:
    if strangers:
        shown = ", ".join(sorted(strangers)[:SHOWN])
        more = f" and {len(strangers) - SHOWN} more" if len(strangers) > SHOWN else ""
        raise UserError(
            f"{name} on the hub holds other files ({shown}{more}), which a package may not lie beside: push to another "
            f"repository, or remove them there"
        )


def _is_ours(name: HubName) -> bool:
    place = fetch_file(name, CARD, "repository")
    return place is None or is_card(place.read_text(encoding="utf-8", errors="replace"))


def _licence(api: HfApi, base: HubName | None) -> str | None:
    """What the hub says of the base model's licence; None where it doesn't, or can't be asked."""
    if base is None:
        return None
    try:
        with refusals(base, "base model"):
            card = api.model_info(base.repo).card_data
    except UserError:
        return None
    found = card.get("license") if card else None
    return found if isinstance(found, str) else None


def _card(name: HubName, files: PackageFiles, base: HubName | None, licence: str | None) -> str:
    facts = CardFacts(
        repo=name.repo,
        manifest=files.manifest,
        coefficients=load_coefficients(files.path(files.manifest.coefficients)),
        parity=read_report(files),
        base=base.repo if base else None,
        licence=licence,
    )
    with refusing(f"package {files.directory} has a report that no card can be made from", "export it again"):
        return model_card(facts)
