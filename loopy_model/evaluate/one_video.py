"""One video in work: what each metric needs of it, from the cache or measured and kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..movement import dexp, dglo
from ..prepare.landmarks import LandmarkDetector, detector_for
from ..prepare.raw import FPS, POINTS_SUFFIX
from . import networks
from .cache import Cache, file_digest, key_of
from .measures import (
    Movement,
    Recording,
    aligned_faces,
    landmarks,
    movement,
    of_all_frames,
    read,
    shape_of,
    smoothness,
    sync,
)
from .metrics import Scores
from .networks import Network, NotMeasured

DETECTORS = ("facemesh", "dwpose", "points")  # or dwpose:DET.onnx,POSE.onnx
DWPOSE_FILES = ("yolox_l.onnx", "dw-ll_ucoco_384.onnx")
SAMPLED = {  # what a set metric's network sees of a video
    "FID": (networks.INCEPTION, networks.pictures),
    "FVD-R": (networks.RESNET, networks.pieces_for_resnet),
    "FVD-I": (networks.I3D, networks.pieces_for_i3d),
}


@dataclass(frozen=True)
class Settings:
    networks: Path | None
    landmarks: str  # one of DETECTORS, or dwpose:DET.onnx,POSE.onnx
    device: str

    def check(self) -> None:
        """Raises ValueError for what no video could be measured with."""
        kind, _, files = self.landmarks.partition(":")
        if self.landmarks not in DETECTORS and not (kind == "dwpose" and files.count(",") == 1):
            raise ValueError(
                f"--landmarks {self.landmarks} is not known; use {', '.join(DETECTORS)} or dwpose:DET.onnx,POSE.onnx."
            )
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:  # the second without any CUDA
            raise ValueError(
                f"PyTorch has no device {self.device!r} here; use --device cpu, or leave --device out."
            ) from error

    @property
    def detector(self) -> str:
        """As `prepare.landmarks.detector_for` wants it. Raises NotMeasured."""
        if self.landmarks != "dwpose":
            return self.landmarks
        if self.networks is None:
            raise NotMeasured(f"dwpose needs {' and '.join(DWPOSE_FILES)} in the folder of --networks.")
        return "dwpose:" + ",".join(str(self.networks / name) for name in DWPOSE_FILES)


class Tools:
    """Networks, loaded when they are first needed and then kept. All raise NotMeasured."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._loaded: dict[Path, Callable] = {}

    def detector(self, video: Path) -> LandmarkDetector:
        try:
            return detector_for(self.settings.detector, video)
        except ValueError as error:
            raise NotMeasured(str(error)) from error

    def find(self, network: Network) -> Path:
        return network.find(self.settings.networks)

    def find_all(self, *wanted: Network) -> list[Path]:
        """Names everything that is missing at once."""
        found, missing = [], []
        for network in wanted:
            try:
                found.append(self.find(network))
            except NotMeasured as error:
                missing.append(str(error))
        if missing:
            raise NotMeasured(" And ".join(missing))
        return found

    def load(self, path: Path, how: Callable[[Path, str], Callable]) -> Callable:
        if path not in self._loaded:
            try:
                self._loaded[path] = how(path, self.settings.device)
            except ValueError as error:
                raise NotMeasured(str(error)) from error
        return self._loaded[path]


