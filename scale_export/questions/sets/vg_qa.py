"""VG-QA in What'sUp's subsets: things in photos of Visual Genome; see ``_whatsup``."""

from __future__ import annotations

from ._whatsup import Files

ON_DISK = True
load = Files(name="vg_qa", picture="vg_images/{}.jpg").load
