"""The tables of docs/puppet.md, in Markdown, from the results of `evaluate puppet`."""

from collections.abc import Iterator, Sequence

from .drift import STATISTICS

DRIFTS = {  # kind of the results -> column
    "generated": "generated",
    "truth": "drawn truth",
    "equal_pose": "generated, against drawings in the same poses",
    "ceiling": "truth after the VAE, against drawings in the same poses",
}


def markdown(results: dict) -> str:
    """Those whose figures are there."""
    made = (
        ("picture", _lip_sync),
        ("glo_by_level", _levels),
        ("exp_by_level", _levels),
        ("rhythm_by_face", _rhythms),
        ("drift", _drift),
        ("drift_over_turns", _drift_over_turns),
        ("seconds_per_second", _speed),
    )
    tables = dict.fromkeys(table for key, table in made if key in results)
    return "\n\n".join("\n".join(table(results)) for table in tables)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for cells in (head, ["--"] * len(head), *rows):
        yield f"| {' | '.join(cells)} |"


def _lip_sync(results: dict) -> Iterator[str]:
    """Mean, standard deviation and least of the videos' correlations."""
    picture = results["picture"]
    titles = {
        "generated": ("generated", "identity", "flat_noise"),
        "ceiling": ("drawn truth after the VAE (ceiling)", "identity_ceiling", "flat_noise_ceiling"),
        "floor": ("generated, against the next face's clip and portrait (floor)", "identity_floor", ""),
    }
    rows = []
    for kind, found in results["lip_sync"].items():
        title, identity, noise = titles[kind]
        mouth = (
            f"{found[part]:.3f} ± {found[part + '_spread']:.3f} ({found[part + '_lowest']:.3f})"
            for part in ("open", "width")
        )
        rows.append((title, *mouth, f"{picture[identity]:.4f}", f"{picture[noise]:.4f}" if noise else ""))
    return _table(
        ("", "mouth opening ± of the videos (lowest)", "mouth width", "identity error", "flat noise"), rows
    )


def _levels(results: dict) -> Iterator[str]:
    named = (("Glo, of head movement", "glo_by_level"), ("Exp, of expression", "exp_by_level"))
    found = {name: results[key] for name, key in named if key in results}
    rows = [(name, *(f"{value:.4f}" for value in values.values())) for name, values in found.items()]
    levels = next(iter(found.values()))
    return _table(("level", *(f"{float(level):g}" for level in levels)), rows)


def _rhythms(results: dict) -> Iterator[str]:
    faces = sorted({name.partition("_")[0] for name in results["rhythm_by_face"]}, key=int)
    rows = []
    for face in faces:
        found = (results["rhythm_by_face"][f"{face}_{key}"] for key in ("blink_interval", "sway_period"))
        rows.append((face, *(f"{one[kind]:.2f}" for one in found for kind in ("generated", "truth"))))
    return _table(("face", "blinks, generated", "true", "sway, generated", "true"), rows)


def _drift(results: dict) -> Iterator[str]:
    def cell(kind: str, name: str) -> str:
        found = results["drift"][kind]
        return f"{100 * found[name]:.1f} % ({100 * found[f'{name}_trend']:+.1f} %)"

    rows = [(name, *(cell(kind, name) for kind in DRIFTS)) for name in STATISTICS]
    seconds = results.get("made_by", {}).get("long_seconds")  # earlier versions do not say it
    length = f"{seconds:g} s" if seconds else "the video"
    return _table((f"largest distance from the first clip (trend over {length})", *DRIFTS.values()), rows)


def _drift_over_turns(results: dict) -> Iterator[str]:
    found = results["drift_over_turns"]
    rows = [(name, *(f"{100 * found[kind][name]:.1f} %" for kind in found)) for name in STATISTICS]
    titles = (DRIFTS[kind] for kind in found)
    return _table(("largest distance of ten seconds from the first ten", *titles), rows)


def _speed(results: dict) -> Iterator[str]:
    """Names like "2 threads 3 branches"."""
    rows = [
        (*name.split()[::2], f"{seconds:.1f} s") for name, seconds in results["seconds_per_second"].items()
    ]
    return _table(("CPU threads", "branches of a step", "for a second of video"), rows)
