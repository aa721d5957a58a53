"""Everything that is known of one model's symmetry, in one call and one value."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from searchspace.groups import IDENTITY, TRIVIAL, Element, Group
from trainers.instruments.accuracy import (
    AngleCurve,
    Proportion,
    SymmetryAccuracy,
    angle_elements,
    consistency,
    effective_invariance,
    predict,
    summarise,
    summarise_angles,
)
from trainers.instruments.angle_plot import draw
from trainers.instruments.equivariance import EquivarianceError, equivariance_error
from trainers.instruments.feature_maps import Model, Normalise, measuring, pixels
from trainers.instruments.layerwise import (
    MatchedStage,
    Steerability,
    layerwise_equivariance,
    steerability,
)
from trainers.instruments.lie import LieDerivative, lie_derivatives
from trainers.instruments.merging import MergeBarrier, merge_barrier
from trainers.networks.fold import scoring
from trainers.networks.networks import Network, channels_last
from trainers.networks.plain import PlainNetwork
from trainers.process import crew

ERROR_IMAGES = 64  # for the equivariance error and the Lie derivative
MATCH_IMAGES = 128  # for matching channels
STEER_IMAGES = 512  # for fitting a matrix to features


@dataclass(frozen=True)
class Measurement:
    """The symmetry of one model on labelled images; what could not be measured is None or empty,
    and `notes` say why.
    """

    group: Group  # declared: under which the model will be used
    num_images: int
    accuracy: SymmetryAccuracy
    curve: AngleCurve
    consistency: Proportion | None  # None: only the identity is declared
    effective_invariance: float | None
    error: EquivarianceError | None
    lie: tuple[LieDerivative, ...]  # of the logits
    # for every generator of the group on the pixel grid
    matched: tuple[MatchedStage, ...]
    steerability: tuple[Steerability, ...]
    barriers: tuple[MergeBarrier, ...]  # of our plain networks
    seconds: float
    notes: tuple[str, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, keys in the order of the fields."""
        return {
            "group": str(self.group),
            "num_images": self.num_images,
            "symmetry_accuracy": self.accuracy.as_dict(),
            "accuracy_by_angle": self.curve.as_dict(),
            "consistency": self.consistency.as_dict() if self.consistency else None,
            "effective_invariance": self.effective_invariance,
            "equivariance_error": self.error.as_dict() if self.error else None,
            "lie_derivative": [d.as_dict() for d in self.lie],
            "layerwise": [m.as_dict() for m in self.matched],
            "steerability": [s.as_dict() for s in self.steerability],
            "merge_barrier": [b.as_dict() for b in self.barriers],
            "seconds": self.seconds,
            "notes": list(self.notes),
        }

    def text(self, *, ascii_only: bool = False) -> str:
        """A table for people, with the accuracy by angle drawn under it."""
        sections = [
            _scores(self),
            _elements(self.accuracy),
            _stages(self),
            _motions(self.lie),
            _steering(self),
        ]
        drawn = "Accuracy by angle, %\n" + draw(self.curve, ascii_only=ascii_only)
        return "\n\n".join(
            [*filter(None, sections), drawn, *(f"Note: {note}." for note in self.notes)]
        )


