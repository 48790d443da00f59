"""Packages on the hub: the folder that a name means."""

from __future__ import annotations

import glob
from pathlib import Path

from scale_export.core.errors import UserError
from scale_export.core.hub import HubName, fetch, fetch_file, hub_name
from scale_export.core.options import StrPath

from .manifest import MANIFEST_NAME, read_manifest


def package_directory(spec: StrPath) -> Path:
    """The folder of a package: the path itself, or the hub's cache, where a package of the hub is fetched to.

    Only what the manifest lists is fetched; nothing of it is verified here but the manifest's own hash.

    Raises:
        UserError: the hub doesn't give it, or it is no package.
    """
    name = hub_name(spec)
    if name is None:
        return Path(spec)
    manifest = fetch_file(name, MANIFEST_NAME, "package")
    if manifest is None:
        raise UserError(
            f"{name} on the hub holds no {MANIFEST_NAME}, so it is no package: name one that `push` put there"
        )
    listed = read_manifest(manifest).files
    commit = HubName(name.repo, manifest.parent.name)  # so that a push in between mixes nothing
    return fetch(commit, "package", files=[MANIFEST_NAME, *map(glob.escape, listed)])
