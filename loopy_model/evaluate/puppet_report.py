"""The pieces that `puppet` made -> figures, tables and a page."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import PUPPET
from ..puppet.motion import MOTION
from . import page
from .drift import STATISTICS, drift, stretches, trend
from .rhythm import continuation, known_mean, rhythm_error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pieces = dict[str, dict]
RESULTS = "results.json"
MOUTH = ("open", "width")
SHEET = "contact_sheet.jpg"
SHEET_CAPTION = "Portrait and generated frames (above), drawn truth (below), every fourth frame"
KINDS = ("generated", "truth", "equal_pose", "ceiling")  # of the curves of a long video
TEN_SECONDS = round(10 * PUPPET.clip.fps / PUPPET.clip.frames)  # in clips


# --- files ------------------------------------------------------------------------------


def to_json(values: Any, indent: int | None = None) -> str:
    """JSON has no NaN; null stands for it."""
    return json.dumps(_replaced(values, _is_nan, None), indent=indent, allow_nan=False)


def from_json(text: str) -> Any:
    """What `to_json` was given; NaN may also be spelt out, as earlier versions did."""
    return _replaced(json.loads(text), lambda value: value is None, float("nan"))


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and value != value


def _replaced(value: Any, which: Callable[[Any], bool], other: float | None) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(one, which, other) for key, one in value.items()}
    if isinstance(value, list):
        return [_replaced(one, which, other) for one in value]
    return other if which(value) else value


def read_puppet_results(folder: Path) -> dict | None:
    """results.json of a report folder, None if there is none. Raises ValueError where something else wrote it."""
    path = folder / RESULTS
    if not path.is_file():
        return None
    try:
        results = from_json(path.read_text(encoding="utf-8"))
    except ValueError:  # no JSON, or no text
        results = None
    if not isinstance(results, dict) or "faces" not in results:
        raise ValueError(f"{path} holds other results than of `evaluate puppet`; give another --report.")
    return results


# --- figures ----------------------------------------------------------------------------


def summarise(pieces: Pieces) -> dict[str, dict]:
    """Every figure that the tables show, by group."""
    faces, long = _named(pieces, "face"), _named(pieces, "long")
    results = {"faces": len(faces), **_levels(pieces)}
    if faces:
        results |= {"lip_sync": _lip_sync(faces), "picture": _picture(faces), "movement": _movement(faces)}
    if continued := _named(pieces, "continued"):
        heads, true = (np.array([piece[key] for piece in continued]) for key in ("head", "truth"))
        results["continuation"] = continuation(heads, true, np.array([piece["last"] for piece in continued]))
    if long:
        results |= {"rhythm": _rhythm(long), "rhythm_by_face": _rhythm_by_face(long)}
        results["drift"] = _drift(long)
    if lasting := [piece for piece in long if len(piece["statistics"]["mean"]) >= 2 * TEN_SECONDS]:
        results["drift_over_turns"] = _drift_over_turns(lasting)
    if speeds := {k.removeprefix("speed-"): v for k, v in pieces.items() if k.startswith("speed-")}:
        results["seconds_per_second"] = {
            name.replace("-", " "): piece["seconds_per_second"] for name, piece in speeds.items()
        }
    if vae := _named(pieces, "vae"):
        results["autoencoder"] = {key: value for key, value in vae[0].items() if key.startswith("psnr")}
    return results


def _named(pieces: Pieces, kind: str) -> list[dict]:
    return [piece for name, piece in pieces.items() if name.startswith(f"{kind}-")]


def _lip_sync(faces: list[dict]) -> dict[str, dict[str, float]]:
    """Per row mean, standard deviation and least of the videos' correlations with the drawn truth; the floor
    is the next face's truth."""
    truth = [face["truth"] for face in faces]
    rows = {
        "generated": ([face["read"] for face in faces], truth),
        "ceiling": ([face["ceiling"] for face in faces], truth),
    }
    if len(faces) > 1:
        rows["floor"] = [face["read"] for face in faces], truth[1:] + truth[:1]
    return {name: _correlations(*pair) for name, pair in rows.items()}


def _correlations(read: list, truth: list) -> dict[str, float]:
    row = {}
    for name in MOUTH:
        column = MOTION.index(name)
        values = [
            np.corrcoef(np.array(a)[:, column], np.array(b)[:, column])[0, 1] for a, b in zip(read, truth)
        ]
        row[name], row[f"{name}_lowest"] = float(np.mean(values)), float(min(values))
        row[f"{name}_spread"] = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return row


def _picture(faces: list[dict]) -> dict[str, float]:
    keys = ("identity", "identity_ceiling", "identity_floor", "flat_noise", "flat_noise_ceiling")
    return {key: _mean(faces, key) for key in keys}