def measure(
    model: Model,
    images: Tensor,
    labels: Tensor,
    group: Group,
    *,
    seen: Iterable[Element] = (IDENTITY,),
    normalise: Normalise | None = None,
    calibration: Tensor | None = None,
    step: int = 10,
    stages: Sequence[str] | None = None,
    fields: Mapping[str, Group] | None = None,
    threads: int | None = None,
) -> Measurement:
    """Every instrument on one model: a network of ours, a wrapped escnn network, a plain torch
    module or a function.

    `images` are [image, channel, height, width], uint8 or floating point in 0..1, `labels` [image];
    `normalise` is applied after images were moved. `group` is the declared symmetry, `seen` what
    training has seen of it, `step` the degrees between the angles. `calibration` are training
    images for the merge barrier (None: the images themselves). `stages` names the modules to look
    at in a model that is not ours, `fields` the groups of stages that do not say them
    (`trainers.instruments.feature_maps.run`). A network of ours is measured folded, as it would be
    deployed, and folded networks on the CPU by `threads` threads (None: as many as torch has).
    Raises ValueError for logits that do not vary over the images or are not finite.
    """
    began, notes = time.perf_counter(), []
    elements = tuple(dict.fromkeys((*group.elements, *angle_elements(step))))
    if images.shape[-1] != images.shape[-2] and any(e.swaps_axes for e in elements if e.on_grid):
        raise ValueError(
            f"the images are {images.shape[-2]}x{images.shape[-1]} pixels, and quarter turns "
            "change their shape; make them square"
        )
    scored, prepare = model, normalise
    if isinstance(model, Network):
        fields = {f"stage {n}": s.group for n, s in enumerate(model.architecture.stages, start=1)}
        scored = scoring(model)
    if is_folded(scored):
        prepare = (lambda batch: channels_last(normalise(batch))) if normalise else channels_last
    few = _spaced(images, ERROR_IMAGES)
    with measuring(scored), _hands(scored, threads if stages is None else 1) as hands:
        error = (
            None
            if group == TRIVIAL
            else hands.submit(
                equivariance_error,
                scored,
                few,
                group,
                stages=stages,
                fields=fields,
                normalise=prepare,
            )
        )
        inside = _looked_inside(hands, scored, images, group, stages, prepare)
        barriers = _barriers(hands, model, images, labels, group, calibration, normalise)
        motions = hands.submit(_attempted, lambda: lie_derivatives(scored, few, normalise=prepare))
        error = error and error.result()  # first, for it refuses constants
        predictions = predict(
            scored,
            images,
            elements,
            normalise=prepare,
            crew=hands if isinstance(hands, ThreadPoolExecutor) else None,
        )
        found = [_gathered(notes, futures) for futures in ([motions], *inside, barriers)]
    others = group.elements if group != TRIVIAL else ()
    return Measurement(
        group,
        len(images),
        summarise(predictions, labels, group, seen),
        summarise_angles(predictions, labels, step),
        consistency(predictions, others) if others else None,
        effective_invariance(predictions, others) if others else None,
        error,
        *found,
        time.perf_counter() - began,
        tuple(notes),
    )


def is_folded(model: Model) -> bool:
    """True for the networks that `fold` and a bundle's model.py return: plain operations that
    several threads may run at once.
    """
    return (
        isinstance(model, nn.Module)
        and type(model).__name__ == PlainNetwork.__name__
        and hasattr(model, "forward_with_stages")
    )


class _OneByOne:
    """Does what it is given at once: for models that cannot be trusted to run in several threads,
    and on a GPU.
    """

    def submit(self, work: Callable[..., Any], *arguments: Any, **options: Any) -> Future:
        """The finished future of the work."""
        future: Future = Future()
        try:
            future.set_result(work(*arguments, **options))
        except Exception as error:
            future.set_exception(error)
        return future


@contextmanager
def _hands(model: Model, threads: int | None) -> Iterator[Any]:
    """Threads for folded networks on the CPU (not for named modules, which are watched by hooks);
    else what does one thing after the other.
    """
    threads = torch.get_num_threads() if threads is None else threads
    if threads < 2 or not is_folded(model) or next(model.parameters()).device.type != "cpu":
        yield _OneByOne()
    else:
        with crew(threads) as pool:
            yield pool


def generators(group: Group) -> tuple[Element, ...]:
    """The smallest rotation of the group on the pixel grid and its mirror, as far as it has them."""
    grid = group.grid
    rotations = [grid.elements[1]] if grid.rotations > 1 else []
    return (*rotations, *([grid.elements[grid.rotations]] if grid.mirror else []))


def _spaced(images: Tensor, count: int) -> Tensor:
    """`count` of the images, or all if there are fewer, evenly spaced, since data is often sorted
    by class.
    """
    return images[torch.linspace(0, len(images) - 1, min(count, len(images))).long()]


def _attempted(instrument: Callable[[], tuple]) -> tuple | str:
    """What the instrument returns; where it does not apply to the model, the reason."""
    try:
        return instrument()
    except ValueError as error:
        return str(error)


def _gathered(notes: list[str], futures: Sequence[Future]) -> tuple:
    """All results one after the other; reasons for having none go to the notes."""
    found: tuple = ()
    for result in (future.result() for future in futures):
        if not isinstance(result, str):
            found += result
        elif result not in notes:
            notes.append(result)
    return found


