"""Writing graphs: always with external data, always the same bytes for the same graph."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from scale_export.core.version import __version__


def save_model(model: ir.Model, path: Path) -> None:
    """Write the graph to ``path`` and its weights to ``path.data`` beside it."""
    model.producer_name = "scale-export"
    model.producer_version = __version__
    model.doc_string = None
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for output in node.outputs:
            output.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    ir.save(model, path, external_data=f"{path.name}.data", max_workers=1)
