"""Encoded clips on disk -> training samples."""

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import CLIPS, ENCODERS, OTHER_VAE, RECIPE, TINY, tensors_of, write_clip
from torch import Tensor

from loopy_model.conditions import Speech
from loopy_model.motion import SAMPLINGS, TemporalSegments
from loopy_model.movement import exp, glo, log_variance
from loopy_model.prepare import encoded
from loopy_model.prepare.encoded import BadClip, EncodedClip, read_metadata, write_encoded
from loopy_model.train.data import (
    DRAWS,
    MOTION,
    NOISE,
    WINDOWS,
    Place,
    Pool,
    PreparedClips,
    Samples,
    Schedule,
    Window,
    _generator,
    load,
)
from loopy_model.train.objective import Batch, Draws

NAN, INF = float("nan"), float("inf")

ONE, TWO = RECIPE.stages
FRAMES, AUDIO = TINY.clip.frames, TINY.audio
Clips = tuple[PreparedClips, PreparedClips]


def numbered(data: Path, frames: int = 24) -> tuple[PreparedClips, EncodedClip]:
    """A clip whose latents and speech say which frame they are of."""
    clip = EncodedClip("numbered", frames, "train", True)
    number = torch.arange(frames).float()
    write_clip(
        data,
        clip,
        latents=number[:, None, None, None].expand(-1, 4, 4, 4),
        speech=number[:, None, None].expand(-1, AUDIO.layers + 2, AUDIO.width),
    )
    return PreparedClips(data, "train", TINY), clip


def numbers(latents: Tensor) -> list:
    return latents[..., 0, 0, 0].tolist()


# --- one sample ---------------------------------------------------------------------------------


def test_a_sample_is_consecutive_frames_with_their_portrait_motion_frames_and_speech(tmp_path: Path) -> None:
    clips, clip = numbered(tmp_path)  # TINY: motion frames of age 0 1 2 4
    sample = clips.read(Window(clip, start=10, frames=4, portrait=23))
    assert numbers(sample.clip) == [10, 11, 12, 13]
    assert numbers(sample.reference) == 23
    assert numbers(sample.motion) == [9, 8, 7, 5]
    assert sample.present.tolist() == [True] * 4
    assert sample.windows[..., 0, 0].tolist() == [
        [f + d for d in (-2, -1, 0, 1, 2)] for f in (10, 11, 12, 13)
    ]
    assert sample.clip.dtype == sample.windows.dtype == torch.float32


def test_motion_frames_before_the_video_are_zero_and_absent(tmp_path: Path) -> None:
    clips, clip = numbered(tmp_path)
    sample = clips.read(Window(clip, start=3, frames=4, portrait=1))
    assert sample.present.tolist() == [True, True, True, False]
    assert numbers(sample.motion)[:3] == [2, 1, 0] and not sample.motion[3].any()
    first = clips.read(Window(clip, start=0, frames=4, portrait=5))
    assert not first.present.any() and not first.motion.any()


@pytest.mark.parametrize("start", range(14))
def test_motion_frames_are_those_of_inference(clips: Clips, start: int) -> None:
    clip = clips[0].clips[1]
    assert clip.name == "middle" and clip.frames == 17
    latents = tensors_of(clip)["latents"].half().float()
    segments = TemporalSegments(TINY.clip)
    motion, present = segments.abstract(latents[:start], segments.ages())
    sample = clips[0].read(Window(clip, start, 4, 0))
    assert torch.equal(sample.motion, motion) and torch.equal(sample.present, present)


def sampled(data: Path, sampling: str) -> PreparedClips:
    return PreparedClips(data, "train", replace(TINY, clip=replace(TINY.clip, sampling=sampling)))


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("start", range(14))
def test_motion_frames_of_every_sampling_are_those_of_inference(
    data: Path, sampling: str, start: int
) -> None:
    clips, clip = sampled(data, sampling), CLIPS[1]
    latents, segments = tensors_of(clip)["latents"].half().float(), TemporalSegments(TINY.clip, sampling)
    for seed in range(3):
        first, second = (torch.Generator().manual_seed(seed) for _ in range(2))
        motion, present = segments.abstract(latents[:start], segments.ages(first))
        sample = clips.read(Window(clip, start, 4, 0), second)
        assert torch.equal(sample.motion, motion) and torch.equal(sample.present, present)