def _looked_inside(
    hands: Any,
    model: Model,
    images: Tensor,
    group: Group,
    stages: Sequence[str] | None,
    prepare: Normalise | None,
) -> tuple[list[Future], list[Future]]:
    """Matched channels and steerability, for every generator."""
    if not isinstance(model, nn.Module):
        return [], []
    last, chosen = stages[-1] if stages else None, generators(group)
    steered = [
        hands.submit(
            _attempted,
            lambda e=e: (
                steerability(
                    model, _spaced(images, STEER_IMAGES), e, stage=last, normalise=prepare
                ),
            ),
        )
        for e in chosen
    ]
    matched = [
        hands.submit(
            _attempted,
            lambda e=e: layerwise_equivariance(
                model, _spaced(images, MATCH_IMAGES), e, stages=stages, normalise=prepare
            ),
        )
        for e in chosen
    ]
    return matched, steered


def _barriers(
    hands: Any,
    model: Model,
    images: Tensor,
    labels: Tensor,
    group: Group,
    calibration: Tensor | None,
    normalise: Normalise | None,
) -> list[Future]:
    if not isinstance(model, Network) or model.architecture.family != "plain":
        return []
    chosen = torch.linspace(0, len(images) - 1, min(512, len(images))).long()
    calibration = None if calibration is None else _spaced(calibration, 256)

    def one_by_one() -> tuple[MergeBarrier, ...]:  # they hook into the same network
        return tuple(
            merge_barrier(
                model,
                images[chosen],
                labels[chosen.to(labels.device)],
                element,
                calibration=calibration,
                normalise=normalise,
            )
            for element in generators(group)
        )

    return [hands.submit(_attempted, one_by_one)]


def check_model(
    model: Model, images: Tensor, classes: int, normalise: Normalise | None = None
) -> None:
    """Runs the model once on these images as `measure` will. Raises ValueError where it does not
    take them, or does not give `classes` logits.
    """
    shape = list(images.shape)
    with measuring(model), torch.no_grad():
        batch = pixels(images, model)
        try:
            logits = model(normalise(batch) if normalise else batch)
        except Exception as error:  # a model is somebody's code
            said = " ".join(str(error).split())[:300]
            raise ValueError(
                f"the model does not take images of shape {shape}: {type(error).__name__}: "
                f"{said}; give the study whose data it was "
                "made for (--data), or a model for these"
            ) from error
    logits = getattr(logits, "tensor", logits)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        found = (
            f"shape {list(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        )
        raise ValueError(
            f"the model returned {found} for {len(images)} images; it must return logits "
            "[batch, classes]"
        )
    if logits.shape[1] != classes:
        raise ValueError(
            f"the model gives {logits.shape[1]} logits for each image, but the data has "
            f"{classes} classes; give a model for these classes, or "
            "the study whose data it was made for (--data)"
        )


def load_model(source: str) -> nn.Module:
    """The module that `module:function` or `path/to/file.py:function` returns when it is called
    without arguments.

    Raises ValueError where there is no such module or function, where it fails, or where it returns
    anything but a torch.nn.Module.
    """
    place, _, name = source.rpartition(":")
    if not place or not name:
        raise ValueError(
            f"'{source}' names no model; write module:function or file.py:function, where the "
            "function returns the model"
        )
    function = getattr(_imported(place), name, None)
    if not callable(function):
        raise ValueError(f"{place} has no function {name}; name one that returns the model")
    try:
        model = function()
    except (Exception, SystemExit) as error:  # somebody's code
        raise ValueError(
            f"your function failed: {type(error).__name__}: {error}; {source} is called without "
            "arguments"
        ) from error
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"{source} returned {type(model).__name__}; it must return a torch.nn.Module, which "
            "maps images to logits"
        )
    return model


def _imported(place: str) -> Any:
    """The module that a file's path or a module's name means. Raises ValueError where it cannot be
    imported.
    """
    if place.endswith(".py") and not Path(place).is_file():
        raise ValueError(f"there is no file {place}; give the path of a Python file")
    try:
        return _from_file(Path(place)) if place.endswith(".py") else _by_name(place)
    except (Exception, SystemExit) as error:  # somebody's code
        hint = (
            "; run in its folder, or write file.py:function"
            if isinstance(error, ModuleNotFoundError)
            else ""
        )
        raise ValueError(
            f"{place} cannot be imported: {type(error).__name__}: {error}{hint}"
        ) from error


def _by_name(name: str) -> Any:
    if "" not in sys.path:
        sys.path.insert(0, "")  # modules of the folder one stands in, as `python -m` finds them
    return importlib.import_module(name)


