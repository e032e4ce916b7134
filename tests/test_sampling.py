"""Clip after clip: motion frames, resuming, cancelling, counting."""

import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from oracles import small_model
from torch import Tensor, nn

from loopy_model import sampling
from loopy_model.conditions import Conditions, Speech
from loopy_model.config import PUPPET, TINY, ClipGeometry, LoopyConfig
from loopy_model.guidance import Guidance
from loopy_model.model import BeforeCall, Loopy, Part, no_matter
from loopy_model.motion import SAMPLINGS, TemporalSegments
from loopy_model.sampling import MotionMemory, Request, SamplingOptions, Step, frame_noise, generate

LONG = replace(TINY, clip=ClipGeometry())  # LOOPY's geometry on TINY's width
SCALED = replace(TINY, latent_scale=0.18215)
QUICK = Guidance(1.0, 1.0)  # one pass per step
EVERY_SAMPLING = pytest.mark.parametrize("how", SAMPLINGS)


@pytest.fixture(scope="module")
def long() -> Loopy:
    return small_model(LONG)


@pytest.fixture
def ask(speak) -> Callable[..., Request]:  # noqa: ANN001
    portrait = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(11))

    def request(heard: int, config: LoopyConfig = TINY, how: str = "uniform", **more: object) -> Request:
        segments = TemporalSegments(config.clip, how)
        return Request(portrait, speak(heard, config), segments, **{"steps": 2, **more})

    return request


@torch.no_grad()
def video(model: Loopy, request: Request, before_call: BeforeCall = no_matter) -> Tensor:
    finished = [step.finished for step in generate(model, request, before_call)]
    return torch.cat([clip for clip in finished if clip is not None])


class Calls:
    """Counts passes through both nets of a model."""

    def __init__(self, model: Loopy, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read: list[Tensor] = []
        self.denoised = 0
        read, denoise = model.read, model.denoise

        def counting_read(latents: Tensor) -> list:
            self.read.append(latents)
            return read(latents)

        def counting_denoise(*args) -> Tensor:  # noqa: ANN002
            self.denoised += 1
            return denoise(*args)

        monkeypatch.setattr(model, "read", counting_read)
        monkeypatch.setattr(model, "denoise", counting_denoise)

    @property
    def pictures(self) -> int:
        return sum(len(latents) for latents in self.read)


# --- counting -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frames, clips",
    [
        (1, [1]),
        (4, [4]),
        (5, [4, 1]),
        (8, [4, 4]),
        (10, [4, 4, 2]),
    ],
)
def test_every_frame_is_generated_once_and_the_last_clip_is_trimmed(
    tiny: Loopy, ask: Callable[..., Request], frames: int, clips: list[int]
) -> None:
    steps = list(generate(tiny, ask(frames, steps=3)))
    assert [len(step.finished) for step in steps if step.finished is not None] == clips
    assert [step.index for step in steps] == list(range(1, 3 * len(clips) + 1))
    assert {step.total for step in steps} == {3 * len(clips)}
    assert all((step.finished is not None) == (step.index % 3 == 0) for step in steps)
    assert all(step.x0.shape == (4, 4, 4, 4) for step in steps)


@pytest.mark.parametrize(
    "start, frames, expected",
    [
        (0, None, 10),
        (4, None, 6),
        (4, 3, 3),
        (8, 9, 2),
    ],
)
def test_a_part_of_the_speech_can_be_asked_for(
    tiny: Loopy, ask: Callable[..., Request], start: int, frames: int | None, expected: int
) -> None:
    assert len(video(tiny, ask(10, start=start, frames=frames))) == expected


def test_no_speech_gives_no_frames(tiny: Loopy, ask: Callable[..., Request]) -> None:
    assert list(generate(tiny, ask(0))) == []


def test_finished_frames_are_the_last_x0_in_the_scale_of_the_vae(
    ask: Callable[..., Request],
) -> None:
    model = small_model(SCALED)  # zero terminal SNR ends at alpha 1: what is finished is x0
    last = list(generate(model, ask(4, SCALED)))[-1]
    assert torch.allclose(last.finished, last.x0, atol=1e-5)


