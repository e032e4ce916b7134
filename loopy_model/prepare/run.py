"""Many raw videos: which are to be done, by several processes, whatever a single file does to them.

Every source has its own record, so that a run goes on where it stopped. A worker process that a
file kills or hangs is replaced; the files that were in work are then tried alone, and only the one
that does it again is rejected.
"""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from itertools import groupby, islice
from pathlib import Path

from .clips import clip_paths
from .raw import POINTS_SUFFIX, SUFFIXES, raw_videos
from .records import (
    HELD_OUT,
    CannotWrite,
    Source,
    differences,
    digest_of,
    read_source,
    shard_of,
    share_of,
    write_json,
    write_source,
    write_whole,
)
from .source import NO_ACCESS, NO_LANDMARKS, Job, Settings, abandon, prepare
from .workers import end_with_parent

CRASHED = "crashed the decoder"
AT_HAND = 4  # jobs per worker that are waited for; each wait looks at all of them
SETTINGS_FILE = "prepare.json"
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows has the second only

Show = Callable[[int, float], None]


class Refused(Exception):
    """The run cannot begin; one sentence says why and what to do."""


def check_settings(data: Path, settings: Settings, again: bool) -> None:
    """Keep one data folder to one kind of clips; `again` starts it anew."""
    path, ours = data / SETTINGS_FILE, settings.record()
    try:
        for folder in ("sources", "clips"):
            (data / folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWrite(f"cannot make the folder {error.filename}: {error.strerror}.") from error
    if path.exists() and not again:
        before = json.loads(path.read_text(encoding="utf-8"))
        changes = [
            f"{str(place[-1]).replace('_', '-')} was {old}, now {new}"
            for place, old, new in differences(before, ours)
        ]
        if changes:
            raise Refused(
                f"{data} was prepared with other settings: {'; '.join(changes)}. "
                "Give the old ones or another folder, or --again to prepare everything anew."
            )
    else:
        (data / HELD_OUT).unlink(missing_ok=True)
        write_json(path, ours)


def plan(raw: Path, data: Path, settings: Settings, shard: tuple[int, int]) -> tuple[list[Job], list[str]]:
    """The jobs of this shard (number from 1, of how many), and the files that are no videos."""
    sources, others = raw_videos(raw, data)
    if not sources:
        raise Refused(f"{raw} holds no video (a file whose name ends in {' '.join(sorted(SUFFIXES))}).")
    named = _named_for_test(sources, settings.test)
    copies = duplicates(raw, sorted(sources, key=lambda s: (s not in named, s)))
    number, shards = shard
    digest = settings.digest()

    def job(source: str) -> Job:
        path = raw / source
        stat = path.stat() if path.exists() else path.lstat()  # a link to nothing is rejected in its turn
        made_with = _made_with(digest, path, settings)
        test = source in named or share_of(source) < settings.test_share
        split = "test" if test else "train"
        return Job(
            raw,
            data,
            settings,
            Source(source, stat.st_size, stat.st_mtime_ns, made_with, copies.get(source), split),
        )

    mine = [s for s in sources if shard_of(s, shards) == number - 1]
    return [job(source) for source in mine if os.path.lexists(raw / source)], others


def _made_with(digest: str, video: Path, settings: Settings) -> str:
    """The settings, and the landmarks that belong to this video alone: when they change, it is prepared again."""
    points = video.with_suffix(POINTS_SUFFIX)
    if settings.landmarks != "points" or not points.is_file():
        return digest
    stat = points.stat()
    return f"{digest}-{stat.st_size}-{stat.st_mtime_ns}"


def _named_for_test(sources: list[str], names: Iterable[str]) -> set[str]:
    """The sources that are called so: by path, file name or file name without its kind."""
    found = {name: {s for s in sources if name in (s, Path(s).name, Path(s).stem)} for name in names}
    for name, which in found.items():
        if not which:
            raise Refused(f"--test {name}: no raw video has that name.")
    return set().union(*found.values())


def duplicates(raw: Path, sources: Iterable[str]) -> dict[str, str]:
    """Each source that is byte for byte another, earlier one -> that one."""
    sizes = {s: (raw / s).stat().st_size for s in sources if (raw / s).exists()}
    copies: dict[str, str] = {}
    for size, group in groupby(sorted(sizes, key=sizes.get), key=sizes.get):
        same, first = list(group), {}
        for source in same if size and len(same) > 1 else ():
            original = first.setdefault(_digest(raw / source), source)
            if original != source:
                copies[source] = original
    return copies


def _digest(path: Path) -> str:
    try:
        return digest_of(path)
    except OSError:
        return str(path)  # unreadable is unlike any other; its own job says why


def is_done(job: Job) -> bool:
    """Is it recorded, and is every file there that the record names?"""
    record = read_source(job.record)
    if record is None or not record.same_work(job.plan):
        return False
    if any(piece.reason in (NO_ACCESS, NO_LANDMARKS) for piece in record.rejected):
        return False  # what was missing then may be there, and the video would not show it
    return all(path.is_file() for clip in record.clips for path in clip_paths(job.clips, clip.name))


def run(jobs: list[Job], workers: int, patience: float, show: Show) -> None:
    """Prepare all jobs. Raises CannotWrite.

    `show(finished, seconds)` is told, about once a second, how many jobs were finished since the last
    time and how far those in work are, in seconds of their videos. A worker that shows no sign of life
    for `patience` seconds counts as hanging.
    """
    suspects = [job for job in jobs if job.marker.exists()]  # from a run that was killed
    rest = [job for job in jobs if not job.marker.exists()]
    fruitless = 0
    while rest:
        finished = {job.plan.source for job in _pool(rest, workers, patience, show)}
        unfinished = [job for job in rest if job.plan.source not in finished]
        fallen = [job for job in unfinished if job.marker.exists()]
        fruitless = 0 if finished or fallen else fruitless + 1
        if fruitless > 2:
            raise Refused("the worker processes end before they begin; is there enough memory?")
        suspects += fallen
        rest = [job for job in unfinished if not job.marker.exists()]
    for job in suspects:
        if not _pool([job], 1, patience, show):
            abandon(job)
            write_source(job.record, job.rejected(CRASHED, "a process that decoded it died or hung, twice."))
            job.marker.unlink(missing_ok=True)
            show(1, 0.0)


def _pool(jobs: list[Job], workers: int, patience: float, show: Show) -> list[Job]:
    """-> the jobs that were finished before the first crash."""
    context = multiprocessing.get_context("spawn")  # decoders have threads, which a fork would lose
    others = multiprocessing.active_children()
    finished: list[Job] = []
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=_begin)
    futures: dict[Future, Job] = {}  # those that are at hand
    try:
        _watch(pool, iter(jobs), AT_HAND * workers, futures, patience, finished, show)
    except BrokenProcessPool:
        pass
    except BaseException:
        begun = [job for future, job in futures.items() if future.running() or job.marker.exists()]
        for process in set(multiprocessing.active_children()) - set(others):
            process.kill()
        pool.shutdown(cancel_futures=True)
        for job in begun:
            abandon(job)
            job.marker.unlink(missing_ok=True)
        raise
    pool.shutdown(cancel_futures=True)
    return finished


