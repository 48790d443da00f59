"""Packages on the hub: the folder that a name means."""

from __future__ import annotations

import glob
from pathlib import Path

from scale_export.core.errors import UserError
from scale_export.core.hub import HubName, fetch, fetch_file, hub_name, stored_sizes
from scale_export.core.options import StrPath

from .manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, read_manifest


def package_directory(spec: StrPath) -> Path:
    """The folder of a package: the path itself, or the hub's cache, where a package of the hub is fetched to.

    Only what the manifest lists is fetched, and nothing that is larger than it says; nothing of it is verified here but
    the manifest's own hash.

    Raises:
        UserError: the hub doesn't give it, or it is no package.
    """
    name = hub_name(spec)
    if name is None:
        return Path(spec)
    sizes = stored_sizes(name)
    if sizes is not None and sizes.get(MANIFEST_NAME, 0) > MAX_MANIFEST_BYTES:
        raise UserError(
            f"{name} on the hub holds a {MANIFEST_NAME} of {sizes[MANIFEST_NAME]:,} bytes, and one of a package has "
            f"{MAX_MANIFEST_BYTES:,} at most: name one that `push` put there"
        )
    manifest = fetch_file(name, MANIFEST_NAME, "package")
    if manifest is None:
        raise UserError(
            f"{name} on the hub holds no {MANIFEST_NAME}, so it is no package: name one that `push` put there"
        )
    listed = read_manifest(manifest).files
    for file, size in (sizes or {}).items():
        if file in listed and size > listed[file].size:
            raise UserError(
                f"{name} on the hub holds {file} of {size:,} bytes, and its manifest says {listed[file].size:,}: it is "
                f"not what `push` put there; have it pushed again"
            )
    commit = HubName(name.repo, manifest.parent.name)  # so that a push in between mixes nothing
    return fetch(commit, "package", files=[MANIFEST_NAME, *map(glob.escape, listed)])