def test_the_models_scale_is_applied_before_the_nets_and_taken_off_after(
    ask: Callable[..., Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    unscaled, scaled = small_model(TINY), small_model(SCALED)
    request = ask(8)
    larger = replace(request, portrait=request.portrait / 0.18215)
    monkeypatch.setattr(sampling, "frame_noise", lambda *_: iter([torch.ones(1, 4, 4, 4, 4)]))
    out = video(scaled, larger) * 0.18215
    assert torch.allclose(out, video(unscaled, request), atol=1e-3)


# --- seeds --------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_video_and_another_seed_another(
    tiny: Loopy, ask: Callable[..., Request]
) -> None:
    request = ask(8, seed=3)
    first = video(tiny, request)
    torch.manual_seed(99)  # the global generator has no part in it
    assert torch.equal(first, video(tiny, request))
    assert (first - video(tiny, replace(request, seed=4))).abs().max() > 0.01


def first_noise(request: Request, start: int, frames: int) -> Tensor:
    return next(frame_noise(request, start, frames))[0]


def test_each_frame_has_its_own_noise_wherever_a_clip_begins(ask: Callable[..., Request]) -> None:
    request = ask(12, seed=5)
    noise = first_noise(request, 0, 12)
    assert torch.equal(first_noise(request, 5, 3), noise[5:8])
    assert len({frame.sum().item() for frame in noise}) == 12
    many = first_noise(replace(request, portrait=torch.zeros(1, 4, 32, 32)), 0, 12)
    assert abs(many.mean()) < 0.01 and abs(many.std() - 1) < 0.01


def test_fresh_noise_is_new_in_every_step_and_the_same_in_every_run(
    tiny: Loopy, ask: Callable[..., Request]
) -> None:
    request = ask(8, seed=3, options=SamplingOptions(eta=1.0))
    noise, again = frame_noise(request, 0, 12), frame_noise(request, 0, 12)
    seen = [next(noise) for _ in range(4)]
    assert all(torch.equal(one, next(again)) for one in seen)
    assert torch.corrcoef(torch.stack([one.flatten() for one in seen])).triu(1).abs().max() < 0.1
    assert torch.equal(video(tiny, request), video(tiny, request))
    assert (video(tiny, request) - video(tiny, ask(8, seed=3))).abs().max() > 0.01


def test_fresh_noise_goes_on_after_a_resume_as_if_nothing_had_been(
    tiny: Loopy, ask: Callable[..., Request]
) -> None:
    request = ask(8, seed=3, options=SamplingOptions(eta=0.7))
    whole = video(tiny, request)
    rest = replace(request, start=4, past=whole[:4])
    assert torch.equal(video(tiny, rest), whole[4:])


SEEDS = [0, 1, 2, 3, 42, 2**31, 2**32, 2**32 + 1, 2**33, 2**53 + 2**32, 2**63, 2**64 - 1]


def test_different_seeds_never_share_a_run_of_frames(ask: Callable[..., Request]) -> None:
    # ComfyUI draws seeds from 64 bits; torch's CPU generator looks at 32 of a seed.
    seen: dict[tuple[float, ...], tuple[int, int]] = {}
    for seed in SEEDS:
        for i, frame in enumerate(first_noise(ask(0, seed=seed), 0, 200)):
            name = tuple(frame.flatten()[:4].tolist())
            assert name not in seen, f"seed {seed}, frame {i} has the noise of {seen[name]}"
            seen[name] = (seed, i)


# --- motion frames ------------------------------------------------------------------------------


@EVERY_SAMPLING
def test_the_first_clip_has_all_zero_motion_features(
    tiny: Loopy, ask: Callable[..., Request], how: str
) -> None:
    memory = MotionMemory(tiny, ask(8, how=how), no_matter)
    memory.read(torch.randn(1, 4, 4, 4))
    features = memory.recall(0)
    assert len(features) == 4
    assert all(site.shape[:2] == (1, 4) and not site.any() for site in features)


def test_a_motion_frame_appears_as_soon_as_it_exists(tiny: Loopy, ask: Callable[..., Request]) -> None:
    # TINY: clips of 4 frames, ages 0 1 2 4. After one clip age 4 is still missing.
    memory = MotionMemory(tiny, ask(12), no_matter)
    memory.read(torch.randn(1, 4, 4, 4))
    frames = torch.randn(8, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    for clips, ages in ((1, [0, 1, 2]), (2, [0, 1, 2, 4])):
        memory.remember(frames[4 * clips - 4 : 4 * clips])
        now = memory.recall(4 * clips)
        for m, age in enumerate((0, 1, 2, 4)):
            for site, features in enumerate(now):
                if age in ages:
                    seen = tiny.read(frames[4 * clips - 1 - age][None])[site].output[0]
                    assert torch.equal(features[0, m], seen)
                else:
                    assert not features[0, m].any()


@pytest.mark.parametrize("past, there", [(1, 1), (2, 2), (4, 3), (5, 4), (9, 4)])
def test_frames_given_as_past_are_there_in_the_first_clip(
    tiny: Loopy, ask: Callable[..., Request], past: int, there: int
) -> None:
    memory = MotionMemory(tiny, ask(8, past=torch.randn(past, 4, 4, 4), start=past), no_matter)
    memory.read(torch.randn(1, 4, 4, 4))
    present = memory.recall(past)[0].flatten(2).any(-1)[0]
    assert present.tolist() == [True] * there + [False] * (4 - there)


@EVERY_SAMPLING
def test_remembered_features_are_those_that_would_be_computed_again(
    tiny: Loopy, ask: Callable[..., Request], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = ask(24, how=how, guidance=QUICK)
    cached = video(tiny, request)
    recall = MotionMemory.recall

    def forgetful(self: MotionMemory, start: int) -> list[Tensor]:
        self.features.clear()
        return recall(self, start)

    monkeypatch.setattr(MotionMemory, "recall", forgetful)
    assert torch.equal(cached, video(tiny, request))


@EVERY_SAMPLING
def test_no_frame_passes_twice_through_the_reference_net(
    long: Loopy, ask: Callable[..., Request], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(long, monkeypatch)
    video(long, ask(16 * 12, LONG, how, steps=1, guidance=QUICK))
    names = {latents.sum().item() for latents in calls.read}
    assert all(len(latents) == 1 for latents in calls.read)
    assert len(names) == len(calls.read)


def test_eight_of_twenty_motion_frames_are_new_in_each_clip(
    long: Loopy, ask: Callable[..., Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, counts = Calls(long, monkeypatch), []
    for _ in generate(long, ask(14 * 12, LONG, steps=1, guidance=QUICK)):
        counts.append(calls.pictures)
    # The portrait; then per clip the ages below 12, which are 0 1 2 3 4 6 8 10.
    assert counts == [1 + 8 * clip for clip in range(14)]


def test_random_motion_frames_are_drawn_anew_for_each_clip_and_seed(
    tiny: Loopy, ask: Callable[..., Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list] = []
    abstract = TemporalSegments.abstract

    def note(self: TemporalSegments, past: Tensor, ages: list) -> tuple[Tensor, Tensor]:
        drawn.append(ages)
        return abstract(self, past, ages)

    monkeypatch.setattr(TemporalSegments, "abstract", note)
    for seed in (1, 1, 2):
        video(tiny, ask(32, how="random", seed=seed, steps=1, guidance=QUICK))
    first, again, other = drawn[:8], drawn[8:16], drawn[16:]
    assert first == again != other
    assert len({tuple(ages) for ages in first}) > 1


@EVERY_SAMPLING
def test_memory_does_not_grow(
    long: Loopy, ask: Callable[..., Request], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    request = ask(0, LONG, how)
    memory, most = MotionMemory(long, request, no_matter), request.segments.most_kept(12)
    memory.read(torch.randn(1, 4, 4, 4))
    asked: list[set] = []  # by each clip
    kept: list[set] = []  # after it
    abstract = TemporalSegments.abstract

    def note(self: TemporalSegments, past: Tensor, ages: list) -> tuple[Tensor, Tensor]:
        start = 12 * (len(asked) + 1)
        asked.append({tuple(start - 1 - age for age in group if age < len(past)) for group in ages})
        return abstract(self, past, ages)

    monkeypatch.setattr(TemporalSegments, "abstract", note)
    for clip in range(1, 41):
        memory.remember(torch.randn(12, 4, 4, 4))
        memory.recall(12 * clip)
        kept.append(set(memory.features))
        assert len(memory.past) == min(12 * clip, 124) and len(kept[-1]) <= most
    for clip in range(28):
        met, to_come = set().union(*asked[: clip + 1]), set().union(*asked[clip + 1 : clip + 12])
        if how == "random":  # any frame of the span may be drawn
            to_come = {(frame,) for frame in range(12 * (clip + 2) - 124, 12 * (clip + 1))}
        assert kept[clip] == (met & to_come) - {()}
    assert most == {"uniform": 22, "mean": 22, "random": 112}[how]


def test_motion_frames_change_the_next_clip(tiny: Loopy, ask: Callable[..., Request]) -> None:
    request = ask(8)
    alone = video(tiny, replace(request, start=4))
    assert (video(tiny, request)[4:] - alone).abs().max() > 1e-3


# --- resuming -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how, start",
    [
        ("uniform", 4),
        ("uniform", 12),
        ("mean", 8),
        ("random", 8),
    ],
)
def test_a_resumed_run_continues_exactly(
    tiny: Loopy, ask: Callable[..., Request], how: str, start: int
) -> None:
    request = ask(18, how=how, seed=9)
    whole = video(tiny, request)
    rest = video(tiny, replace(request, start=start, past=whole[:start]))
    assert torch.equal(rest, whole[start:])


def test_the_last_frames_of_the_span_are_past_enough(tiny: Loopy, ask: Callable[..., Request]) -> None:
    request, span = ask(18, guidance=QUICK), TINY.clip.motion_span
    whole = video(tiny, request)
    rest = video(tiny, replace(request, start=12, past=whole[12 - span : 12]))
    assert torch.equal(rest, whole[12:])


def test_of_a_long_past_only_the_span_is_kept(tiny: Loopy, ask: Callable[..., Request]) -> None:
    past, span = torch.randn(1000, 4, 4, 4), TINY.clip.motion_span
    kept = MotionMemory(tiny, ask(1008, past=past, start=1000), no_matter).past
    assert torch.equal(kept, past[-span:])
    assert kept.untyped_storage().nbytes() == kept.nbytes


def test_chained_runs_of_a_clip_each_equal_one_run(tiny: Loopy, ask: Callable[..., Request]) -> None:
    request = ask(14)
    whole, parts = video(tiny, request), torch.empty(0, 4, 4, 4)
    for start in range(0, 14, 4):
        piece = video(tiny, replace(request, start=start, frames=4, past=parts))
        parts = torch.cat([parts, piece])
    assert torch.equal(parts, whole)


def test_given_motion_latents_are_used_instead_of_those_of_the_speech(
    tiny: Loopy, ask: Callable[..., Request]
) -> None:
    request = ask(8)
    clip, audio = TINY.clip, TINY.audio
    windows = request.speech.windows(0, 8, clip.audio_context, audio.layers)
    same = tiny.motion_latents_from_audio(windows)[0]
    assert torch.allclose(video(tiny, replace(request, motion_latents=same)), video(tiny, request), atol=1e-4)
    other = video(tiny, replace(request, motion_latents=same + 1))
    assert (other - video(tiny, request)).abs().max() > 1e-3


# --- cancelling ---------------------------------------------------------------------------------


class Cancelled(Exception):
    pass


@pytest.mark.parametrize("after", [0, 1, 3, 8, 12])
def test_cancelling_stops_before_the_next_pass(
    tiny: Loopy, ask: Callable[..., Request], monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    request = ask(12)
    undisturbed = video(tiny, request)
    calls = Calls(tiny, monkeypatch)

    def before_call(part: Part) -> None:
        if len(calls.read) + calls.denoised == after:
            raise Cancelled

    with pytest.raises(Cancelled):
        video(tiny, request, before_call)
    assert len(calls.read) + calls.denoised == after
    assert torch.equal(video(tiny, request), undisturbed)


def test_before_call_runs_before_every_pass(
    tiny: Loopy, ask: Callable[..., Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, asked = Calls(tiny, monkeypatch), []
    video(tiny, ask(12), lambda part: asked.append((part, len(calls.read) + calls.denoised)))
    assert [done for _, done in sorted(set(asked), key=asked.index)] == list(range(len(set(asked))))
    assert len(set(asked)) == len(calls.read) + calls.denoised
    assert len(asked) - len(set(asked)) == 3  # once more per clip, before its conditions are encoded
    assert calls.denoised == 3 * 2  # clips, steps; a small net's branches are one pass
    assert len(calls.read) == 1 + 3 + 3  # the portrait; ages 0 1 2; 0 1 2, while age 4 was age 0


def test_nothing_runs_whose_part_was_not_announced(tiny: Loopy, ask: Callable[..., Request]) -> None:
    """So that the other part may be anywhere, also off the card."""
    present: list[Part] = []
    ran: dict[Part, int] = {"read": 0, "denoise": 0}

    def watch(part: Part) -> Callable:
        def hook(module: nn.Module, *_: object) -> None:
            assert present[-1] == part, module
            ran[part] += 1

        return hook

    parts = tiny.parts()
    hooks = [m.register_forward_pre_hook(watch(part)) for part, net in parts.items() for m in net.modules()]
    try:
        video(tiny, ask(12), present.append)
    finally:
        for hook in hooks:
            hook.remove()
    assert min(ran.values()) > 100
    owned = [id(parameter) for net in parts.values() for parameter in net.parameters()]
    assert sorted(owned) == sorted(id(parameter) for parameter in tiny.parameters())


def test_a_clip_leaves_nothing_behind_but_its_frames(
    tiny: Loopy, ask: Callable[..., Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At full size a clip's keys and values are a gigabyte."""
    kept: list[weakref.ref] = []
    encode = tiny.encode_conditions

    def watched(reference: list[Tensor], motion: list[Tensor], *rest: Tensor) -> Conditions:
        assert not [ref for ref in kept if ref() is not None]
        conditions = encode(reference, motion, *rest)
        kept.extend(map(weakref.ref, [*motion, conditions.sites[0].motion.k, conditions]))
        return conditions

    monkeypatch.setattr(tiny, "encode_conditions", watched)
    for step in generate(tiny, ask(12)):
        if step.index > 1:
            assert not [ref for ref in kept[: len(kept) - 2] if ref() is not None]  # the stacked features
    assert len(kept) > 3 * 3


# --- precision ----------------------------------------------------------------------------------


def test_half_precision_stays_near_and_the_latents_stay_float32(
    tiny: Loopy, ask: Callable[..., Request]
) -> None:
    request = ask(8, guidance=QUICK)
    half = Loopy(TINY).bfloat16().requires_grad_(False)
    half.load_state_dict(tiny.state_dict())
    steps: list[Step] = list(generate(half, replace(request, dtype=torch.bfloat16)))
    assert all(step.x0.dtype == torch.float32 for step in steps)
    out, exact = steps[1].finished, video(tiny, request)[:4]
    assert out.dtype == torch.float32
    assert (out - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_the_bundled_geometry_runs(ask: Callable[..., Request]) -> None:
    model = small_model(PUPPET)
    generator = torch.Generator().manual_seed(0)
    speech = Speech(torch.randn(13, 5, 64, generator=generator), 25)
    request = Request(
        torch.randn(1, 32, 8, 8, generator=generator), speech, TemporalSegments(PUPPET.clip), steps=1
    )
    out = video(model, request)
    assert out.shape == (13, 32, 8, 8) and torch.isfinite(out).all()
