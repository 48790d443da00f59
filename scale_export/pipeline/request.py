"""What commands are asked, on the command line as in Python. No framework is imported here."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from scale_export.core.options import Option, StrPath, check
from scale_export.core.words import ScalarValues, Scope
from scale_export.plan.options import ExportOptions, Origins, ProofOptions

__all__ = ["FoldRequest", "ImportRequest", "PushRequest", "VerifyRequest"]

Require = Annotated[
    Sequence[str],
    Option(help="What must hold beside the limits, such as int4.retention>=0.9; may be given several times."),
]
PackageSpec = Annotated[
    StrPath,
    Option(
        argument="PKG",
        help="A package: the directory that fold wrote, or OWNER/NAME[@REVISION] on the hub.",
        parse=str,
    ),
]
Quiet = Annotated[bool, Option(help="Show no progress on a terminal.", on_command_line=False)]


@dataclass(frozen=True)
class FoldPlaces:
    """What is folded, for which target, and where the package goes."""

    coeffs: Annotated[
        StrPath,
        Option(
            flags=("--coeffs", "-c"), help="The coefficient file, such as spatial.pt or spatial.safetensors."
        ),
    ]
    target: Annotated[
        str,
        Option(flags=("--target", "-t"), help="The target: a name that `targets` lists, or a TOML file."),
    ]
    model: Annotated[
        str | None,
        Option(help="Directory or hub id of the base model; by default what the coefficient file names."),
    ] = field(default=None, kw_only=True)
    out: Annotated[
        StrPath | None,
        Option(flags=("--out", "-o"), help="Package directory; by default COEFFS-TARGET in this directory."),
    ] = field(default=None, kw_only=True)

    @property
    def destination(self) -> Path:
        """Where the package goes: ``out``, or ``<coefficients>-<target>`` in the current directory."""
        return Path(self.out or f"{Path(self.coeffs).stem}-{Path(self.target).stem}")


@dataclass(frozen=True, kw_only=True)
class FoldRequest(ProofOptions, ExportOptions, FoldPlaces):
    """What ``scale-export fold`` is asked."""

    budget: Annotated[
        str | None,
        Option(
            help="Choose 4 or 8 bits per matrix to meet size=1.2MB, decode=30tok/s, loss<=1pp or kl<=0.01."
        ),
    ] = None
    require: Require = ()
    force: Annotated[bool, Option(help="Replace an existing package, in one step.")] = False
    quiet: Quiet = True


@dataclass(frozen=True)
class VerifyRequest(ProofOptions, Origins):
    """What ``scale-export verify`` is asked."""

    package: PackageSpec
    coeffs: Annotated[
        StrPath | None,
        Option(
            help="The coefficient file that the package should hold: its scalars are compared with the package's."
        ),
    ] = field(default=None, kw_only=True)
    require: Require = field(default=(), kw_only=True)
    public_key: Annotated[
        StrPath | None, Option(help="Check the package's signature with this key first.")
    ] = field(default=None, kw_only=True)
    signature: Annotated[
        StrPath | None, Option(help="The signature file; by default PKG.sig, beside the package.")
    ] = field(default=None, kw_only=True)
    selftest_only: Annotated[
        bool,
        Option(flags=("--selftest",), help="Check hashes and golden cases only: no base model, no torch."),
    ] = field(default=False, kw_only=True)
    device_result: Annotated[
        StrPath | None,
        Option(help="Check what a device's self-test saved: a JSON file of this very package."),
    ] = field(default=None, kw_only=True)
    certificate: Annotated[
        StrPath | None,
        Option(help="Write a copy of the package's parity report with the device's leg to this file."),
    ] = field(default=None, kw_only=True)
    save: Annotated[
        StrPath | None,
        Option(help="Save this machine's self-test to this file, for --device-result elsewhere."),
    ] = field(default=None, kw_only=True)
    quiet: Quiet = field(default=True, kw_only=True)


@dataclass(frozen=True, kw_only=True)
class ImportRequest:
    """What ``scale-export import`` is asked."""

    state: Annotated[
        StrPath,
        Option(
            argument="FILE", help="The state dict: .safetensors, or what torch.save wrote of plain tensors."
        ),
    ]
    model: Annotated[
        str, Option(help="Directory or hub id of the base model that the scalars were trained on.")
    ]
    scope: Annotated[
        Scope,
        Option(help="Where the scalars act. last: on the last token of each step; all: on every token."),
    ]
    out: Annotated[
        StrPath,
        Option(flags=("--out", "-o"), help="Coefficient file to write, .safetensors or .pt."),
    ]
    head_pattern: Annotated[
        str | None,
        Option(help="Key of a layer's heads, {layer} for its number, such as layers.{layer}.head_scale."),
    ] = None
    mlp_pattern: Annotated[
        str | None,
        Option(help="Key of a layer's MLP, likewise, such as layers.{layer}.mlp_scale."),
    ] = None
    values: Annotated[
        ScalarValues | None,
        Option(
            help="What the keys hold. s: the factors themselves, 1 changes nothing; a: what was trained, of "
            "s = 1 + r·tanh(a). By default s, and values around 0 are refused."
        ),
    ] = None
    bound: Annotated[float | None, Option(help="r, with --values a; 1 where left out.")] = None
    data: Annotated[
        str | None,
        Option(
            help="Question set that they were trained on, NAME or NAME:DIR: `fold` then calibrates on it and asks it."
        ),
    ] = None
    force: Annotated[bool, Option(help="Replace an existing file.")] = False

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class PushRequest:
    """What ``scale-export push`` is asked."""

    package: Annotated[StrPath, Option(argument="PKG", help="A package directory that fold wrote.")]
    repo: Annotated[
        str, Option(argument="REPO", help="OWNER/NAME on the hub; it is made where there is none.")
    ]
    private: Annotated[bool, Option(help="Make a new repository that only its owner sees.")] = False
    base_model: Annotated[
        str | None,
        Option(help="Hub id of the base model, for the model card; by default the package's, if it is one."),
    ] = None
    license: Annotated[
        str | None,
        Option(
            help="Licence of the base model in the hub's words, such as apache-2.0; by default what the hub says of it."
        ),
    ] = None
    tag: Annotated[
        str | None, Option(help="Tag the pushed state, such as v1; OWNER/NAME@v1 then names it.")
    ] = None
