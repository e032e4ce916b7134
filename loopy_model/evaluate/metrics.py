"""The paper's metrics (tables 1-3, appendix B) as a list, and what a run found of each."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import fmean, stdev


@dataclass(frozen=True)
class Metric:
    name: str  # as in the paper's tables
    better: str
    meaning: str
    of_sets: bool = False  # one value for all videos together
    needs_real: bool = False


METRICS = (
    Metric("IQA", "higher", "picture quality by Q-Align, 1 to 5; one frame a second"),
    Metric("Sync-C", "higher", "confidence of SyncNet in lips and voice"),
    Metric("Sync-D", "lower", "least distance of lips and voice in SyncNet's space"),
    Metric("Smo", "higher", "motion smoothness of VBench, at most 1; a still video has a high one too"),
    Metric("FVD-R", "lower", "Fréchet video distance, 3D ResNet-50, pieces of 16 frames", True, True),
    Metric("FVD-I", "lower", "Fréchet video distance, I3D, pieces of 16 frames", True, True),
    Metric("FID", "lower", "Fréchet distance of all frames, Inception", True, True),
    Metric("Glo", "near the real", "variance of the nose tip, x 1000 (eq. 3)"),
    Metric("Exp", "near the real", "variance of changes of the upper face, x 1000 (eq. 5)"),
    Metric("DGlo", "lower", "distance of Glo from the real video's (eq. 6)", needs_real=True),
    Metric("DExp", "lower", "distance of Exp from the real video's (eq. 7)", needs_real=True),
    Metric("E-FID", "lower", "Fréchet distance of expression coefficients of all frames", True, True),
)
OF_VIDEOS = tuple(metric.name for metric in METRICS if not metric.of_sets)
OF_SETS = tuple(metric.name for metric in METRICS if metric.of_sets)


@dataclass(frozen=True)
class Scores:
    """What was measured of one video, and why the rest was not: metric -> value, metric -> sentence."""

    values: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def also(self, other: "Scores") -> "Scores":
        return Scores(self.values | other.values, self.reasons | other.reasons)


@dataclass(frozen=True)
class Compared:
    """One generated video and its real one, if there is one."""

    name: str
    frames: int  # that both have
    generated: Scores
    real: Scores | None
    note: str = ""


@dataclass(frozen=True)
class SetScore:
    """One value for all videos together."""

    value: float | None
    videos: int = 0  # pairs that it comes from
    samples: tuple[int, int] = (0, 0)  # generated, real
    width: int = 0  # of the features
    reason: str = ""

    @property
    def note(self) -> str:
        """A Fréchet distance of few samples is too large: its covariances have no full rank."""
        if self.value is None or min(self.samples) > self.width:
            return ""
        few, width = min(self.samples), self.width
        return f"{few} samples of {width} features: too large, compare only with as many samples"


def summary(values: Iterable[float | None]) -> dict[str, float] | None:
    """Mean, spread (standard deviation over videos, N - 1; 0 for one) and how many videos have a value
    (are not None), of how many; None where none has."""
    values = list(values)
    found = [value for value in values if value is not None]
    if not found:
        return None
    spread = stdev(found) if len(found) > 1 else 0.0
    return {"mean": fmean(found), "spread": spread, "videos": len(found), "of": len(values)}


def table(compared: list[Compared], sets: dict[str, SetScore], has_real: bool) -> list[dict]:
    """The rows of results.json: metric, direction, generated and real value, or why there is none."""
    return [_row(metric, compared, sets, has_real) for metric in METRICS]


def _row(metric: Metric, compared: list[Compared], sets: dict[str, SetScore], has_real: bool) -> dict:
    row = {"metric": metric.name, "better": metric.better, "meaning": metric.meaning}
    empty = {"generated": None, "real": None, "not_measured": None}
    if metric.needs_real and not has_real:
        return row | empty | {"not_measured": "it compares with real videos, and none were given (--real)."}
    if metric.of_sets:
        found = _set_row(sets[metric.name], len(compared))
    else:
        found = {"generated": _mean(metric.name, (pair.generated for pair in compared))}
        if has_real and not metric.needs_real:
            found["real"] = _mean(metric.name, (pair.real for pair in compared))
    return row | empty | found | _why(found, _reasons(metric.name, compared))


def _reasons(name: str, compared: list[Compared]) -> list[str | None]:
    """Of the generated videos, then of the real ones those that are new."""
    generated = [pair.generated.reasons.get(name) for pair in compared]
    real = [pair.real.reasons.get(name) for pair in compared if pair.real]
    return generated + [f"of a real video: {why}" for why in real if why and why not in generated]


def _why(found: dict, reasons: list[str | None]) -> dict[str, str]:
    """A metric has no value, or not of all videos."""
    if found.get("generated") is None:
        of_all = found.get("not_measured")
        parts = (of_all, first_reason(reasons) if any(reasons) or not of_all else "")
        return {"not_measured": " ".join(filter(None, parts))}
    values = [found[kind] for kind in ("generated", "real") if kind in found]
    of_all = all(value and value["videos"] == value["of"] for value in values)
    return {} if of_all else {"left_out": first_reason(reasons)}


def _mean(name: str, scores: Iterable[Scores]) -> dict[str, float] | None:
    return summary(score.values.get(name) for score in scores)


def _set_row(score: SetScore, pairs: int) -> dict:
    if score.value is None:
        return {"not_measured": score.reason}
    generated, real = score.samples
    found = {"value": score.value, "samples": generated, "real_samples": real, "features": score.width}
    found |= {"videos": score.videos, "of": pairs}
    return {"generated": found | ({"note": score.note} if score.note else {})}


def first_reason(reasons: Iterable[str | None]) -> str:
    """One sentence for a metric that no video has."""
    found = list(dict.fromkeys(filter(None, reasons)))
    more = f" ({len(found) - 1} more reasons are in results.json.)" if len(found) > 1 else ""
    return (found[0] if found else "no video could be measured.") + more


def in_words(results: dict) -> str:
    """The table for the terminal."""
    return "\n".join(
        f"{row['metric']:8} {value_of(row['generated']) or 'not measured: ' + row['not_measured']}"
        for row in results["metrics"]
    )


def value_of(found: dict | None) -> str:
    """A cell of the table: mean and spread, or a set's value; "" for none."""
    if found is None:
        return ""
    part = f" ({found['videos']} of {found['of']} videos)" if found["videos"] < found["of"] else ""
    if "value" in found:
        return f"{found['value']:.4g}{part}" + (f" ({found['note']})" if "note" in found else "")
    spread = f" ± {found['spread']:.3g}" if found["videos"] > 1 else ""
    return f"{found['mean']:.4g}{spread}{part}"