def test_means_are_over_the_frames_that_exist(tmp_path: Path) -> None:
    numbered(tmp_path)  # TINY: motion frames are the mean of ages 0, 1, 2 and 3, 4 and 5
    clips = sampled(tmp_path, "mean")
    sample = clips.read(Window(clips.clips[0], start=10, frames=4, portrait=0))
    assert numbers(sample.motion) == [9, 8, 6.5, 4.5] and sample.present.all()
    early = clips.read(Window(clips.clips[0], start=5, frames=4, portrait=0))
    assert numbers(early.motion) == [4, 3, 1.5, 0] and early.present.all()
    first = clips.read(Window(clips.clips[0], start=4, frames=4, portrait=0))
    assert numbers(first.motion) == [3, 2, 0.5, 0] and first.present.tolist() == [True] * 3 + [False]


class Noted:
    """A tensor in a file; remembers how many frames each reading took."""

    def __init__(self, frames: int) -> None:
        self.tensor, self.reads = torch.zeros(frames, 4, 4, 4), []

    def get_shape(self) -> list[int]:
        return list(self.tensor.shape)

    def __getitem__(self, frames: slice) -> Tensor:
        self.reads.append(len(self.tensor[frames]))
        return self.tensor[frames]


@pytest.mark.parametrize("sampling, reads", [("uniform", [1] * 4), ("mean", [6]), ("random", [6])])
def test_no_more_than_the_past_that_is_looked_at_is_read(data: Path, sampling: str, reads: list[int]) -> None:
    clips, latents = sampled(data, sampling), Noted(200)
    clips._motion_frames(latents, 100, clips.segments.ages(torch.Generator().manual_seed(0)))
    assert latents.reads == reads


def test_cells_of_eyes_and_mouth_weigh_more_all_through_a_video(tmp_path: Path) -> None:
    clip = EncodedClip("face", 12, "train", True)
    landmarks = torch.full((12, 68, 2), 0.1)  # jaw, brows and nose: the first cell of 4x4
    landmarks[:, 36:48] = torch.tensor([0.6, 0.3])  # eyes: x before y
    landmarks[5, 48:] = torch.tensor([0.4, 1.2])  # a mouth that once is below the picture
    landmarks[:5, 48:] = landmarks[6:, 48:] = torch.tensor([0.3, 0.8])
    write_clip(tmp_path, clip, landmarks=landmarks)
    clips = PreparedClips(tmp_path, "train", TINY)
    expected = torch.ones(4, 4)
    expected[1, 2] = expected[3, 1] = 2.5
    stage = replace(TWO, face_weight=2.5)
    for index in range(stage.batch):
        sample, _ = Samples(clips, stage, (0, 1))[Place(0, index)]
        assert torch.equal(sample.weight, expected)
    assert Samples(clips, TWO, (0, 1))[Place(0, 0)][0].weight is None


def test_noise_on_motion_frames_is_each_samples_own_and_leaves_empty_ones_empty(data: Path) -> None:
    clips = PreparedClips(data, "train", TINY)
    clean = Samples(clips, TWO, (0, 1), batch=200)
    noisy = Samples(clips, replace(TWO, motion_noise=0.5), (0, 1), batch=200)
    amounts = []
    for place in (Place(3, i) for i in range(200)):
        (one, _), (other, _) = clean[place], noisy[place]
        added = other.motion - one.motion
        assert not added[~one.present].any()
        assert all(
            torch.equal(getattr(one, name), getattr(other, name)) for name in ("clip", "reference", "windows")
        )
        if one.present.all():
            amounts.append(added.std().item())
    assert torch.equal(noisy[Place(3, 7)][0].motion, noisy[Place(3, 7)][0].motion)
    assert 0 < min(amounts) < 0.1 and 0.4 < max(amounts) < 0.6 and 0.2 < np.mean(amounts) < 0.3


def test_random_motion_frames_are_drawn_for_each_sample_of_each_step(data: Path) -> None:
    clips, drawn = sampled(data, "random"), set()
    for seed in ((0, 1), (1, 1)):
        samples = Samples(clips, TWO, seed, batch=16)
        for place in (Place(step, i) for step in range(3) for i in range(16)):
            sample, _ = samples[place]
            generator = _generator(MOTION, *seed, *place)
            expected = clips.read(samples.windows(place.step)[place.index], generator)
            assert torch.equal(sample.motion, expected.motion)
            drawn.add(str(clips.segments.ages(_generator(MOTION, *seed, *place))))
    assert len(drawn) == 6  # two of four frames of the far segment


