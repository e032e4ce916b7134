"""The crop and the files of a clip."""

import json
from dataclasses import asdict
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from little_videos import face, faces, grey, scene
from safetensors import safe_open

from loopy_model.prepare.clips import (
    crop,
    crop_box,
    in_crop,
    sync_boxes,
    write_pictures,
    write_record,
    write_video,
)
from loopy_model.prepare.raw import RawVideo, Unreadable, Voice, upright
from loopy_model.prepare.records import Box, CannotWrite, Clip
from loopy_model.video import read_video

# --- the square ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_laws_of_the_crop_box(seed: int) -> None:
    rng = np.random.default_rng(seed)
    width, height = rng.integers(60, 2000, 2)
    size = rng.uniform(10, min(width, height))
    middle, spread = rng.uniform(0, [width, height]), size * rng.choice([0.02, 0.2, 2])
    place = middle + rng.normal(0, spread, (20, 2))
    points = np.stack([face(x, y, size) for x, y in place])
    box = crop_box(points, width, height)
    low, high = points.min((0, 1)), points.max((0, 1))
    # It holds the face in every frame.
    assert (low >= [box.x, box.y]).all() and (high <= [box.x + box.side, box.y + box.side]).all()
    assert (in_crop(points, box) >= 0).all() and (in_crop(points, box) <= 1).all()
    # It is inside the picture whenever such a square can be.
    inside = (
        (low >= 0).all() and (high <= [width, height]).all() and (high - low).max() + 3 < min(width, height)
    )
    if inside:
        assert box.x >= 0 and box.y >= 0 and box.x + box.side <= width and box.y + box.side <= height


def test_with_room_the_face_is_half_of_the_side_and_has_air_above() -> None:
    points = faces(30, 500, 500, 100)
    box = crop_box(points, 1000, 1000)
    assert box.side == pytest.approx(2 * np.ptp(points[0], axis=0).max(), abs=1)
    relative = in_crop(points, box)
    assert relative[..., 0].mean() == pytest.approx(0.5, abs=0.01)
    assert relative[..., 1].min() > 1 - relative[..., 1].max() > 0.05


def test_at_the_edge_it_is_shifted_and_in_a_small_picture_shrunk() -> None:
    assert crop_box(faces(2, 60, 300, 80), 1000, 1000).x == 0
    box = crop_box(faces(2, 60, 60, 80), 1000, 120)
    assert box == (0, 0, 120)


def test_a_moving_face_widens_the_box() -> None:
    points = faces(2, 400, 500, 100)
    points[1] += np.float32([200, 0])
    box = crop_box(points, 1000, 1000)
    assert box.side > 400
    relative = in_crop(points, box)
    assert relative.min() >= 0.04 and relative.max() <= 0.96


def test_a_face_that_is_larger_than_the_picture_repeats_the_border() -> None:
    box = crop_box(faces(2, 100, 50, 120), 200, 100)
    assert box.side > 120 and box.y < 0
    picture = scene(0, 200, 100)
    square = crop(picture, box, 64, 200)
    assert square.shape == (64, 64, 3)
    assert np.abs(square[0].astype(int) - square[1]).max() <= 3  # the border goes on


def test_crop_takes_what_the_box_says() -> None:
    picture = grey(0, 200, 100)
    picture[20:60, 50:90] = 255
    assert (crop(picture, Box(50, 20, 40), 16, 200) == 255).all()
    assert np.array_equal(crop(picture, Box(10, 10, 64), 64, 200), picture[10:74, 10:74])


def test_syncnet_sees_the_face_wherever_it_moves() -> None:
    move = np.float32(np.linspace(0, 200, 60))[:, None, None]
    points = faces(60, 300, 300, 100) + move * np.float32([1, 0.5])
    relative = np.stack([in_crop(p, box) for p, box in zip(points, sync_boxes(points))])[10:-10]
    assert np.abs(relative - relative[0]).max() < 0.01
    low, high = relative[0].min(0), relative[0].max(0)
    assert low[0] + high[0] == pytest.approx(1, abs=0.01)
    assert low[1] > 0 and 1 - high[1] > 2 / 7 - 0.01  # below the chin: 0.4 of 1.4 face boxes


def test_one_slip_does_not_move_what_syncnet_sees() -> None:
    points = faces(40)
    slipped = points.copy()
    slipped[20] += 30
    assert sync_boxes(slipped) == sync_boxes(points)


