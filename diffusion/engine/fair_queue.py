"""Who is in the next pass: fair queueing, by what each job has been given so far.

Jobs share the rows of the passes equally, however many images or steps they want, as if each had a machine of
its own that is slower by their number (start-time fair queueing; Goyal et al. 1996). So a short one is not
held up by a long one before it, and the first in the order always fits: nobody waits for ever.
"""

from collections.abc import Iterable

from diffusion.engine.job import Chunk, Job


def select_chunks(parts: Iterable[Chunk], rows: int) -> list[Chunk]:
    """The parts of the next pass, of at most `rows` rows together: those of the least served jobs first.

    Of one job those that have asked least. One that does not fit any more leaves its place to the next that
    does, and comes before it in the next pass.
    """
    picked: list[Chunk] = []
    for part in sorted(parts, key=_turn):
        if part.rows <= rows:
            picked.append(part)
            rows -= part.rows
        if not rows:
            break
    return picked


def initial_service(jobs: Iterable[Job]) -> int:
    """Where the share of a job that joins these begins: with the least served one, for the past is past."""
    return min((job.served for job in jobs), default=0)


def _turn(part: Chunk) -> tuple[int, int, int, int]:
    return part.job.served, part.job.number, part.asked, part.images.start
