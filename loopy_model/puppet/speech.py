"""Speech with known mouth shapes: espeak-ng says random words and reports its phonemes.

The phoneme events carry times, so the true mouth opening and width of every video
frame follow from a small viseme table; nothing has to be estimated from the sound.
"""

import _ctypes
import ctypes
import random
from dataclasses import dataclass
from functools import cache

import espeakng_loader
import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.signal import resample_poly

from ..config import PUPPET, SAMPLE_RATE
from .words import HELD_OUT_WORDS, TRAINING_WORDS

FPS = PUPPET.clip.fps
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS
REST = (0.0, 0.5)  # closed mouth, relaxed width
CONSONANT = (0.25, 0.55)
SILENT_SHARE = 0.05

_DIALECTS = ("en", "en-us", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbcwmd", "en-us-nyc")
_SPEAKERS = """
m1 m2 m3 m4 m5 m7 m8 f1 f2 f3 f4 Alex Andy Annie Gene Michael adam anika belinda david edward
grandma klatt klatt3 linda max quincy shelby steph travis victor
""".split()
_VARIANTS = ("", *(f"+{speaker}" for speaker in _SPEAKERS))
TRAINING_VOICES = tuple(d + v for d in _DIALECTS for v in _VARIANTS)
# Two speakers (m6, f5) and two dialects (Lancaster, Caribbean) that training never hears.
HELD_OUT_VOICES = ("en-us+m6", "en+f5", "en-gb-x-gbclan+m2", "en-029+f2")

# Phoneme (espeak-ng's names) -> mouth (open, width), both 0..1.
VISEMES = {
    "A:": (1.0, 0.45), "a": (0.9, 0.6), "a#": (0.55, 0.5), "0": (0.75, 0.3),
    "aI": (0.9, 0.65), "aU": (0.85, 0.35), "V": (0.75, 0.5), "@": (0.45, 0.5),
    "3": (0.45, 0.4), "3:": (0.5, 0.35), "E": (0.6, 0.8), "e": (0.55, 0.8),
    "eI": (0.5, 0.9), "e@": (0.6, 0.75), "I": (0.35, 0.85), "I2": (0.3, 0.8),
    "i": (0.3, 1.0), "i:": (0.3, 1.0), "i@": (0.35, 0.9), "O": (0.7, 0.2),
    "O:": (0.7, 0.15), "OI": (0.65, 0.35), "o": (0.6, 0.15), "o:": (0.65, 0.1),
    "o@": (0.65, 0.2), "oU": (0.55, 0.1), "u": (0.3, 0.0), "u:": (0.3, 0.0),
    "U": (0.35, 0.1), "@L": (0.35, 0.45), "m": (0.0, 0.45), "b": (0.0, 0.45),
    "p": (0.0, 0.45), "f": (0.08, 0.55), "v": (0.08, 0.55), "w": (0.15, 0.0),
    "s": (0.15, 0.8), "z": (0.15, 0.8), "S": (0.2, 0.2), "Z": (0.2, 0.2),
    "tS": (0.2, 0.25), "dZ": (0.2, 0.25),
}  # fmt: skip
_PREFIXES = sorted(VISEMES, key=len, reverse=True)


@dataclass(frozen=True)
class Utterance:
    """`waveform` (frames * 640,) float32 at 16 kHz; `visemes` (frames, 2) open and width.

    Row i of `visemes` is the truth at time (i + 0.5) / 25 s, the middle of video frame i.
    """

    waveform: np.ndarray
    visemes: np.ndarray


@cache
def viseme(phoneme: str) -> tuple[float, float]:
    """Mouth (open, width) of one espeak-ng phoneme name; unknown ones by longest prefix."""
    name = phoneme.strip("'%,=")
    if name.startswith("_"):
        return REST
    return VISEMES.get(next((p for p in _PREFIXES if name.startswith(p)), ""), CONSONANT)


class _EventId(ctypes.Union):
    _fields_ = [
        ("number", ctypes.c_int),
        ("name", ctypes.c_char_p),
        ("string", ctypes.c_char * 8),
    ]


class _Event(ctypes.Structure):  # espeak_EVENT of espeak-ng's speak_lib.h
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # ms
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


class Synthesiser:
    """espeak-ng through ctypes, as a context.

    The library carries hidden state from one sentence to the next (the phase of its pitch
    flutter). Unloading it on exit is what makes speech a function of the seed alone; loading
    takes under a millisecond. Only one may be open at a time in a process.
    """

    PHONEME_EVENT, SYNCHRONOUS, WITH_PHONEMES, UTF8 = 7, 2, 1, 1
    RATE, PITCH = 1, 3

    def __init__(self) -> None:
        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        self.chunks: list[np.ndarray] = []
        self.phonemes: list[tuple[float, str]] = []
        self.callback = _Callback(self._collect)  # kept alive: the library stores the pointer
        data = espeakng_loader.get_data_path().encode()
        self.rate = self.library.espeak_Initialize(self.SYNCHRONOUS, 0, data, self.WITH_PHONEMES)
        self.library.espeak_SetSynthCallback(self.callback)
        self.library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # breath noise: else by the clock

    def __enter__(self) -> "Synthesiser":
        return self

    def __exit__(self, *_: object) -> None:
        self.library.espeak_Terminate()
        unload = getattr(_ctypes, "dlclose", None) or _ctypes.FreeLibrary  # the latter on Windows
        unload(self.library._handle)

    def _collect(self, samples: "ctypes._Pointer", count: int, events: "ctypes._Pointer") -> int:
        if samples and count > 0:
            self.chunks.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        index = 0
        while events[index].type != 0:
            if events[index].type == self.PHONEME_EVENT:
                name = events[index].id.string.decode("utf8", "ignore")
                self.phonemes.append((events[index].audio_position / 1000, name))
            index += 1
        return 0

    def say(self, text: str, voice: str, rate: int, pitch: int) -> tuple[np.ndarray, list[tuple[float, str]]]:
        """Samples (n,) in -1..1 at `self.rate`, and (seconds, phoneme name) events."""
        self.chunks.clear()
        self.phonemes.clear()
        if self.library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice!r}")
        self.library.espeak_SetParameter(self.RATE, rate, 0)  # words per minute
        self.library.espeak_SetParameter(self.PITCH, pitch, 0)  # 0..100
        encoded = text.encode()
        self.library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, self.UTF8, None, None)
        self.library.espeak_Synchronize()
        samples = np.concatenate([np.zeros(1, np.int16), *self.chunks])
        return samples.astype(np.float32) / 32768, list(self.phonemes)