@pytest.mark.parametrize("box", [Box(300, 100, 400), Box(-50, 33, 555), Box(700, 301, 500)])
def test_a_smaller_copy_gives_the_same_crop(box: Box) -> None:
    from PIL import Image

    picture = scene(0, 1000, 800)
    small = np.asarray(Image.fromarray(picture).resize((431, 345), Image.Resampling.BOX))
    difference = crop(picture, box, 64, 1000).astype(int) - crop(small, box, 64, 1000)
    assert np.abs(difference).mean() < 4


def test_landmarks_and_pixels_agree() -> None:
    picture = grey(0, 300, 200)
    picture[100:102, 150:152] = 255  # its middle is (151, 101)
    box = Box(100, 50, 128)
    x, y = in_crop(np.float32([151, 101]), box) * 512
    square = crop(picture, box, 512, 300).mean(2)
    rows, columns = np.nonzero(square > 128)
    assert (columns.mean() + 0.5, rows.mean() + 0.5) == pytest.approx((x, y), abs=0.6)


# --- the files ----------------------------------------------------------------------------------


def noise(frames: int) -> np.ndarray:
    """(frames * 640,) int16, every value"""
    return np.random.default_rng(0).integers(-32768, 32768, frames * 640).astype(np.int16)


@pytest.mark.parametrize("frames", [50, 51, 77])
def test_the_voice_comes_back_bit_for_bit(tmp_path: Path, frames: int) -> None:
    voice, path = noise(frames), tmp_path / "a.mp4"
    write_pictures(path, [scene(0, 64, 64)] * frames, voice)
    with RawVideo(path) as video:
        heard = Voice()
        count = len(list(video.play(heard)))
        assert np.array_equal(heard.waveform(video.origin, count), voice) and count == frames
    waveform, rate = read_video(path)[2:]  # as the next step reads it
    assert rate == 16_000
    assert torch.equal((waveform[0] * 32768).short(), torch.from_numpy(voice))


def test_pictures_come_back_at_25_fps_with_their_colours(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    colours = [(200, 40, 40), (40, 200, 40), (40, 40, 200), (128, 128, 128), (250, 250, 250), (5, 5, 5)]
    pictures = [np.full((64, 64, 3), colour, np.uint8) for colour in colours]
    write_pictures(path, pictures, None)
    frames, fps, waveform, _ = read_video(path)
    assert fps == 25 and waveform is None and frames.shape == (6, 64, 64, 3)
    assert (frames * 255 - torch.from_numpy(np.stack(pictures))).abs().max() <= 4
    with av.open(str(path)) as file:
        assert [frame.time for frame in file.decode(video=0)] == pytest.approx(np.arange(6) / 25)


def test_a_source_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    def pictures():
        yield scene(0, 64, 64)
        raise Unreadable("it breaks off.")

    with pytest.raises(Unreadable, match="breaks off"):
        write_video(tmp_path / "a.mp4", pictures(), None)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "clips").write_text("")
    with pytest.raises(CannotWrite, match="cannot write .*a.mp4"):
        write_video(tmp_path / "clips" / "a.mp4", iter([scene(0, 64, 64)]), None)


def test_the_record_of_a_clip(tmp_path: Path) -> None:
    clip = Clip("a-000", "Größe/a.mp4", 1.0, 3.0, 50, "train", True, Box(1, 2, 300), {"yaw": 3.5})
    write_record(tmp_path / "a.safetensors", clip, faces(50, 0.5, 0.5, 0.5))
    with safe_open(str(tmp_path / "a.safetensors"), "np") as file:
        assert file.get_tensor("landmarks").shape == (50, 68, 2)
        assert file.get_tensor("landmarks").dtype == np.float32
        metadata = file.metadata()
    assert metadata["format"] == "loopy-clip"
    again = Clip(**json.loads(metadata["clip"]))
    assert again == clip and asdict(again) == asdict(clip)


def test_upright_and_crop_keep_the_types(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a.mp4", [scene(0, 64, 64)], None)
    with RawVideo(tmp_path / "a.mp4") as video:
        picture = upright(next(video.play())[1], video.size)
    assert crop(picture, Box(0, 0, 64), 32, 64).dtype == np.uint8
