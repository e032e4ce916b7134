"""What each network gets and must give, on TorchScript files that can be worked by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_videos import Brightness, Face, Mean, Middle, script
from torch import Tensor, nn

from loopy_model.evaluate import networks
from loopy_model.evaluate.measures import FACE_SCALE, FACE_SIDE, aligned_faces, face_box, smoothness
from loopy_model.evaluate.networks import NotMeasured, collect, features_of, middle_of, scores_of
from loopy_model.evaluate.one_video import Settings, Tools

GREY = (100, 110, 120)


def frames(count: int, height: int = 20, width: int = 30) -> np.ndarray:
    """(F, H, W, 3) of one colour, a level brighter each frame."""
    steps = np.arange(count)[:, None, None, None]
    return (np.broadcast_to(GREY, (count, height, width, 3)) + steps).astype(np.uint8)


# --- smoothness ---------------------------------------------------------------------------------


def test_smoothness_by_hand(tmp_path: Path) -> None:
    """Levels 10, 20, 50, 45, 61: between 10 and 50 lies 30, which is 10 off; between 50 and 61 lies 55.5,
    cut to 55, which is 10 off. 1 - 10 / 255, whatever the size (here not a multiple of 16)."""
    middle = middle_of(script(Middle(), tmp_path / "amt-s.pt"), "cpu")
    video = np.zeros((5, 18, 33, 3), np.uint8) + np.array([10, 20, 50, 45, 61], np.uint8)[:, None, None, None]
    assert smoothness(video, middle) == pytest.approx(1 - 10 / 255)


def test_a_last_frame_without_a_neighbour_is_not_drawn(tmp_path: Path) -> None:
    middle = middle_of(script(Middle(), tmp_path / "amt-s.pt"), "cpu")
    video = np.full((4, 16, 16, 3), 10, np.uint8)
    video[3] = 255
    assert smoothness(video, middle) == 1
    with pytest.raises(NotMeasured, match="3 frames"):
        smoothness(video[:2], middle)


class Shape(nn.Module):
    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        assert before.shape[2] % 16 == 0 and before.shape[3] % 16 == 0
        return after


def test_the_interpolator_sees_multiples_of_16_and_the_answer_has_the_old_size(tmp_path: Path) -> None:
    middle = middle_of(script(Shape(), tmp_path / "amt-s.pt"), "cpu")
    after = torch.rand(1, 3, 21, 50)
    assert torch.equal(middle(torch.zeros_like(after), after), after)


# --- inputs -------------------------------------------------------------------------------------


def test_fid_sees_every_frame_as_it_is(tmp_path: Path) -> None:
    call = features_of(script(Mean(), tmp_path / "fid.pt"), "cpu")
    found = collect(call, networks.pictures(frames(37)))
    assert found.shape == (37, 6) and found.dtype == np.float32
    assert np.allclose(found[:, :3], np.add(GREY, np.arange(37)[:, None]))
    assert next(networks.pictures(frames(3))).dtype == torch.uint8


def test_fvd_r_sees_whole_pieces_of_16_frames_around_the_mean_of_kinetics(tmp_path: Path) -> None:
    call = features_of(script(Mean(), tmp_path / "fvd_r.pt"), "cpu")
    found = collect(call, networks.pieces_for_resnet(frames(90)))
    middle = np.arange(5)[:, None] * 16 + 7.5
    wanted = np.add(GREY, middle) - networks.KINETICS_MEAN
    assert found.shape == (5, 6) and np.allclose(found[:, :3], wanted, atol=1e-3)
    assert next(networks.pieces_for_resnet(frames(16))).shape == (1, 3, 16, 112, 112)


def test_fvd_i_sees_minus_one_to_one() -> None:
    batch = next(
        networks.pieces_for_i3d(np.stack([np.zeros((9, 9, 3)), np.full((9, 9, 3), 255)] * 8).astype("u1"))
    )
    assert batch.shape == (1, 3, 16, 224, 224)
    assert torch.allclose(batch[0, :, 0], torch.tensor(-1.0)) and torch.allclose(
        batch[0, :, 1], torch.tensor(1.0)
    )


def test_a_video_of_15_frames_has_no_piece() -> None:
    with pytest.raises(NotMeasured, match="needs 16 frames.*15"):
        list(networks.pieces_for_i3d(frames(15)))


def test_iqa_sees_one_frame_a_second_in_a_square_of_the_mean_colour(tmp_path: Path) -> None:
    call = scores_of(script(Brightness(), tmp_path / "iqa.pt"), "cpu")
    white = np.full((51, 10, 20, 3), 255, np.uint8)
    found = collect(call, networks.seconds(white, 25))
    assert found.shape == (3,)
    assert found == pytest.approx([(1 + np.mean(networks.CLIP_MEAN)) / 2] * 3, abs=0.01)


# --- expression ---------------------------------------------------------------------------------


def test_the_expression_is_64_of_257_numbers(tmp_path: Path) -> None:
    call = features_of(script(Face(), tmp_path / "expression.pt"), "cpu")
    found = networks.expression(collect(call, networks.faces(np.full((3, 8, 8, 3), 255, np.uint8))))
    assert np.array_equal(found, np.tile(np.arange(80, 144), (3, 1)))
    assert networks.expression(found) is found
    with pytest.raises(NotMeasured, match="65 numbers.*64, or all 257"):
        networks.expression(np.zeros((3, 65)))


def standard_face() -> np.ndarray:
    """(68, 3), y up: eyes, nose and mouth of a face about two units tall."""
    face = np.zeros((68, 3))
    face[[36, 39]], face[[42, 45]] = [-0.3, 0.3, 0.1], [0.3, 0.3, 0.1]
    face[30], face[48], face[54] = [0, -0.05, 0.5], [-0.25, -0.4, 0.2], [0.25, -0.4, 0.2]
    return face


def test_a_face_is_cut_out_as_deep3dfacerecon_does_it() -> None:
    """Seen from the front, 50 pixels per unit around (120, 90): the square's unit is 102 pixels of 224."""
    five = standard_face()[[36, 42, 30, 48, 54]]
    seen = np.array([120, 90]) + 50 * five[:, :2] * [1, -1]
    box = face_box(seen, five)
    assert box.side == pytest.approx(224 * 50 / FACE_SCALE)
    assert (box.x + box.side / 2, box.y + box.side / 2) == pytest.approx((120, 90))


