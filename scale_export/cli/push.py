"""``scale-export push``."""

from __future__ import annotations

from dataclasses import asdict

from scale_export.core.progress import WorkLog
from scale_export.pipeline.request import PushRequest

from .display import quiet_libraries, show
from .options import Json, command


@command(PushRequest)
@quiet_libraries()
def push(request: PushRequest, *, as_json: Json = False) -> int:
    """Put a package on the Hugging Face hub, with a model card made from its report.

    Example: scale-export push spatial-cpu USER/spatial-cpu --tag v1
    """
    from scale_export.pipeline.push import push_package

    done = push_package(request, WorkLog())
    at = done.repo if request.tag is None else f"{done.repo}@{request.tag}"
    lines = [f"Pushed {done.files} files: {done.url}"]
    if done.removed:
        lines.append(f"Removed there: {', '.join(done.removed)}")
    if done.card_kept:
        lines.append(
            "README.md was left as it is, since somebody wrote it: the package's own card is not there"
        )
    elif done.licence is None:
        lines.append("The model card names no licence, since the base model's is not known: give --license")
    lines.append(f'Run it anywhere: scale-export run {at} --image photo.jpg --prompt "…"')
    return show(asdict(done), lines, as_json)
