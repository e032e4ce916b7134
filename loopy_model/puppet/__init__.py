"""The puppet laboratory: drawn faces that speak, with exact ground truth, made on any computer.

`speech` and `motion` say what happens, `faces` draws it, `clips` puts it together and prepares
it for training, `train` teaches the small networks, `meter` measures what a model generates.
`python -m loopy_model.puppet --run-dir DIR` runs all of it.
"""
