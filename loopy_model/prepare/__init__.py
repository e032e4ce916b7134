"""Raw videos -> clips that a talking head can be trained on (paper, appendix A).

In the order of the data: `raw` decodes at 25 fps, `landmarks` and `cuts` see faces and scenes, `scan`
is the first pass over a video, `filters` judges its pieces, `clips` crops and writes what is kept,
`source` joins these for one video, `run` for many, and `report` explains the outcome.
`python -m loopy_model.prepare clips RAW_FOLDER DATA_FOLDER` runs all of it.
"""
