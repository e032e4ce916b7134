"""Loopy in plain PyTorch, importable without ComfyUI.

Reading order, which is also the order of the data: config, conditions, portrait, audio, motion,
layers, temporal, audio_to_latents, unet, model, diffusion, guidance, solvers, sampling, video, weights, pipeline.
"""