def _movement(faces: list[dict]) -> dict[str, float]:
    """Appendix B: Glo and Exp, and the mean difference to the truth's of the same video."""
    return {
        **{key: _mean(faces, key) for key in ("glo", "glo_truth", "exp", "exp_truth")},
        "dglo": float(np.mean([abs(face["glo"] - face["glo_truth"]) for face in faces])),
        "dexp": float(np.mean([abs(face["exp"] - face["exp_truth"]) for face in faces])),
    }


def _levels(pieces: Pieces) -> dict[str, dict]:
    """Mean Glo per level of head movement, mean Exp per level of expression."""
    found: dict[str, dict[str, float]] = {}
    for source, key in (("head-movement", "glo"), ("expression", "exp")):
        levels = sorted({name.split("-")[-2] for name in pieces if name.startswith(source)})
        if levels:
            found[f"{key}_by_level"] = {
                level: _mean(_named(pieces, f"{source}-{level}"), key) for level in levels
            }
    return found


def _rhythm(long: list[dict]) -> dict[str, dict[str, float]]:
    """Blink intervals and sway periods in seconds. `error` is per face; `memoryless` is the least error of a
    net that gives every face the same rhythm; `error_of_means` compares the means, generated and true, of the
    faces that have one."""
    rows = {}
    for key in ("blink_interval", "sway_period"):
        made, true = (np.array([piece[k] for piece in long], float) for k in (key, f"{key}_truth"))
        true_of_known = np.where(np.isnan(made), np.nan, true)
        rows[key] = {
            "generated": known_mean(made),
            "truth": float(true.mean()),
            "without_rhythm": int(np.isnan(made).sum()),
            "error": rhythm_error(made, true),
            # The error is piecewise linear in that rhythm, so it is least at one of the true ones.
            "memoryless": min(rhythm_error(np.full_like(true, same), true) for same in true),
            "error_of_means": abs(known_mean(made) / known_mean(true_of_known) - 1),
        }
    return rows


def _rhythm_by_face(long: list[dict]) -> dict[str, dict[str, float]]:
    """Of each face the seconds, generated and true, and by how much they differ."""
    rows = {}
    for number, piece in enumerate(long, 1):
        for key in ("blink_interval", "sway_period"):
            made, true = piece[key], piece[f"{key}_truth"]
            rows[f"{number}_{key}"] = {"generated": made, "truth": true, "error": abs(made / true - 1)}
    return rows


def _drift(long: list[dict]) -> dict[str, dict[str, float]]:
    """The largest deviation of a clip from its video's first, and the largest change along a straight
    line. Mouth, lids and head change the statistics of a clip too, as the truth shows; in the rows of
    equal pose each clip is compared with the drawing of the face in the poses that the meter reads from it,
    and the ceiling is that of the truth after the VAE: what the VAE and the meter's reading leave."""
    return {kind: _largest([_curves(piece)[kind] for piece in long]) for kind in KINDS}


def _drift_over_turns(long: list[dict]) -> dict[str, dict[str, float]]:
    """The largest deviation of ten seconds from the first ten. They hold the same poses, whole numbers of
    blinks and turns at either tempo (2 and 5 s), so what is left of the difference is drift."""
    found: dict[str, dict[str, float]] = {}
    for kind in ("generated", "truth"):
        videos = [_curves(piece)[kind] for piece in long]
        found[kind] = {
            name: max(drift(stretches(v[name], TEN_SECONDS)) for v in videos) for name in STATISTICS
        }
    return found


def _curves(piece: dict) -> dict[str, dict[str, np.ndarray]]:
    """Statistics per clip of a long video."""
    made, truth, posed, ceiling, ceiling_posed = (
        {name: np.array(values) for name, values in piece[f"statistics{key}"].items()}
        for key in ("", "_truth", "_posed", "_ceiling", "_ceiling_posed")
    )
    equal, highest = (
        {name: a[name] / b[name] for name in STATISTICS} for a, b in ((made, posed), (ceiling, ceiling_posed))
    )
    return dict(zip(KINDS, (made, truth, equal, highest)))


def _largest(videos: list[dict[str, np.ndarray]]) -> dict[str, float]:
    rows = {}
    for name in STATISTICS:
        rows[name] = max(drift(video[name]) for video in videos)
        rows[f"{name}_trend"] = max((trend(video[name]) for video in videos), key=abs)
    return rows


def _mean(pieces: list[dict], key: str) -> float:
    return float(np.mean([piece[key] for piece in pieces]))


# --- tables -----------------------------------------------------------------------------