def utterance(
    rng: random.Random, frames: int, voices: tuple[str, ...], silent_share: float = SILENT_SHARE
) -> Utterance:
    """Random phrases in one random voice, cut to `frames` video frames; by a chance of `silent_share`
    noise alone."""
    if rng.random() < silent_share:
        return _silence(rng, frames)
    seconds, held_out = frames / FPS, set(voices) <= set(HELD_OUT_VOICES)
    with Synthesiser() as machine:
        waveform, events = _phrases(rng, machine, seconds, rng.choice(voices), held_out)
    waveform = waveform[: frames * SAMPLES_PER_FRAME]
    waveform = waveform * (rng.uniform(0.3, 0.95) / (np.abs(waveform).max() + 1e-6))
    return Utterance(_with_noise(rng, waveform, -4.0, -2.3), mouth_track(events, frames))


def spoken(text: str, voice: str, rate: int = 150, pitch: int = 50) -> np.ndarray:
    """One given sentence as (n,) float32 at 16 kHz, peak 0.8."""
    with Synthesiser() as machine:
        samples, _ = machine.say(text, voice, rate, pitch)
    samples = resample_poly(samples, SAMPLE_RATE, machine.rate)
    return (samples * (0.8 / np.abs(samples).max())).astype(np.float32)


def mouth_track(events: list[tuple[float, str]], frames: int) -> np.ndarray:
    """Visemes (frames, 2) at the frame centres, smoothed by 35 ms (co-articulation)."""
    starts = np.array([seconds for seconds, _ in events])
    shapes = np.array([viseme(name) for _, name in events])
    steps = 200  # per second, so that a frame centre falls on a step
    times = np.arange(frames * steps // FPS) / steps
    index = np.clip(np.searchsorted(starts, times, side="right") - 1, 0, None)
    track = gaussian_filter1d(shapes[index], 0.035 * steps, axis=0, mode="nearest")
    return track[steps // FPS // 2 :: steps // FPS].astype(np.float32)


def _phrases(
    rng: random.Random, machine: Synthesiser, seconds: float, voice: str, held_out: bool
) -> tuple[np.ndarray, list[tuple[float, str]]]:
    words = HELD_OUT_WORDS if held_out else TRAINING_WORDS
    rate, pitch = rng.randint(110, 200), rng.randint(20, 80)
    pieces, events = [], [(0.0, "_")]
    clock = 0.0
    while clock < seconds + 0.3:
        text = " ".join(rng.choice(words) for _ in range(rng.randint(2, 8))) + rng.choice(".,?")
        samples, phonemes = machine.say(text, voice, rate, pitch)
        events += [(clock + at, name) for at, name in phonemes]
        events.append((clock + len(samples) / machine.rate, "_"))
        pause = np.zeros(int(rng.uniform(0.0, 0.7) * machine.rate), np.float32)
        pieces += [samples, pause]
        clock += (len(samples) + len(pause)) / machine.rate
    waveform = resample_poly(np.concatenate(pieces), SAMPLE_RATE, machine.rate)
    return waveform.astype(np.float32), events


def _silence(rng: random.Random, frames: int) -> Utterance:
    waveform = np.zeros(frames * SAMPLES_PER_FRAME, np.float32)
    visemes = np.tile(np.array(REST, np.float32), (frames, 1))
    return Utterance(_with_noise(rng, waveform, -5.0, -2.5), visemes)


def _with_noise(rng: random.Random, waveform: np.ndarray, low: float, high: float) -> np.ndarray:
    """White noise of 10**uniform(low, high) rms on top."""
    noise = np.random.default_rng(rng.getrandbits(32)).standard_normal(len(waveform))
    return (waveform + noise * 10 ** rng.uniform(low, high)).astype(np.float32)