def test_faces_are_aligned_in_every_frame() -> None:
    """A white dot at the standard's origin stays in the middle of the square, wherever the face goes."""
    pictures, points = np.zeros((2, 200, 300, 3), np.uint8), np.zeros((2, 68, 2), np.float32)
    for index, (x, y) in enumerate([(120, 90), (180, 120)]):
        pictures[index, y - 3 : y + 3, x - 3 : x + 3] = 255
        points[index] = [x, y] + 50 * standard_face()[:, :2] * [1, -1]
    faces = aligned_faces(pictures, points, standard_face())
    assert faces.shape == (2, FACE_SIDE, FACE_SIDE, 3)
    for face in faces:
        assert np.argwhere(face[..., 0] > 128).mean(0) == pytest.approx([111.5, 111.5], abs=1)


# --- files that are missing or wrong ------------------------------------------------------------


ALL = (
    networks.AMT,
    networks.SYNCNET,
    networks.INCEPTION,
    networks.RESNET,
    networks.I3D,
    networks.DEEP3D,
    networks.STANDARD_FACE,
    networks.Q_ALIGN,
)


@pytest.mark.parametrize("network", ALL, ids=lambda network: network.files[0])
def test_a_missing_network_names_its_file_origin_and_licence(
    network: networks.Network, tmp_path: Path
) -> None:
    for folder in (None, tmp_path):
        with pytest.raises(NotMeasured) as caught:
            network.find(folder)
        sentence = str(caught.value)
        assert all(part in sentence for part in (*network.files, network.origin, network.licence))
    (tmp_path / network.files[-1]).touch()
    assert network.find(tmp_path) == tmp_path / network.files[-1]


def test_the_published_files_are_asked_for_features(tmp_path: Path) -> None:
    """NVIDIA's Inception and StyleGAN-V's I3D give probabilities unless told otherwise."""

    class Inception(nn.Module):
        def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
            return torch.full((len(images), 4), 1.0 if return_features else 0.0)

    class Kinetics(nn.Module):
        def forward(
            self, x: Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False
        ) -> Tensor:
            raw = return_features and not rescale and not resize
            return torch.full((len(x), 4), 1.0 if raw else 0.0)

    for module, name in ((Inception(), "inception-2015-12-05.pt"), (Kinetics(), "i3d_torchscript.pt")):
        call = features_of(script(module, tmp_path / name), "cpu")
        assert call(torch.zeros(2, 3, 8, 8)).unique().tolist() == [1]


def test_a_file_that_is_no_torchscript_is_named(tmp_path: Path) -> None:
    (tmp_path / "fid.pt").write_bytes(b"not a network")
    with pytest.raises(NotMeasured, match="fid.pt is not a TorchScript file"):
        features_of(tmp_path / "fid.pt", "cpu")


class Wide(nn.Module):
    def forward(self, batch: Tensor) -> Tensor:
        return batch


class Broken(nn.Module):
    def forward(self, batch: Tensor) -> Tensor:
        return batch.float().flatten(1) / 0


class Picky(nn.Module):
    def forward(self, batch: Tensor) -> Tensor:
        assert batch.shape[1] == 7, "seven channels"
        return batch


@pytest.mark.parametrize(
    "module, words",
    [
        (Wide(), r"gave \(2, 3, 4, 4\) for an input of shape \(2, 3, 4, 4\)"),
        (Broken(), "gave NaN or infinite values"),
        (Picky(), r"fails on an input of shape \(2, 3, 4, 4\).*seven channels"),
    ],
)
def test_a_network_that_breaks_its_contract_is_named(module: nn.Module, words: str, tmp_path: Path) -> None:
    call = features_of(script(module, tmp_path / "fid.pt"), "cpu")
    with pytest.raises(NotMeasured, match=f"fid.pt {words}"):
        call(torch.ones(2, 3, 4, 4))


def test_both_missing_files_of_e_fid_are_named_at_once(tmp_path: Path) -> None:
    tools = Tools(Settings(tmp_path, "points", "cpu"))
    with pytest.raises(NotMeasured, match=r"expression\.pt.*And it needs similarity_Lm3D_all\.mat"):
        tools.find_all(networks.DEEP3D, networks.STANDARD_FACE)
    (tmp_path / "expression.pt").touch()
    with pytest.raises(NotMeasured, match="^it needs similarity_Lm3D_all"):
        tools.find_all(networks.DEEP3D, networks.STANDARD_FACE)