def _watch(
    pool: ProcessPoolExecutor,
    waiting: Iterator[Job],
    at_hand: int,
    futures: dict[Future, Job],
    patience: float,
    finished: list[Job],
    show: Show,
) -> None:
    signs: dict[str, tuple[str, float]] = {}
    while True:
        for job in islice(waiting, at_hand - len(futures)):
            futures[pool.submit(_work, job)] = job
        if not futures:
            return
        ready, _ = wait(futures, timeout=1, return_when=FIRST_COMPLETED)
        for future in ready:
            future.result()
            finished.append(futures.pop(future))
        in_work = [job for future, job in futures.items() if future.running()]
        show(len(ready), sum(_seconds_done(job) for job in in_work))
        _kill_hanging(in_work, signs, patience)


def _kill_hanging(jobs: list[Job], signs: dict[str, tuple[str, float]], patience: float) -> None:
    """`signs`: per source, its last sign of life and when that was first seen."""
    for job in jobs:
        try:
            sign = job.marker.read_text()
        except OSError:
            continue  # not begun, or just finished
        before, since = signs.get(job.plan.source, ("", 0.0))
        if sign != before:
            signs[job.plan.source] = sign, time.monotonic()
        elif time.monotonic() - since > patience:
            with suppress(ProcessLookupError, ValueError):
                os.kill(int(sign.split()[0]), KILL)


def _begin() -> None:
    """In every worker: Ctrl-C is for the parent, and without the parent there is no work."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def _work(job: Job) -> None:
    """In a worker: one job under its marker."""
    last = 0.0

    def beat(second: float) -> None:
        nonlocal last
        if time.monotonic() - last >= 1:
            last = time.monotonic()
            with suppress(CannotWrite):
                _sign(job, f"{os.getpid()} {last:.0f} {second:.0f}")

    _sign(job, f"{os.getpid()} 0 0")
    prepare(job, beat)
    job.marker.unlink(missing_ok=True)


def _sign(job: Job, text: str) -> None:
    """A sign of life: process id, the second when it was given, the second of the video."""
    write_whole(job.marker, lambda partial: partial.write_text(text))


def _seconds_done(job: Job) -> float:
    """How far a job is, in seconds of its video; 0 when it is not in work."""
    try:
        return float(job.marker.read_text().split()[2])
    except (OSError, ValueError, IndexError):
        return 0.0
