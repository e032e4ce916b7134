"""Loopy in plain PyTorch, importable without ComfyUI.

Reading order, which is also the order of the data: config, conditions, portrait, speech_encoder, audio,
movement, motion, layers, temporal, audio_to_latents, unet, model, diffusion, guidance, solvers, sampling, budget,
autoencoder, video, weights, adapter, pipeline, cli.
"""
