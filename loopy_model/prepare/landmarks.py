"""Face landmarks of a picture: one protocol, three sources.

`facemesh` needs no files of the user (facemesh.py), `dwpose` runs the ONNX models that the paper's
authors annotate with (dwpose.py), `points` reads exact points from a file beside the video.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

JAW, BROWS, NOSE = slice(0, 17), slice(17, 27), slice(27, 36)
EYES, MOUTH = slice(36, 48), slice(48, 68)
POINTS = 68


@dataclass(frozen=True)
class Face:
    """One face. Pixels are continuous: (0, 0) is the corner of the picture, the first pixel's
    centre is (0.5, 0.5)."""

    points: np.ndarray  # (68, 2) float32 (x, y), iBUG order: jaw, brows, nose, eyes, mouth
    score: float  # 0..1, how sure the detector is that this is a face

    @property
    def area(self) -> float:
        """Of the box around the points, square pixels."""
        return float(np.prod(np.ptp(self.points, axis=0)))


class LandmarkDetector(Protocol):
    """picture (H, W, 3) uint8 RGB, frame number at 25 fps -> its faces, largest first."""

    def __call__(self, picture: np.ndarray, index: int) -> list[Face]: ...


def detector_for(spec: str, video: Path) -> LandmarkDetector:
    """The detector that `spec` names: `facemesh`, `dwpose:DET.onnx,POSE.onnx` or `points`.

    Models are loaded once per process. Raises ValueError that says what is missing.
    """
    kind, _, files = spec.partition(":")
    if kind == "facemesh" and not files:
        return _facemesh()
    if kind == "dwpose" and files.count(",") == 1:
        return _dwpose(*(Path(name.strip()) for name in files.split(",")))
    if kind == "points" and not files:
        return PointsFile(video)
    raise ValueError(
        f"the landmark detector {spec!r} is not known; use facemesh, dwpose:DET.onnx,POSE.onnx or points."
    )


@cache
def _facemesh() -> LandmarkDetector:
    from .facemesh import FaceMesh, model_folder

    return FaceMesh(model_folder())


@cache
def _dwpose(detection: Path, pose: Path) -> LandmarkDetector:
    from .dwpose import DWPose

    return DWPose(detection, pose)


def largest_first(faces: list[Face]) -> list[Face]:
    return sorted(faces, key=lambda face: face.area, reverse=True)


class PointsFile:
    """Exact points for NAME.mp4 in NAME.points.safetensors.

    Its tensor `points` is (F, 68, 2) or (F, faces, 68, 2) float32 in 0..1 image coordinates, one row
    per frame at 25 fps, NaN where there is no face.
    """

    def __init__(self, video: Path) -> None:
        self.path = video.with_suffix(".points.safetensors")
        self.points = _read_points(self.path)  # (F, faces, 68, 2)

    def __call__(self, picture: np.ndarray, index: int) -> list[Face]:
        if index >= len(self.points):
            raise ValueError(
                f"{self.path} ends after {len(self.points)} frames, but the video goes on; "
                "store one row per frame at 25 fps."
            )
        height, width = picture.shape[:2]
        here = self.points[index] * np.float32([width, height])
        return largest_first([Face(points, 1.0) for points in here if np.isfinite(points).all()])


def _read_points(path: Path) -> np.ndarray:
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist; the detector `points` reads the landmarks from it (safetensors, "
            "tensor `points`, (frames, 68, 2) in 0..1)."
        )
    try:
        points = load_file(path).get("points")
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file ({error}); write it again.") from error
    if points is None:
        raise ValueError(f"{path} holds no tensor `points`; store the landmarks under that name.")
    if points.ndim not in (3, 4) or points.shape[-2:] != (POINTS, 2) or points.dtype != np.float32:
        raise ValueError(
            f"{path}: `points` is {points.dtype} {points.shape}; "
            "store float32 (frames, 68, 2) or (frames, faces, 68, 2)."
        )
    return points if points.ndim == 4 else points[:, None]