def test_samples_and_draws_are_the_same_for_every_ablation(data: Path) -> None:
    """But for the motion frames themselves, so that ablations can be compared."""
    unet, audio = replace(TINY.unet, temporal="joint"), replace(TINY.audio, to_latents=False)
    others = [replace(TINY, unet=unet), replace(TINY, audio=audio)]
    others += [replace(TINY, clip=replace(TINY.clip, sampling=sampling)) for sampling in ("mean", "random")]
    full = Samples(PreparedClips(data, "train", TINY), TWO, (0, 1))
    for config in others:
        less = Samples(PreparedClips(data, "train", config), TWO, (0, 1))
        for place in (Place(3, 0), Place(4, 2)):
            one, other = everything(*full[place]), everything(*less[place])
            kept = one.keys() - ({"motion"} if config.clip != TINY.clip else set())
            assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in kept)


@pytest.mark.parametrize("start", [0, 1, 2, 6, 11, 12, 13])
def test_speech_windows_are_those_of_inference_also_at_the_ends(clips: Clips, start: int) -> None:
    clip = clips[0].clips[1]
    speech = Speech(tensors_of(clip)["speech"].half().float(), 25)
    windows = clips[0].read(Window(clip, start, 4, 0)).windows
    assert torch.equal(windows, speech.windows(start, 4, TINY.clip.audio_context, AUDIO.layers)[0])


@pytest.mark.parametrize("start", [0, 7, 13])
def test_movement_and_expression_are_those_of_the_frames_shown(clips: Clips, start: int) -> None:
    clip = clips[0].clips[1]
    landmarks = tensors_of(clip)["landmarks"][start : start + 4]
    sample = clips[0].read(Window(clip, start, 4, 0))
    assert sample.movement.item() == pytest.approx(log_variance(glo(landmarks)).item(), rel=1e-6)
    assert sample.expression.item() == pytest.approx(log_variance(exp(landmarks)).item(), rel=1e-6)


def test_latents_are_scaled_for_the_model(data: Path) -> None:
    window = Window(CLIPS[0], 9, 4, 3)
    plain, scaled = (
        PreparedClips(data, "train", replace(TINY, latent_scale=scale)).read(window)
        for scale in (1.0, 0.18215)
    )
    for name in ("clip", "reference", "motion"):
        assert torch.equal(getattr(plain, name) * 0.18215, getattr(scaled, name)), name
    assert torch.equal(plain.windows, scaled.windows)


def test_stage_one_reads_single_frames_and_nothing_else(clips: Clips) -> None:
    silent = next(clip for clip in clips[0].clips if not clip.voiced)
    sample = clips[0].read(Window(silent, 24, 1, 0))
    assert sample.clip.shape == (1, 4, 4, 4) and sample.motion is None and sample.windows is None
    assert torch.equal(sample.clip[0], tensors_of(silent)["latents"][24].half().float())


# --- which samples ------------------------------------------------------------------------------


def starts(clips: PreparedClips, stage, count: int = 40_000) -> Counter:  # noqa: ANN001
    windows = clips.pool(stage).draw(count, np.random.default_rng(0))
    assert {window.frames for window in windows} == {1 if stage.spatial_only else FRAMES}
    return Counter((window.clip.name, window.start) for window in windows)


def test_every_start_of_every_clip_is_equally_likely(clips: Clips) -> None:
    found = starts(clips[0], TWO)
    possible = {("long", s) for s in range(37)} | {("middle", s) for s in range(14)} | {("one-start", 0)}
    assert found.keys() == possible
    expected = 40_000 / len(possible)
    assert all(abs(count - expected) < 5 * expected**0.5 for count in found.values())


def test_silent_and_short_clips_are_for_stage_one_alone(clips: Clips) -> None:
    assert {name for name, _ in starts(clips[0], TWO)} == {"long", "middle", "one-start"}
    found = starts(clips[0], ONE)
    train = [clip for clip in CLIPS if clip.split == "train"]
    assert found.keys() == {(clip.name, s) for clip in train for s in range(clip.frames)}
    assert {name for name, _ in starts(clips[1], TWO)} == {"held-out"}


def test_portraits_are_any_frame_of_the_same_clip(clips: Clips) -> None:
    windows = clips[0].pool(TWO).draw(20_000, np.random.default_rng(0))
    portraits = Counter(window.portrait for window in windows if window.clip.name == "middle")
    assert portraits.keys() == set(range(17))
    expected = portraits.total() / 17
    assert all(abs(count - expected) < 5 * expected**0.5 for count in portraits.values())


class Walked(list):
    """Counts how often it is gone through."""

    times = 0

    def __iter__(self):  # noqa: ANN204
        self.times += 1
        return super().__iter__()


def test_clips_are_gone_through_once_however_many_samples_are_drawn(clips: Clips) -> None:
    pool = clips[0].pool(TWO)
    counted = Pool(Walked(pool.clips), pool.frames)
    for seed in range(3):
        drawn = counted.draw(50, np.random.default_rng(seed))
        assert drawn == pool.draw(50, np.random.default_rng(seed))
    assert counted.clips.times == 1


