"""Head pose from the 68 points: a generic head, seen from far away, fitted to the rigid ones."""

from typing import NamedTuple

import numpy as np

# Points that neither speech nor brows move: bridge of the nose, nostrils, corners of the eyes.
RIGID = np.array([27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 39, 42, 45])
# Where they are on an average adult head that faces the camera, millimetres from the middle of the
# eyes: x to the right and y down in the picture, z away from the camera. Halfway between anthropometry
# (Farkas 1994) and what the face mesh sees on portraits: its eye corners lie a little further in,
# which makes the nose longer in comparison.
HEAD = np.array(
    [
        *[[0, -5, -20], [0, 8, -28], [0, 21, -39], [0, 36, -45]],  # bridge, tip
        *[[-17, 42, -21], [-8, 44, -27], [0, 45, -29], [8, 44, -27], [17, 42, -21]],  # nostrils
        *[[-45, 0, 4], [-17, 1, -5], [17, 1, -5], [45, 0, 4]],  # eyes
    ]
)


class Pose(NamedTuple):
    """Degrees; 0, 0, 0 faces the camera. The head is turned by pitch first, then yaw, then roll."""

    yaw: float  # positive: the nose points to the right side of the picture
    pitch: float  # positive: the nose points up
    roll: float  # positive: the head is tilted clockwise in the picture


def head_pose(points: np.ndarray) -> Pose:
    """points (68, 2) in pixels -> the angles of the head.

    Least squares gives the affine camera that takes the generic head to the points; the nearest rotation
    (polar decomposition) gives the angles: scaled orthographic projection in closed form.
    """
    head = HEAD - HEAD.mean(axis=0)
    seen = points[RIGID].astype(np.float64)
    camera = (np.linalg.pinv(head) @ (seen - seen.mean(axis=0))).T  # (2, 3)
    left, _, right = np.linalg.svd(camera, full_matrices=False)
    rows = left @ right  # orthonormal: the picture's right and down in head coordinates
    x, y, z = np.stack([*rows, np.cross(*rows)])
    yaw = np.arcsin(np.clip(z[0], -1, 1))
    pitch = -np.arctan2(z[1], z[2])
    roll = np.arctan2(y[0], x[0])
    return Pose(*(float(angle) for angle in np.degrees([yaw, pitch, roll])))
