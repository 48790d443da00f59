"""The processor's files of a package: the base's own, pictures' size aside."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from scale_export.device.package import PROCESSOR_FILES
from scale_export.model.base import BaseModel
from scale_export.model.files import copy_model_file


def copy_processor(base: BaseModel, directory: Path) -> None:
    """Copy the processor's files, pictures' size aside, so that the device prepares inputs as PyTorch's side does.

    Raises:
        UserError: one of them is a link that leads elsewhere, or no regular file.
    """
    for name in PROCESSOR_FILES:
        if os.path.lexists(base.directory / name):
            copy_model_file(base.directory, name, directory)
    if base.picture_size is not None:
        _set_picture_size(directory, base.picture_size)


def _set_picture_size(directory: Path, size: Mapping[str, int]) -> None:
    """Write another ``size`` into an image processor's files, old ones and new."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = directory / name
        settings = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        images = settings.get("image_processor") if name == "processor_config.json" else settings
        if images:
            for older in ("min_pixels", "max_pixels"):  # which would be read in its place
                images.pop(older, None)
            images["size"] = dict(size)
            path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
