"""Head pose: signs, exactness on the generic head, and agreement with another head's known rotation."""

from itertools import product

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from loopy_model.prepare.pose import HEAD, RIGID, Pose, head_pose


def rotation(pose: Pose) -> np.ndarray:
    """The documented convention, by scipy: x right, y down, z away; pitch first, then yaw, then roll.
    About y and x a positive turn of this frame takes the nose left and down."""
    return Rotation.from_euler("ZYX", [pose.roll, -pose.yaw, -pose.pitch], degrees=True).as_matrix()


def picture_of(head: np.ndarray, pose: Pose) -> np.ndarray:
    """3D points (N, 3) seen by a far camera, (N, 2) pixels."""
    return (head @ rotation(pose).T)[:, :2] * 2.7 + [320, 200]


def generic(pose: Pose) -> np.ndarray:
    points = np.full((68, 2), np.nan)  # only the rigid points may matter
    points[RIGID] = picture_of(HEAD.astype(float), pose)
    return points


def test_the_generic_head_is_found_exactly() -> None:
    for angles in product((-80, -45, 0, 30), (-60, 0, 45), (-170, -30, 0, 90)):
        assert head_pose(generic(Pose(*angles))) == pytest.approx(angles, abs=1e-6)


def test_signs() -> None:
    """Where the nose goes in the picture, seen from the middle of the eyes."""
    tip, eyes = 30, [36, 45]

    def nose(pose: Pose) -> np.ndarray:
        points = generic(pose)
        return points[tip] - points[eyes].mean(axis=0)

    facing = nose(Pose(0, 0, 0))
    assert nose(Pose(20, 0, 0))[0] > facing[0] + 10  # right
    assert nose(Pose(0, 20, 0))[1] < facing[1] - 10  # up
    assert nose(Pose(0, 0, 20))[0] < facing[0] - 10  # chin left: the head tilts clockwise


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    """Another head, (68, 3): the face mesh's own depth, turned to face the camera by other points
    than the fit uses: outer eye corners level and equally deep, forehead above the chin."""
    pytest.importorskip("ai_edge_litert")
    data = pytest.importorskip("skimage.data")
    from PIL import Image

    from loopy_model.prepare import facemesh

    mesh = facemesh.FaceMesh(facemesh.model_folder())
    image = Image.fromarray(data.astronaut())
    square = mesh.detect(image, facemesh.views(*image.size)[0])[0]
    vertices = mesh.mesh(square.cut(image, mesh.mesh.size) / 255)[0].reshape(-1, 3).astype(float)
    x = vertices[263] - vertices[33]
    y = vertices[152] - vertices[10]
    x /= np.linalg.norm(x)
    y -= x * (x @ y)
    y /= np.linalg.norm(y)
    return vertices[facemesh.VERTICES] @ np.stack([x, y, np.cross(x, y)]).T


def test_another_heads_rotation_is_found(astronaut: np.ndarray) -> None:
    """Within 5 degrees of yaw and roll and 7 of pitch, from -60 to 60 degrees of each."""
    for angles in product((-60, -45, -20, 0, 20, 45, 60), (-60, -30, 0, 30, 60), (-60, 0, 25, 60)):
        error = np.subtract(head_pose(picture_of(astronaut, Pose(*angles))), angles)
        assert (np.abs(error) < [5, 7, 5]).all(), (angles, error)


def test_real_faces() -> None:
    """The astronaut looks at us; mirrored, she looks to the other side; tilted, she has that roll."""
    pytest.importorskip("ai_edge_litert")
    data = pytest.importorskip("skimage.data")
    from PIL import Image

    from loopy_model.prepare.facemesh import FaceMesh, model_folder

    find, image = FaceMesh(model_folder()), Image.fromarray(data.astronaut())

    def pose(image: Image.Image) -> Pose:
        return head_pose(find(np.ascontiguousarray(image))[0].points)

    facing = pose(image)
    assert abs(facing.yaw) < 10 and abs(facing.pitch) < 15 and abs(facing.roll) < 10
    mirrored = pose(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert mirrored == pytest.approx((-facing.yaw, facing.pitch, -facing.roll), abs=4)
    tilted = pose(image.rotate(-30, Image.Resampling.BICUBIC))  # PIL turns counter-clockwise
    assert tilted == pytest.approx((facing.yaw, facing.pitch, facing.roll + 30), abs=4)
