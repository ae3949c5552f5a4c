"""A run folder: what it is called inside, whether it is free for a recipe, and what a finished one holds."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from hf_merge.errors import RunFolderError, some
from hf_merge.recipe import Recipe, differences
from hf_merge.storing import disk, results
from hf_merge.storing import front as fronts
from hf_merge.storing.durable import FolderLock
from hf_merge.storing.front import Front
from hf_merge.storing.results import Report


RECIPE_FILE, JOURNAL_FILE, FRONT_FILE, LOCK_FILE = "recipe.yaml", "journal.jsonl", "front.json", ".lock"
TIMINGS_FILE, SEARCH_PLOT_FILE = "timings.jsonl", "search.png"
REPORT_FILE, PLOT_FILE = "report.json", "pareto.png"
REFINEMENT_FILE = "refinement.json"
GATHERED_FOLDER = "gathered"  # what merge methods need of the fine-tunes beside their weights
CHECKPOINTS_FOLDER = "checkpoints"  # fine-tunes may be kept in the run folder that merges them


class Claim(ExitStack):
    """The right to search into a run folder, as a context manager that holds the folder's lock.

    A run that was begun before is locked on entering, so that whoever works on it is known at once and not after the
    minutes that a search needs to begin. A new folder is made and locked by `make` only, when the input is known to be
    right; nothing is written into a folder that is not ours.
    """

    def __init__(self, out: Path, *, resume: bool) -> None:
        """Prepares the claim to `out`; `resume` is whether to continue the run that it holds."""
        super().__init__()
        self._out, self._resume, self._held = out, resume, False

    def __enter__(self) -> Self:
        """Claims the folder as far as it is there.

        Raises:
            RunFolderError: It is not ours, there is nothing to resume, or another process holds it.
            ResourceError: It cannot be read or written.
        """
        with disk.naming(self._out):
            _require_ours(self._out, resume=self._resume)
            begun = (self._out / LOCK_FILE).exists()
        if begun:
            self._lock()
        return self

    def make(self, recipe: Recipe) -> None:
        """Makes the folder for a recipe unless it is there, and holds its lock from now on.

        Raises:
            RunFolderError: Another process holds it, or has begun another run there in the meantime.
            ResourceError: It cannot be made or written.
        """
        if not self._held:
            with disk.naming(self._out):
                self._out.mkdir(parents=True, exist_ok=True)
            self._lock()
            require_free(self._out, recipe, resume=self._resume)

    def _lock(self) -> None:
        self.enter_context(FolderLock(self._out))
        self._held = True


def require_free(out: Path, recipe: Recipe, *, resume: bool) -> None:
    """Returns if `out` is new, empty, or with `resume` the very run that is to be continued.

    Raises:
        RunFolderError: It is something else; where it holds another recipe, the settings that differ are listed.
        ResourceError: It cannot be read.
    """
    with disk.naming(out):
        if not _require_ours(out, resume=resume):
            return
    changed = differences(Recipe.load(out / RECIPE_FILE), recipe)
    if changed:
        listed = "\n  ".join(changed)
        raise RunFolderError(
            f"{out} holds the run of another recipe (there and here):\n  {listed}\nChoose another folder with --out."
        )
    if resume and (out / REFINEMENT_FILE).is_file():
        raise RunFolderError(
            f"{out} holds a search that has ended and a front that was refined since ({REFINEMENT_FILE}): to resume "
            f"would write the unrefined one over it. Go on with: hf-merge build {out}"
        )
    if not resume:
        raise RunFolderError(
            f"{out} already holds this run. Continue it with --resume, or choose another folder with --out."
        )


def _require_ours(out: Path, *, resume: bool) -> bool:
    """Returns whether a folder holds a run of some recipe; one that is neither that, new nor empty is refused."""
    if not out.exists():
        if resume:
            raise RunFolderError(f"{out} does not exist, so there is no run to resume. Leave out --resume.")
        return False
    if not out.is_dir():
        raise RunFolderError(f"{out} is a file; give --out a folder.")
    names = {path.name for path in out.iterdir() if not path.name.endswith(".part")}
    names -= {CHECKPOINTS_FOLDER, LOCK_FILE}
    held = RECIPE_FILE if RECIPE_FILE in names else min(names, default=None)
    if held is None or names == {JOURNAL_FILE}:  # the second: killed before the recipe was written
        return False
    if held != RECIPE_FILE or not (out / JOURNAL_FILE).is_file():
        raise RunFolderError(f"{out} holds '{held}' and is no run folder of hf-merge. Choose a new or empty folder.")
    return True


def read_run(run: Path) -> tuple[Front, Recipe]:
    """Returns front and recipe of a run folder whose search has ended.

    Raises:
        RunFolderError: There is no such run, or its search has not ended.
    """
    if not (run / RECIPE_FILE).is_file():
        raise RunFolderError(
            f"{run} is no run folder of hf-merge: it holds no {RECIPE_FILE}. Give the --out of a search."
        )
    if not (run / FRONT_FILE).is_file():
        raise RunFolderError(unfinished(run))
    return fronts.read(run / FRONT_FILE), Recipe.load(run / RECIPE_FILE)


def require_still(run: Path, front: Front) -> None:
    """Checks that a front that was read before its folder was locked is still that of the folder.

    Raises:
        RunFolderError: It was replaced meanwhile.
    """
    if fronts.read(run / FRONT_FILE) != front:
        raise RunFolderError(f"The front of {run} was replaced meanwhile, by `refine` say. Run this again.")


def require_same_weights(run: Path, front: Front, digests: Mapping[str, str]) -> None:
    """Checks that checkpoints are those that a front was searched on: the scores would be another's.

    Args:
        run: The run folder, for the message.
        front: Its front.
        digests: The SHA-256 of each checkpoint as it is now, by `base` and `task <name>`.

    Raises:
        RunFolderError: They are not; the message names them.
    """
    searched = {"base": front.base_sha256} | {f"task {task}": digest for task, digest in front.task_sha256.items()}
    changed = sorted(name for name in digests.keys() | searched.keys() if searched.get(name) != digests.get(name))
    if changed:
        raise RunFolderError(
            f"The weights of {some(changed)} are not those that {run} was searched on (another SHA-256). "
            "Name the same checkpoints, or search again."
        )


def read_report(run: Path, front: Front) -> Report | None:
    """Returns the test table of a run, None where it was not measured.

    Raises:
        RunFolderError: It is that of another front.
        UntrustedContentError: It breaks a rule of the format.
    """
    if not (run / REPORT_FILE).is_file():
        return None
    report = results.read(run / REPORT_FILE)
    strange = next((point.id for point in front.points if report.scores(point.id) is None), None)
    if strange is not None:
        raise RunFolderError(
            f"{run / REPORT_FILE} lacks {strange}: it is of another front. Run: hf-merge report {run}"
        )
    return report


def unfinished(run: Path) -> str:
    """Returns the message about a run whose search has not ended."""
    return (
        f"The search in {run} has not ended: it holds no {FRONT_FILE}. "
        f"Continue it: hf-merge search {run / RECIPE_FILE} --out {run} --resume"
    )