def _from_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    known = path.stem in sys.modules
    sys.modules.setdefault(path.stem, module)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if not known:
            sys.modules.pop(path.stem, None)
        raise
    return module


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[n]) for row in (header, *rows)) for n in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if n == 0 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths))
        )
        for row in (header, *rows)
    ]
    return "\n".join([title, lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _share(share: Proportion | None) -> tuple[str, str]:
    return (
        ("-", "")
        if share is None
        else (f"{100 * share.value:.2f} %", f"{100 * share.low:.2f} to {100 * share.high:.2f}")
    )


def _scores(m: Measurement) -> str:
    worst, lowest = m.accuracy.worst
    what = "unseen elements" if m.accuracy.unseen else "elements, all seen in training"
    rows = [
        ("accuracy", *_share(m.accuracy.accuracy)),
        (f"mean over {what}", *_share(m.accuracy.mean)),
        (f"worst of them, {worst}", *_share(lowest)),
        ("  quarter turns and flips (exact)", *_share(m.accuracy.exact)),
        ("  other angles (interpolated)", *_share(m.accuracy.interpolated)),
        ("mean over seen elements", *_share(m.accuracy.mean_seen)),
        ("mean over all elements", *_share(m.accuracy.mean_all)),
        (f"mean over {len(m.curve.degrees)} angles", f"{100 * m.curve.mean:.2f} %", ""),
        (f"worst angle, {m.curve.worst[0]:g}", *_share(m.curve.worst[1])),
        ("consistency", *_share(m.consistency)),
    ]
    if m.error:
        rows += [
            ("effective invariance", f"{m.effective_invariance:.4f}", ""),
            ("equivariance error, logits", f"{m.error.logits.mean:.2e}", "mean"),
            ("equivariance error, logits", f"{m.error.logits.worst:.2e}", "worst"),
        ]
    return _table(
        f"Symmetry under {m.group} on {m.num_images} images",
        ("score", "value", f"{100 * m.accuracy.confidence:g} % interval"),
        rows,
    )


def _elements(accuracy: SymmetryAccuracy) -> str:
    rows = [
        (
            str(e),
            "seen" if e in accuracy.seen else "unseen",
            "exact" if e.on_grid else "interpolated",
            *_share(a),
        )
        for e, a in zip(accuracy.elements, accuracy.accuracies)
    ]
    return _table(
        "Accuracy by element",
        ("element", "training", "pixels", "accuracy", f"{100 * accuracy.confidence:g} % interval"),
        rows,
    )


def _stages(m: Measurement) -> str:
    names = generators(m.group)
    matched = {(s.stage, s.element): f"{s.correlation:.3f}" for s in m.matched}
    rows = [
        (
            s.stage,
            f"{s.mean:.2e}",
            f"{s.worst:.2e}",
            f"{s.mean_correlation:.4f}",
            *(matched.get((s.stage, e), "-") for e in names),
        )
        for s in ((m.error.logits, *m.error.stages) if m.error else ())
    ]
    return (
        _table(
            "Equivariance error (0 exact, 1 as another image) and channels matched",
            ("stage", "mean", "worst", "correlation", *(f"matched {e}" for e in names)),
            rows,
        )
        if rows
        else ""
    )


def _motions(found: Sequence[LieDerivative]) -> str:
    rows = [
        (d.motion, f"{d.relative:.3f}", f"{d.per_pixel:.4f}", f"{d.softmax:.4f}") for d in found
    ]
    return (
        _table("Lie derivative of the logits", ("motion", "relative", "per pixel", "softmax"), rows)
        if rows
        else ""
    )


def _steering(m: Measurement) -> str:
    rows = [
        (
            f"steerability, {s.element}",
            f"residual {s.residual:.2e}",
            f"of spread {s.residual_of_spread:.2e}",
            f"eigenvalues {s.root_distance:.2e} from roots of unity",
        )
        for s in m.steerability
    ]
    rows += [
        (
            f"merge barrier, {b.element}",
            f"{100 * b.barrier:.1f} points",
            f"aligned {100 * b.aligned:.1f} %",
            f"reset {100 * b.reset:.1f} %, repaired {100 * b.repaired:.1f} %",
        )
        for b in m.barriers
    ]
    return _table("Inside", ("instrument", "", "", ""), rows) if rows else ""
