"""`python -m loopy_model.evaluate videos | puppet | ablations | figures`

videos      the paper's metrics of any video files (docs/evaluation.md)
puppet      everything that is claimed of a puppet model, on held-out faces (docs/puppet.md)
ablations   the paper's table 3 in miniature: trains and measures the variants (docs/ablations.md)
figures     prints every figure of the last two from what they have written

Each explains itself with `--help`.
"""

import sys
from importlib import import_module

PARTS = ("videos", "puppet", "ablations", "figures")


def main() -> None:
    part, *rest = sys.argv[1:] or ["--help"]
    if part in ("-h", "--help"):
        return print(__doc__)
    if part not in PARTS:
        raise SystemExit(f"{part!r} is not a part of evaluate; use {', '.join(PARTS)}.\n\n{__doc__}")
    import_module(f".{part}", __package__).main(rest)


if __name__ == "__main__":
    main()