def test_windows_are_a_function_of_the_generator(clips: Clips) -> None:
    one, again, other = (clips[0].pool(TWO).draw(50, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one == again != other


# --- repeatable ---------------------------------------------------------------------------------


def everything(batch: Batch, draws: Draws) -> dict[str, Tensor]:
    return {k: v for values in (batch, draws) for k, v in vars(values).items() if v is not None}


def whole_batches(clips: PreparedClips, workers: int, pieces: int, processes: int) -> list[dict[str, Tensor]]:
    """The batches of steps 3 and 4 of stage two, put together from every process and piece."""
    made = []
    for rank in range(processes):
        schedule = Schedule(range(3, 5), 4, pieces, rank, processes)
        samples = Samples(clips, TWO, (0, 1))
        read = [everything(*b) for b in load(samples, schedule, workers, torch.device("cpu"))]
        made.append([read[:pieces], read[pieces:]])
    return [
        {
            name: torch.cat([made[r][step][p][name] for p in range(pieces) for r in range(processes)])
            for name in keys
        }
        for step in (0, 1)
        for keys in [made[0][step][0]]
    ]


@pytest.mark.parametrize(
    "workers, pieces, processes", [(1, 1, 1), (2, 1, 1), (0, 4, 1), (0, 1, 2), (0, 2, 2)]
)
def test_samples_do_not_depend_on_workers_pieces_and_processes(
    data: Path, workers: int, pieces: int, processes: int
) -> None:
    clips = sampled(data, "random")
    expected = whole_batches(clips, 0, 1, 1)
    torch.manual_seed(workers)  # the global generators have no part in it
    np.random.seed(workers)
    for one, other in zip(expected, whole_batches(clips, workers, pieces, processes), strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_streams_of_seeds_stages_and_steps_are_different(clips: Clips) -> None:
    """Windows, draws and noise; also where the numbers of a seed could be read in another order."""
    seeds = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (0, 2)]
    drawn = {(seed, step): Samples(clips[0], TWO, seed, batch=64) for seed in seeds for step in range(3)}
    windows = {str(samples.windows(step)) for (_, step), samples in drawn.items()}
    timesteps = {str(samples.draws(step).timestep.tolist()) for (_, step), samples in drawn.items()}
    assert len(windows) == len(timesteps) == len(drawn)
    noises = [samples[Place(step, i)][1].noise for (_, step), samples in drawn.items() for i in range(3)]
    noises += [
        torch.randn(noises[0].shape, generator=torch.Generator().manual_seed(seed)) for seed in range(3)
    ]
    assert len({noise.sum().item() for noise in noises}) == len(noises)


def test_the_noise_of_a_sample_is_not_shared_with_its_draws(clips: Clips) -> None:
    """The tags of the streams: the same numbers behind another tag are another stream."""
    tags = (WINDOWS, DRAWS, NOISE, MOTION)
    first = {torch.rand(4, generator=_generator(tag, 0, 1, 3)).sum().item() for tag in tags}
    assert len(first) == len(set(tags)) == 4


# --- the schedule -------------------------------------------------------------------------------


def test_a_schedule_cuts_every_batch_into_all_its_samples_once() -> None:
    for batch in (1, 2, 6, 8, 24):
        for pieces in (1, 2, 3, 4):
            for processes in (1, 2, 3, 8):
                if batch % (pieces * processes):
                    with pytest.raises(ValueError, match="cannot be cut evenly"):
                        Schedule(range(1), batch, pieces, 0, processes)
                    continue
                parts = [Schedule(range(5, 8), batch, pieces, rank, processes) for rank in range(processes)]
                read = [list(part) for part in parts]
                assert {len(r) for r in read} == {3 * pieces} == {len(part) for part in parts}
                assert {len(places) for r in read for places in r} == {batch // (pieces * processes)}
                found = Counter(place for r in read for places in r for place in places)
                assert found == Counter({(step, i): 1 for step in (5, 6, 7) for i in range(batch)})
                for r in read:  # one step after the other
                    steps = [place.step for places in r for place in places]
                    assert steps == sorted(steps)


# --- what cannot be used ------------------------------------------------------------------------


def test_another_vae_and_another_speech_encoder_are_refused(data: Path) -> None:
    window = Window(CLIPS[0], 9, 4, 3)
    config = replace(TINY, unet=replace(TINY.unet, latent_channels=16))
    with pytest.raises(BadClip, match="long has latents of 4 channels, the model 16; encode"):
        PreparedClips(data, "train", config).read(window)
    for audio in (replace(AUDIO, width=16), replace(AUDIO, layers=5)):
        with pytest.raises(BadClip, match="long has speech of 4 layers of width 8, the model reads"):
            PreparedClips(data, "train", replace(TINY, audio=audio)).read(window)


@pytest.mark.parametrize("other, what", [(OTHER_VAE, "VAE"), (ENCODERS | {"size": 64}, "size")])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_folder_of_several_encoders_is_refused(tmp_path: Path, split: str, other: dict, what: str) -> None:
    """Also where one made the clips for training and another those for testing."""
    write_clip(tmp_path, CLIPS[0])
    write_clip(tmp_path, CLIPS[5], encoders=other)
    with pytest.raises(BadClip, match=f"has clips of more than one {what} .held-out and long.; encode"):
        PreparedClips(tmp_path, split, TINY)
    write_clip(tmp_path, CLIPS[5], encoders=ENCODERS | {"vae": {"path": "moved", "sha256": "0"}})
    assert PreparedClips(tmp_path, split, TINY).clips


def test_clips_of_another_size_are_refused(data: Path) -> None:
    clips = PreparedClips(data, "train", replace(TINY, image_size=64))
    with pytest.raises(BadClip, match="long was encoded at 32x32 pixels, .* pictures have 64; .* --size 64"):
        clips.read(Window(CLIPS[0], 0, 1, 0))


def test_a_folder_without_encoded_clips_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadClip, match="has no encoded clips; .*prepare encode"):
        PreparedClips(tmp_path, "train", TINY)


def test_what_another_process_is_still_writing_is_no_clip(tmp_path: Path) -> None:
    for clip in (CLIPS[0], CLIPS[5]):
        write_clip(tmp_path, clip)
    (tmp_path / "encoded" / ".partial-host1-long.safetensors").write_bytes(b"half of it")
    assert [clip.name for clip in PreparedClips(tmp_path, "train", TINY).clips] == ["long"]


def test_missing_test_clips_and_missing_sound_are_refused(tmp_path: Path) -> None:
    write_clip(tmp_path, replace(CLIPS[0], voiced=False))
    write_clip(tmp_path, CLIPS[3])
    train, test = (PreparedClips(tmp_path, split, TINY) for split in ("train", "test"))
    train.pool(ONE)
    with pytest.raises(BadClip, match="has no test clip for stage one; .*choose test videos"):
        test.pool(ONE)
    with pytest.raises(BadClip, match="has no train clip with sound and 4 frames for stage two"):
        train.pool(TWO)


def test_the_fingerprint_knows_what_changes_the_draws(tmp_path: Path) -> None:
    def fingerprint(*clips: EncodedClip) -> str:
        for path in (tmp_path / "encoded").glob("*"):
            path.unlink()
        for clip in clips:
            write_clip(tmp_path, clip)
        return PreparedClips(tmp_path, "train", TINY).fingerprint()

    first, second, test = CLIPS[0], CLIPS[1], CLIPS[5]
    known = fingerprint(first, second, test)
    assert fingerprint(second, first) == known  # test clips are not drawn from
    others = (first,), (first, replace(second, frames=18)), (first, replace(second, voiced=False))
    assert known not in [fingerprint(*other) for other in others]


# --- the file -----------------------------------------------------------------------------------


UNHEARD_OF = [(name, value) for name in ("latents", "speech", "landmarks") for value in (NAN, INF)]


@pytest.mark.parametrize(("name", "value"), [*UNHEARD_OF, ("latents", 1e6), ("speech", 1e6)])
def test_what_float16_cannot_hold_is_not_written(tmp_path: Path, name: str, value: float) -> None:
    clip, tensors = CLIPS[0], tensors_of(CLIPS[0])
    tensors[name][5] = value
    with pytest.raises(BadClip, match=f"long: its {name} hold values"):
        write_encoded(tmp_path, clip, tensors["latents"], tensors["landmarks"], tensors["speech"], {})
    assert not list(tmp_path.rglob("*.*"))


def test_a_half_written_clip_has_a_name_of_this_process_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines may encode the same clip; neither renames what the other is writing."""
    names = []
    monkeypatch.setattr(encoded, "save_tensors", lambda path, *_: names.append(path.name) or path.touch())
    path = write_clip(tmp_path, CLIPS[0])
    assert names[0].startswith(".partial-") and str(os.getpid()) in names[0]
    assert list(path.parent.iterdir()) == [path]


def test_an_encoded_clip_can_be_read_back(tmp_path: Path) -> None:
    path = write_clip(tmp_path, CLIPS[4])
    clip, made_by = read_metadata(path)
    assert clip == CLIPS[4] and made_by["size"] == 32
