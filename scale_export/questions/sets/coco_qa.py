"""COCO-QA in What'sUp's subsets: things in photos of COCO's validation split of 2017; see ``_whatsup``."""

from __future__ import annotations

from ._whatsup import Files

ON_DISK = True
load = Files(name="coco_qa", picture="val2017/{:012}.jpg").load