class Video:
    """One video in work. What is asked of it comes from the cache, or is measured and kept."""

    def __init__(self, path: Path, tools: Tools, cache: Cache, count: int | None = None) -> None:
        """`count`: frames that are looked at; the first so many, None for all."""
        self.path, self.tools, self.cache, self.count = path, tools, cache, count

    @cached_property
    def recording(self) -> Recording:
        return read(self.path, self.count)

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Frames, height, width; known before the pictures are kept, since a pair may need only some of them."""
        return tuple(self.kept("shape", lambda: list(shape_of(self.path))))

    def cut(self, count: int) -> "Video":
        """Itself, with its first `count` frames."""
        video = Video(self.path, self.tools, self.cache, count)
        video.shape = count, *self.shape[1:]
        return video

    def _key(self, ingredients: list) -> str:
        return key_of(file_digest(self.path), self.count, *ingredients)

    def _values(self, part: str, ingredients: list, make: Callable[[], Any]) -> Any:
        return self.cache.values(part, self._key(ingredients), make)

    def kept(self, part: str, make: Callable[[], Any]) -> Any:
        """Something of the video alone that JSON can hold."""
        return self._values(part, [], make)

    @property
    def _eyes(self) -> list:
        """What its landmarks depend on."""
        spec = self.tools.settings.detector
        named = [Path(name) for name in spec.partition(":")[2].split(",")]
        files = [self.path.with_suffix(POINTS_SUFFIX)] if spec == "points" else named
        return [spec.partition(":")[0], *(file_digest(path) for path in files if path.is_file())]

    @property
    def points(self) -> np.ndarray:
        """(F, 68, 2) pixels. Raises NotMeasured, always the same: looking for a face takes long, above all in vain."""
        if isinstance(self._found, str):
            raise NotMeasured(self._found)
        return self._found

    @cached_property
    def _found(self) -> np.ndarray | str:
        """Or why there are none."""

        def make() -> np.ndarray:
            detector = self.tools.detector(self.path)  # without one, no video need be read
            return landmarks(self.recording.frames, detector)

        try:  # frames without a face are kept too, but not what the detector misses: that may be installed
            return of_all_frames(self.cache.array("points", self._key(self._eyes), make))
        except NotMeasured as error:
            return str(error)

    def forget(self) -> None:
        """Lets go of the pictures; they are read again when they are asked for."""
        self.__dict__.pop("recording", None)

    @property
    def shares(self) -> Tensor:
        """(F, 68, 2) landmarks as shares of the picture's width and height, as eq. 3-7 take them."""
        _, height, width = self.shape
        return torch.from_numpy(self.points).double() / torch.tensor([width, height])

    @property
    def movement(self) -> Movement:
        return movement(self.points, *self.shape[1:])

    # --- metrics of one video: name -> value -----------------------------------------------------

    def moved(self) -> dict[str, float]:
        if self.shape[0] < 2:
            raise NotMeasured("movement needs two frames, and there is one.")
        return {"Glo": self.movement.glo, "Exp": self.movement.exp}

    def smooth(self) -> dict[str, float]:
        path = self.tools.find(networks.AMT)

        def make() -> float:
            return smoothness(self.recording.frames, self.tools.load(path, networks.middle_of))

        return {"Smo": self._values("smo", [file_digest(path)], make)}

    def synced(self) -> dict[str, float]:
        path = self.tools.find(networks.SYNCNET)

        def make() -> list[float]:
            points = self.points  # without them, no video need be read
            return list(sync(self.recording, points, self.tools.load(path, _sync_scorer)))

        confidence, distance = self._values("sync", [file_digest(path), *self._eyes], make)
        return {"Sync-C": confidence, "Sync-D": distance}

    def quality(self) -> dict[str, float]:
        path = self.tools.find(networks.Q_ALIGN)

        def make() -> float:
            call = self.tools.load(path, networks.scores_of)
            return float(networks.collect(call, networks.seconds(self.recording.frames, FPS)).mean())

        return {"IQA": self._values("iqa", [file_digest(path)], make)}

    # --- samples for a set metric: (N, D) --------------------------------------------------------

    def features(self, metric: str) -> np.ndarray:
        if metric == "E-FID":
            return self._expressions()
        network, seen = SAMPLED[metric]
        path = self.tools.find(network)

        def make() -> np.ndarray:
            return networks.collect(self.tools.load(path, networks.features_of), seen(self.recording.frames))

        return self.cache.array(metric.lower(), self._key([file_digest(path)]), make)

    def _expressions(self) -> np.ndarray:
        path, standard = self.tools.find_all(networks.DEEP3D, networks.STANDARD_FACE)

        def make() -> np.ndarray:
            points = self.points  # as in `synced`
            faces = aligned_faces(self.recording.frames, points, read_standard_face(standard))
            return networks.expression(
                networks.collect(self.tools.load(path, networks.features_of), networks.faces(faces))
            )

        key = self._key([file_digest(path), file_digest(standard), *self._eyes])
        return self.cache.array("e-fid", key, make)


def _sync_scorer(path: Path, device: str) -> Callable:
    from ..prepare.sync import sync_scorer

    return sync_scorer(path, device)


def read_standard_face(path: Path) -> np.ndarray:
    """(68, 3), the variable `lm` of `similarity_Lm3D_all.mat`."""
    from scipy.io import loadmat

    try:
        points = np.asarray(loadmat(path)["lm"], np.float64)
    except (KeyError, ValueError, NotImplementedError, OSError) as error:
        raise NotMeasured(f"{path} holds no MATLAB variable `lm` ({error}); download it again.") from error
    if points.shape != (68, 3):
        raise NotMeasured(f"{path}: `lm` is {points.shape}, it should be (68, 3); download it again.")
    return points


def scores(video: Video) -> Scores:
    """Everything that one video alone can tell."""
    result = Scores()
    for names, measure in (
        (("Glo", "Exp"), video.moved),
        (("Smo",), video.smooth),
        (("Sync-C", "Sync-D"), video.synced),
        (("IQA",), video.quality),
    ):
        result = result.also(tried(names, measure))
    return result


def tried(names: Sequence[str], measure: Callable[[], dict[str, float]]) -> Scores:
    try:
        return Scores(values=measure())
    except NotMeasured as error:
        return Scores(reasons=dict.fromkeys(names, str(error)))


def differences(generated: Video, real: Video) -> dict[str, float]:
    """DGlo and DExp, eq. 6-7."""
    generated.moved(), real.moved()  # or there is nothing to compare
    pair = generated.shares, real.shares
    return {"DGlo": float(dglo(*pair)), "DExp": float(dexp(*pair))}
