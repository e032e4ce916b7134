"""What the sampler tells the host about its memory, against what a process really takes."""

import subprocess
import sys

MEASURE = """
from dataclasses import replace
import torch
from loopy_model.config import LOOPY
from loopy_model.model import Loopy, motion_features
from loopy_model.budget import working_bytes

def memory(line):  # not getrusage, whose peak is at least that of the process that started this one
    with open("/proc/self/status") as status:
        return next(int(text.split()[1]) for text in status if text.startswith(line)) * 1024

SIZE = 32
unet = replace(LOOPY.unet, channels=(64, 128, 256, 256))
audio = replace(LOOPY.audio, layers=1, width=64, hidden=64, tokens=8, token_width=64)
config = replace(LOOPY, unet=unet, audio=audio)
model, clip = Loopy(config).eval(), config.clip
with torch.inference_mode():
    model.read(torch.randn(1, 4, 8, 8))
    before = memory("VmRSS")
    pictures = torch.randn(clip.motion_frames, 1, 4, SIZE, SIZE)
    portrait = [site.normed for site in model.read(pictures[0])]
    past = [[site.output[0] for site in model.read(picture)] for picture in pictures]
    windows = torch.randn(1, clip.frames, clip.audio_window, 1, 64)
    motion_latents = model.motion_latents_from_audio(windows)
    conditions = model.encode_conditions(portrait, motion_features(past, past[0]), windows, motion_latents)
    model.denoise(torch.randn(1, clip.frames, 4, SIZE, SIZE), torch.zeros(1), conditions)
peak = memory("VmHWM") - before
print(working_bytes(config, SIZE, SIZE, 4, kept=clip.motion_frames) / peak)
"""


def test_memory_estimate_is_within_a_third_of_the_measured_peak() -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    assert 0.75 < float(done.stdout) < 1.34
