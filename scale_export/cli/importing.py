"""``scale-export import``."""

from __future__ import annotations

from scale_export.core.extras import need
from scale_export.core.progress import WorkLog
from scale_export.pipeline.request import ImportRequest

from .display import quiet_libraries, show
from .options import Json, command


@command(ImportRequest)
@quiet_libraries()
def import_(request: ImportRequest, *, as_json: Json = False) -> int:
    """Make a coefficient file of scalars that another program trained: a plain state dict, by the pattern of its keys.

    Example: scale-export import trained.pt --model path/to/base --scope last --head-pattern "layers.{layer}.head_scale"
    --out spatial.pt
    """
    need("torch")
    from scale_export.pipeline.scalars import import_scalars

    made = import_scalars(request, WorkLog())
    heads = [float(s) for row in made.head_scale for s in row]
    facts = {
        "path": str(request.out),
        "scope": made.scope,
        "layers": list(made.layer_indices),
        "scalars": made.count,
        "head_scale_range": [min(heads), max(heads)],
        "mlp_scale_range": [float(made.mlp_scale.min()), float(made.mlp_scale.max())],
        "base_model": made.base.base_model,
    }
    lines = [
        f"{made.count} scalars of {len(made.layer_indices)} layers, scope {made.scope}, s from {min(heads):.3g} to "
        f"{max(heads):.3g} in heads and {made.mlp_scale.min():.3g} to {made.mlp_scale.max():.3g} in MLPs",
        f"Coefficient file: {request.out}",
    ]
    return show(facts, lines, as_json)
