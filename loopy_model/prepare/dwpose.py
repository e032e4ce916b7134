"""DWPose (Yang et al. 2023, arXiv 2307.15880): whole-body landmarks, of which we keep the face.

The user brings two ONNX files, a YOLOX person detector and an RTMPose or DWPose whole-body network
(both published under Apache-2.0); rtmlib decodes them, onnxruntime runs them.
"""

from pathlib import Path

import numpy as np

from .landmarks import Face, largest_first

INSTALL = (
    "`pip install onnxruntime opencv-python-headless` (onnxruntime-gpu for a GPU) "
    "and `pip install --no-deps rtmlib`"
)
FILES = (
    "dwpose:DET.onnx,POSE.onnx takes the person detector and the whole-body network of DWPose "
    "(yolox_l.onnx and dw-ll_ucoco_384.onnx, Apache-2.0, from huggingface.co/yzd-v/DWPose)"
)
WHOLE_BODY = 133  # COCO-WholeBody: body 17, feet 6, face 68, hands 42
FACE = slice(23, 91)
PERSON = 0  # among the 80 COCO classes
FACE_SCORE = 0.3  # mean over the 68 points; a head seen from behind has less


class DWPose:
    """picture (H, W, 3) uint8 RGB -> one face per person whose face is seen, largest first."""

    def __init__(self, detection: Path, pose: Path) -> None:
        for path in (detection, pose):
            if not path.is_file():
                raise ValueError(f"{path} does not exist; {FILES}.")
        try:
            from onnxruntime import get_available_providers
            from rtmlib import YOLOX, RTMPose
        except ImportError as error:
            raise ValueError(
                f"the landmark detector dwpose misses {error.name}; install it with {INSTALL}."
            ) from error

        gpu = "CUDAExecutionProvider" in get_available_providers()
        options = {"backend": "onnxruntime", "device": "cuda" if gpu else "cpu"}
        self.persons = _open(YOLOX, detection, options)
        self.persons.model_input_size = _input_size(self.persons, 640, 640)
        # Files that do their own non-maximum suppression know persons only, and no classes.
        self.classes = self.persons.session.get_outputs()[0].shape[-1] != 5
        self.persons.det_mode = "multiclass" if self.classes else "human"
        self.landmarks = _open(RTMPose, pose, options)
        self.landmarks.model_input_size = _input_size(self.landmarks, 384, 288)[::-1]  # (width, height)

    def __call__(self, picture: np.ndarray, index: int = 0) -> list[Face]:
        boxes = self.boxes(picture)
        if not len(boxes):  # RTMPose takes no boxes for the whole picture
            return []
        points, scores = self.landmarks(picture, boxes)  # normalised as RGB
        if points.shape[1] != WHOLE_BODY:
            raise ValueError(
                f"{self.landmarks.onnx_model} finds {points.shape[1]} points; use a whole-body network of 133."
            )
        scores = np.clip(scores[:, FACE].mean(axis=1), 0, 1)
        faces = zip(points[:, FACE].astype(np.float32), scores, strict=True)
        return largest_first([Face(face, float(score)) for face, score in faces if score >= FACE_SCORE])

    def boxes(self, picture: np.ndarray) -> np.ndarray:
        """Persons (N, 4): left, top, right, bottom in pixels."""
        found = self.persons(np.ascontiguousarray(picture[..., ::-1]))  # YOLOX has learnt from BGR
        if not self.classes:
            return found
        boxes, classes = found
        return boxes[classes == PERSON] if len(boxes) else boxes


def _open(tool: type, path: Path, options: dict[str, str]) -> object:
    try:
        return tool(str(path), **options)
    except Exception as error:  # onnxruntime has a kind of error for each way a file can be wrong
        raise ValueError(f"{path} is not a usable ONNX file ({error}); {FILES}.") from error


def _input_size(tool: object, height: int, width: int) -> tuple[int, int]:
    """Height and width that a network takes, or these where its file leaves them open."""
    shape = tool.session.get_inputs()[0].shape[2:]
    return tuple(given if isinstance(given, int) else usual for given, usual in zip(shape, (height, width)))