def rows_of(results: dict) -> list[tuple[str, str, float]]:
    """(group, figure, value) of everything in `results`; how they were made is no figure."""
    rows = []
    for group, values in results.items():
        if group in ("made_by", "model"):  # earlier versions said no more than which model it was
            continue
        for name, value in _flat(values) if isinstance(values, dict) else [("", values)]:
            rows.append((group.replace("_", " "), name.replace("_", " "), value))
    return rows


def _flat(values: dict, prefix: str = "") -> Iterable[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", value


def tables(results: dict) -> str:
    return "\n".join(f"{group:16}{name:36}{value:10.4f}" for group, name, value in rows_of(results))


def made_in_words(results: dict) -> str:
    """How they were made; "" for results of earlier versions, which do not say it."""
    if "made_by" not in results:
        return ""
    made_by = results["made_by"]
    steps, audio, portrait = made_by["sampling"]
    return (
        f"Model {made_by['model']}, face meter {made_by['meter']}, pieces of version {made_by['version']}; "
        f"{steps} steps, ratios {audio:g} of the voice and {portrait:g} of the portrait; faces from number "
        f"{made_by['first_face']} on, {made_by['seconds']:g} s each, levels {made_by['level_seconds']:g} s, "
        f"long videos {made_by['long_seconds']:g} s."
    )


# --- page -------------------------------------------------------------------------------


def write_report(folder: Path, results: dict, pieces: Pieces) -> None:
    """`folder`/report.html. The folder may hold a sheet and videos of another run too, which are not shown."""
    body = [
        page.paragraph(
            "Held-out drawn faces with unheard voices and text; docs/puppet.md says what is measured."
        ),
        page.paragraph(made_in_words(results)),
        page.table(("", "figure", "value"), rows_of(results)),
    ]
    long = {name: piece for name, piece in pieces.items() if name.startswith("long-")}
    if long:
        body += [page.heading("After five seconds of truth"), page.figure(_rhythm_curves(long))]
        body += [page.figure(_drift_curves(long), "Per clip, as a share of the first clip's")]
    if levels := [key for key in ("glo", "exp") if f"{key}_by_level" in results]:
        body += [page.heading("Wanted level of movement"), page.figure(_level_curves(results, levels))]
    if _named(pieces, "face") and (folder / SHEET).is_file():
        body += [page.heading("Frames"), page.picture((folder / SHEET).read_bytes(), SHEET_CAPTION)]
    body += [page.heading("Videos"), page.videos(videos_of(folder, pieces))]
    page.write_page(folder / "report.html", "A puppet model, measured", body)


def videos_of(folder: Path, names: Iterable[str]) -> Iterable[tuple[str, str]]:
    """Those of the pieces of these names."""
    for name in sorted(names):
        if (folder / "videos" / f"{name}.mp4").is_file():
            yield name, f"videos/{name}.mp4"


def _axes(rows: int, height: float = 2.0) -> tuple["Figure", np.ndarray]:
    from matplotlib.figure import Figure

    drawn = Figure((11, height * rows), layout="constrained")
    return drawn, drawn.subplots(rows, squeeze=False)[:, 0]


def _rhythm_curves(long: Pieces) -> "Figure":
    drawn, axes = _axes(2 * len(long), 1.4)
    for index, (name, piece) in enumerate(long.items()):
        for axis, channel in zip(axes[2 * index :], ("head_x", "blink")):
            for key, colour in (("truth", "0.7"), ("read", "C0")):
                axis.plot(np.array(piece[key])[:, MOTION.index(channel)], color=colour, label=key, lw=1)
            axis.set_ylabel(f"{name} {channel}", fontsize=7)
    axes[0].legend(["truth", "generated"])
    axes[-1].set_xlabel("frame")
    return drawn


def _drift_curves(long: Pieces) -> "Figure":
    drawn, axes = _axes(len(STATISTICS))
    for axis, name in zip(axes, STATISTICS):
        for number, piece in enumerate(long.values()):
            curves = _curves(piece)
            for kind, style in zip(("generated", "equal_pose"), (":", "-")):
                values = curves[kind][name]
                axis.plot(values / values[0], style, color=f"C{number}", lw=1, label=kind.replace("_", " "))
        axis.axhspan(0.95, 1.05, color="0.9")
        axis.set_ylabel(name)
    axes[0].legend(*(both[:2] for both in axes[0].get_legend_handles_labels()))
    axes[-1].set_xlabel("clip")
    return drawn


def _level_curves(results: dict, keys: list[str]) -> "Figure":
    drawn, axes = _axes(len(keys))
    for axis, key in zip(axes, keys):
        levels = results[f"{key}_by_level"]
        axis.plot([float(level) for level in levels], list(levels.values()), marker="o")
        axis.set_ylabel(key.capitalize())
    axes[-1].set_xlabel("level")
    return drawn
