"""`EquivariantClassifier`: a search over equivariance constraints as a scikit-learn estimator."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from searchspace.geometry import counted
from studies.config import NULL, Study, dump, load_study, parse
from studies.errors import StudyError
from studies.estimator.default_study import default_study
from studies.estimator.images import as_bytes, class_labels, images_last, scale_of
from studies.journal.trial import state_word
from studies.results.opened import StudyDirectory, TrialTable, open_study, start
from studies.workers.executors import Event

Choose = Literal["knee", "accuracy", "symmetry_accuracy"]
EXPORTED = "bundle"  # the folder of the chosen network in the study's directory


class EquivariantClassifier(ClassifierMixin, BaseEstimator):
    """A classifier of images that chooses how much symmetry to build in.

    `fit(X, y)` runs a search study on the images, in this process or on Ray workers, keeps its
    directory, and takes one network of the Pareto front of accuracy and symmetry accuracy; nothing
    of X is held out but a fifth of it for validation. X are images as NumPy array or torch tensor:
    [N, height, width], [N, height, width, channels] or [N, channels, height, width] of 1 or 3
    channels, uint8, other integers from 0 on, or floating point numbers in 0..1; rows [N, k * k]
    are k x k images. Sizes of images at `predict` may differ from those at `fit`.

    Parameters
    ----------
    symmetry
        The group under which the model will be used: C1, C2, C4, D1, D4, C8, D8 ... Ignored with
        `study`.
    budget
        Trials (20), or a time such as "30m" after which no further trial begins.
    study
        A `Study`, a study file or the name of a preset, in place of the search space that suits
        the images; its data are replaced by X and y.
    overrides
        Dotted keys of the study file, such as {"training.epochs": 30}, as `--set` takes them.
    choose
        Which network of the front: "knee" (the best compromise), or the best in "accuracy" or
        "symmetry_accuracy".
    directory
        Where the study is kept; None: a new folder for temporary files, `study_.path`.
    warm_start
        The directory of an earlier study over the same space, whose trials the search learns from.
    workers
        Trials at the same time; more than one run on Ray.
    random_state
        The seed of the split, the search and the weights.
    verbose
        Prints a line for each trial that ends.

    Attributes
    ----------
    classes_, n_features_in_
        As in scikit-learn: the labels in the order of probabilities, and values of an image.
    study_
        The `StudyDirectory`: trials, status, retrain, a table in a notebook.
    front_
        Its Pareto front; `front_.to_frame()` is a pandas data frame.
    trial_, candidate_
        The number and the text form of the chosen network.
    """

    def __init__(
        self,
        symmetry: str = "D4",
        budget: int | str = 20,
        *,
        study: Study | str | Path | None = None,
        overrides: Mapping[str, Any] | None = None,
        choose: Choose = "knee",
        directory: str | Path | None = None,
        warm_start: str | Path | None = None,
        workers: int = 1,
        random_state: int = 0,
        verbose: bool = False,
    ) -> None:
        self.symmetry = symmetry
        self.budget = budget
        self.study = study
        self.overrides = overrides
        self.choose = choose
        self.directory = directory
        self.warm_start = warm_start
        self.workers = workers
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any, groups: Any = None) -> EquivariantClassifier:
        """Searches, and takes a network. `groups` [N] name what must not be in training and
        validation both (patients, slides). Raises ValueError for images or labels that cannot be
        trained on, StudyError for a study that cannot start or ends without a complete trial.
        """
        if self.choose not in ("knee", "accuracy", "symmetry_accuracy"):
            raise ValueError(
                f"choose is {self.choose!r}; it must be knee, accuracy or symmetry_accuracy"
            )
        labels = class_labels(y)
        classes, numbers = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(f"y holds one class ({classes[0]}); a classifier needs two or more")
        images = images_last(X)
        if len(images) != len(labels):
            raise ValueError(
                f"X holds {counted(len(images), 'image')} and y "
                f"{counted(len(labels), 'label')}; give one for each"
            )
        study = self._study(images, len(classes), grouped=groups is not None)
        directory = Path(self.directory or tempfile.mkdtemp(prefix="equisearch-")).absolute()
        arrays = {"train_images": images, "train_labels": numbers}
        if groups is not None:
            arrays["train_groups"] = np.asarray(groups)
        opened = start(
            study,
            directory,
            data=arrays,
            classes=[str(name) for name in classes],
            warm_start=self.warm_start,
            listener=_print_endings if self.verbose else None,
        )
        self.classes_ = classes
        self.n_features_in_ = int(np.prod(images.shape[1:]))
        self.dtype_, self.scale_ = images.dtype, scale_of(images)
        self.study_directory_ = str(directory)
        self.trial_ = self._choice(opened)
        self.bundle_ = str(opened.export(self.trial_, directory / EXPORTED, force=True))
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probabilities [N, class] of images, in the order of `classes_`."""
        check_is_fitted(self, "bundle_")
        return self._probabilities(X, orbit=False)

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest class [N] of each image, of the type of y."""
        shares = self.predict_proba(X)
        return self.classes_[shares.argmax(1)]

    def predict_orbit(self, X: Any) -> np.ndarray:
        """`predict_proba`, averaged over the declared quarter turns and flips: the same for every
        orientation of an image, whatever the network.
        """
        check_is_fitted(self, "bundle_")
        return self._probabilities(X, orbit=True)

    def export(self, out: str | Path, *, force: bool = False) -> Path:
        """The path of a bundle of the chosen network, written to `out`: `equisearch export`."""
        check_is_fitted(self, "bundle_")
        return self.study_.export(self.trial_, out, force=force)

    @property
    def study_(self) -> StudyDirectory:
        """The study, read anew from its directory."""
        check_is_fitted(self, "study_directory_")
        return open_study(self.study_directory_)

    @property
    def front_(self) -> TrialTable:
        """The Pareto front of the study."""
        return self.study_.front

    @property
    def report_(self) -> Path:
        """The page that `equisearch report` writes, written anew."""
        return self.study_.report()

    @property
    def candidate_(self) -> str:
        """The text form of the chosen network and of how it was trained."""
        return str(self.study_.trials[self.trial_]["architecture"])

    def _study(self, images: np.ndarray, classes: int, *, grouped: bool) -> Study:
        limits: dict[str, Any] = {"search.seed": self.random_state}
        limits |= {"data.seed": self.random_state, "resources.workers": self.workers}
        if isinstance(self.budget, str):
            limits |= {"search.timeout": self.budget, "search.trials": 10_000}
        else:
            limits["search.trials"] = self.budget
        if grouped:
            limits["data.group_by"] = "groups"
        given = {k: NULL if v is None else v for k, v in (self.overrides or {}).items()}
        overrides = {**limits, **given}
        if self.study is None:
            height, width, channels = images.shape[1:]
            return default_study((height, width), channels, classes, self.symmetry, overrides)
        if isinstance(self.study, Study):
            return parse(dump(self.study), name="the study", overrides=overrides)
        return load_study(self.study, overrides)

    def _choice(self, opened: StudyDirectory) -> int:
        front = opened.front
        if not len(front):
            raise StudyError(
                f"the study {opened.path} ended without a complete trial, so that there is no "
                "network to take; give a larger budget, or look at its trials with "
                "`equisearch trials`"
            )
        if self.choose == "knee":
            best = front.best
            return int((best or front[0])["trial"])
        return int(max(front, key=lambda row: row["values"][self.choose])["trial"])

    def _probabilities(self, X: Any, *, orbit: bool) -> np.ndarray:
        import torch

        from trainers.bundles.predict import load_predictor
        from trainers.data.fitting import fit_images

        images = images_last(X)
        predictor = load_predictor(Path(self.bundle_), orbit=orbit)
        given = predictor.manifest.input
        if images.shape[3] != given.channels:
            raise ValueError(
                f"X has {counted(images.shape[3], 'channel')} ({images[0].size} features), "
                "and the images of "
                f"fit had {given.channels} (n_features_in_ is {self.n_features_in_}); give images "
                "of the same kind"
            )
        fit = "resize" if predictor.manifest.content.fit == "resize" else "pad"
        scale = self.scale_ if images.dtype == self.dtype_ else scale_of(images)
        rows = [np.empty((0, len(self.classes_)))]
        for block in as_bytes(images, scale):
            pixels = fit_images(torch.from_numpy(block), (given.height, given.width), fit)
            rows.append(predictor.probabilities(pixels).double().numpy())
        return np.concatenate(rows)

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn should know: X may have two dimensions, or those of images."""
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = tags.input_tags.positive_only = True
        return tags


def _print_endings(event: Event) -> None:
    """A line for a trial that ended."""
    if event.kind == "ended":
        reason = f" ({event.reason})" if event.reason else ""
        print(f"trial {event.number}: {state_word(str(event.outcome))}{reason}", flush=True)
    elif event.kind == "rung" and event.scores is not None:
        accuracies = (event.scores["accuracy"], event.scores["symmetry_accuracy"])
        upright, moved = (f"{100 * value:.1f} %" for value in accuracies)
        print(
            f"trial {event.number}: epoch {event.epoch}, accuracy {upright}, symmetry {moved}",
            flush=True,
        )
