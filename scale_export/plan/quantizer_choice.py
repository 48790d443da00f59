"""Choosing a quantization method for a plan, and what it is calibrated on."""

from __future__ import annotations

from scale_export.coefficients.file import Coefficients
from scale_export.core.defaults import CALIBRATION
from scale_export.core.errors import UserError
from scale_export.core.words import Precision
from scale_export.model.base import BaseModel
from scale_export.quantize import CalibrationOptions, Method, load_quantizer, quantizer_names
from scale_export.quantize.sources import QuestionSource, SelfSource, TextSource, parse_source
from scale_export.questions import dataset_names, load_questions

from .options import ExportOptions
from .reference_choice import must_stream

DEFAULT_QUANTIZERS: dict[Precision, tuple[str, str]] = {
    "int8": ("rtn", "rtn"),
    "int4": ("gptq", "rtn"),
    "w8a8": ("smoothquant", "smoothquant"),
}
"""The quantizer of each precision with calibration, and without; measured in docs/quantization.md."""


def choose_quantizer(
    coefficients: Coefficients, base: BaseModel, precision: Precision, options: ExportOptions
) -> tuple[str | None, CalibrationOptions | None, tuple[str, ...]]:
    """The method, what it is calibrated on, and the sentence that says why.

    Raises:
        UserError: a method that there isn't or that the precision doesn't take, or no questions where they are needed.
    """
    if precision not in DEFAULT_QUANTIZERS:
        if options.quantizer != "auto":
            raise UserError(
                f"--quantizer {options.quantizer} is refused: it rounds int8 and int4 weights, and these are "
                f"{precision}; leave it out or name another --precision"
            )
        return None, None, ()
    too_large = must_stream(base.checkpoint, "auto") is not None
    calibration, why = _calibration(coefficients, options, too_large=too_large)
    name, who = options.quantizer, "as asked"
    lesser: tuple[str, ...] = ()
    if name == "auto":
        without = calibration is None or too_large
        name, who = DEFAULT_QUANTIZERS[precision][without], f"the default of {precision}"
        better = DEFAULT_QUANTIZERS[precision][False]
        if name != better:
            who = f"the fallback of {precision}"
            lesser = (_lesser(better, name, too_large=too_large),)
    method = load_quantizer(name)
    _check_takes(method, name, precision)
    if precision == "w8a8" and calibration is None:
        raise UserError(
            f"w8a8 needs calibration for the ranges of activations, and there is none, since "
            f"{_no_calibration(too_large)}: name a question set with --calib, or use --precision int8, which needs none"
        )
    if method.calibration == "required" and calibration is None:
        raise UserError(
            f"--quantizer {name} needs calibration, and there is none, since {_no_calibration(too_large)}: name a "
            f"question set with --calib, or use --quantizer rtn, which needs none"
        )
    if method.calibration == "unused" and precision != "w8a8":
        return name, None, (f"The quantizer is {name}, {who}; it takes no calibration.", *lesser)
    on = "without calibration" if calibration is None else f"calibrated on {calibration}"
    return name, calibration, (f"The quantizer is {name}, {who}, {on}.", *why, *lesser)


def _calibration(
    coefficients: Coefficients, options: ExportOptions, *, too_large: bool
) -> tuple[CalibrationOptions | None, tuple[str, ...]]:
    """What to calibrate on, and a sentence that says why where nobody named it.

    Raises:
        UserError: a source that can't be loaded, or a model too large to write what it is calibrated on.
    """
    calibration = calibration_options(coefficients, options)
    if calibration is None or not isinstance(parse_source(calibration.source), SelfSource):
        return calibration, ()
    if options.calib == "auto":
        if too_large:
            return None, ()
        trained_on = str(coefficients.training.get("data", "")).partition(":")[0]  # without a place on a disk
        reason = (
            f"the set that they were trained on ({trained_on}) is not here" if trained_on else "none is named"
        )
        return calibration, (
            f"No question set is known of these scalars ({reason}), so the model writes what it is calibrated on: "
            f"--calib takes a set, jsonl:FILE or text:PATH with what you ask of it, which is closer.",
        )
    if too_large:
        raise UserError(
            "--calib self is refused: the model is larger than memory, and would be read from disk for every token "
            "that it writes; name a question set, or text:PATH"
        )
    return calibration, ()


def _no_calibration(too_large: bool) -> str:
    """Why there is none, where it is needed."""
    if too_large:
        return "the model is larger than memory, where it can't write what to calibrate on"
    return "--calib none was asked"


def _lesser(better: str, name: str, *, too_large: bool) -> str:
    """Why an export gets the lesser of two default quantizers, and how it gets the better one; a sentence."""
    if too_large:
        reason = "the model is larger than memory, where calibrating takes long"
        way_out = f"give --quantizer {better} with --calib NAME, NAME:DIR or text:PATH"
    else:
        reason, way_out = "--calib none was asked", "leave it out"
    return (
        f"{better}, the better default, was not taken, since {reason}: on the shipped models {name} is about three to "
        f"seven times as far from the model before rounding (KL); for {better} {way_out}."
    )


def _check_takes(method: Method, name: str, precision: Precision) -> None:
    if precision in method.precisions:
        return
    if precision == "w8a8":
        reason = (
            "w8a8 rounds weights to the nearest code of their output channel, and this method searches blocks"
        )
    else:
        reason = f"it makes activations easier to round at the cost of weights, and {precision} rounds weights alone"
    ways = [other for other in quantizer_names() if precision in load_quantizer(other).precisions]
    raise UserError(f"--quantizer {name} is refused: {reason}; use {' or '.join(ways)}")


def calibration_options(coefficients: Coefficients, options: ExportOptions) -> CalibrationOptions | None:
    """What to calibrate on: as asked, or the set trained on, or what the model writes itself; None for nothing.

    Raises:
        UserError: a source that can't be loaded.
    """
    source = (trained_on_set(coefficients) or CALIBRATION) if options.calib == "auto" else options.calib
    if source == "none":
        return None
    found = parse_source(source)
    found.check()
    return CalibrationOptions(
        source=source,
        limit=options.calib_limit,
        weighting=options.calib_weighting,
        pictures=not (options.calib_text_only or isinstance(found, TextSource)),
    )


def calibration_questions(coefficients: Coefficients, options: ExportOptions) -> CalibrationOptions | None:
    """The question set among them, which a search under a budget measures on; None where it is none.

    Raises:
        UserError: as ``calibration_options``.
    """
    chosen = calibration_options(coefficients, options)
    own = chosen is not None and isinstance(parse_source(chosen.source), QuestionSource)
    return chosen if own else None


def trained_on_set(coefficients: Coefficients) -> str | None:
    """The question set that the coefficients were trained on, if it is one of ours with a calibration split here."""
    questions = str(coefficients.training.get("data", ""))
    if questions.partition(":")[0] not in dataset_names():
        return None
    try:
        found = load_questions(questions, "calibration", limit=1)
    except UserError:
        return None
    return questions if found else None
