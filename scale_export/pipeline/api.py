"""The commands as Python functions (``docs/python.md``).

They take what their commands take: the arguments, types and defaults are those of ``FoldRequest`` and
``VerifyRequest``, which the command line is made from too. Exporting libraries load when a function is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scale_export.core.extras import need_export
from scale_export.core.options import takes
from scale_export.core.progress import WorkLog

from .request import FoldRequest, VerifyRequest

if TYPE_CHECKING:
    from .fold import Outcome
    from .verify import Verification

__all__ = ["fold", "verify"]


@takes(FoldRequest)
def fold(request: FoldRequest) -> Outcome:
    """Fold scalars into a base model, quantize, export, verify, and write the package.

    ``fold("spatial.pt", "cpu", precision="int4")`` is ``scale-export fold --coeffs spatial.pt --target cpu --precision
    int4``.

    Returns:
        where the package lies, whether its parity legs passed (else it lies in ``<out>.failed``), and the
        parity object.

    Raises:
        UserError: whatever the command line would refuse with exit code 2.
    """
    need_export()
    from .fold import fold_package

    return fold_package(request, WorkLog(quiet=request.quiet))


@takes(VerifyRequest)
def verify(request: VerifyRequest) -> Verification:
    """Check a package: its hashes, its golden cases and, with the base model, every parity leg again.

    ``verify("spatial-cpu", selftest_only=True)`` is ``scale-export verify spatial-cpu --selftest``. What ``require``
    may say is in ``requirements``, what signatures are in ``signing``.

    Returns:
        whether everything passed, and what was measured.

    Raises:
        UserError: whatever the command line would refuse with exit code 2.
    """
    if not request.selftest_only:
        need_export()
    from .verify import verify_package

    return verify_package(request, WorkLog(quiet=request.quiet))
