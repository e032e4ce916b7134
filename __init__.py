"""ComfyUI-Loopy: one portrait and a voice become a talking video."""

WEB_DIRECTORY = "./web"
__all__ = ["comfy_entrypoint", "WEB_DIRECTORY"]

if __package__:  # ComfyUI imports this folder as a package; pytest may import the file without one
    from .nodes import comfy_entrypoint
