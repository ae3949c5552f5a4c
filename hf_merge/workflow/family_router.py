"""The router of a family: trained once from a recipe's rows, and kept with what it was trained from."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from tqdm import tqdm

from hf_merge.modeling.features import ALL_LAYERS, FeatureExtractor
from hf_merge.searching.rows import Rows
from hf_merge.searching.splits import data_origin
from hf_merge.searching.tasks import TaskData
from hf_merge.serving.router import Router, RouterSettings, accuracy_per_task, fit
from hf_merge.serving.router_file import load_router, router_tensors
from hf_merge.storing import disk
from hf_merge.storing.durable import write_atomic
from hf_merge.storing.strict_json import dumps, read_json
from hf_merge.storing.tensors import SafetensorsFile, tensor_bytes
from hf_merge.workflow.project import Project, Reader
from hf_merge.workflow.rows import load_rows


ROUTER_FILE, ROUTER_REPORT = "router.safetensors", "router.json"
_REPORT_BYTES = 1 << 20


def provide_router(
    project: Project, folder: Path, data: Mapping[str, TaskData] | None = None, *, progress: bool = True
) -> None:
    """Sees to it that a folder holds the recipe's router: the one that is there if it was trained from the same.

    Args:
        project: The opened recipe, of two tasks or more.
        folder: Where the router is kept, with what it was trained from; made if need be.
        data: Every task's rows; None loads them where they are needed.
        progress: Show progress on stderr.

    Raises:
        DatasetError: A task's data lack what it needs.
    """
    origin = _origin(project)
    if (folder / ROUTER_FILE).is_file() and _kept_origin(folder) == origin:
        return
    rows = load_rows(project.recipe, project.heads) if data is None else data
    router, eyes, accuracy = train_router(project, rows, progress)
    with disk.naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
    # The report last and the router of another recipe without one: a report always speaks of the file beside it.
    (folder / ROUTER_REPORT).unlink(missing_ok=True)
    write_atomic(folder / ROUTER_FILE, tensor_bytes(router_tensors(router, eyes)))
    report = {"layers": eyes.layers, "accuracy": accuracy, "origin": origin}
    write_atomic(folder / ROUTER_REPORT, dumps(report, indent=1))


def train_router(
    project: Project, data: Mapping[str, TaskData], progress: bool
) -> tuple[Router, FeatureExtractor, dict[str, float]]:
    """Returns the router of a family, its eyes, and its accuracy per task on the search rows, which it never saw."""
    reader, recipe = Reader(project), project.recipe
    layers = recipe.router.layers
    depth = {"all": ALL_LAYERS, "auto": ALL_LAYERS if project.kind in ("image", "audio") else 0}.get(str(layers))
    base = project.family.base
    # The family's shapes leave out tensors that no fine-tune has; where they can, the features do without as well.
    names = list(project.family.of_base)
    spare = [name for name in base.backbone().values() if name not in project.family.of_base]
    eyes = FeatureExtractor.from_base(
        base.config, names, base.trunk, int(layers) if depth is None else depth, base, spare
    )
    features, labels = _features(
        eyes, reader, {task: rows.router for task, rows in data.items()}, "router features", progress
    )
    settings = RouterSettings(recipe.router.epochs, recipe.router.learning_rate, recipe.search.seed)
    with tqdm(total=settings.epochs, desc="router", unit="epoch", disable=not progress) as bar:
        router = fit(features, labels, len(data), settings, lambda _: bar.update())
    held_out, truth = _features(
        eyes, reader, {task: rows.search for task, rows in data.items()}, "router check", progress
    )
    return router, eyes, accuracy_per_task(router.route(held_out), truth, list(data))


def read_router(folder: Path, project: Project) -> tuple[Router, FeatureExtractor]:
    """Returns the router of a family folder and the eyes it sees with.

    Raises:
        MalformedChainMap: The file is no router.
    """
    with SafetensorsFile(folder / ROUTER_FILE) as file:
        tensors = {name: file.read(name) for name in file.specs}
    base = project.family.base
    return load_router(tensors, base.config, base.trunk)


def _features(
    eyes: FeatureExtractor, reader: Reader, rows: Mapping[str, Rows], title: str, progress: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns pooled features [rows, width] and the task of each row [rows] int64."""
    features, labels = [], []
    for index, part in enumerate(tqdm(rows.values(), desc=title, unit="task", disable=not progress)):
        pooled = [eyes.pooled(batch.inputs) for batch in reader.batches(part)]
        features += pooled
        labels += [torch.full((len(batch),), index) for batch in pooled]
    return torch.cat(features), torch.cat(labels)


def _kept_origin(folder: Path) -> object:
    """Returns what the router in a folder was trained from, or None where nobody says."""
    if not (folder / ROUTER_REPORT).is_file():
        return None
    report = read_json(folder / ROUTER_REPORT, _REPORT_BYTES)
    return report.get("origin") if isinstance(report, dict) else None


def _origin(project: Project) -> str:
    """Returns a digest of everything that decides a router."""
    recipe = project.recipe
    decides = {
        "base": project.family.base.digest(),
        "tasks": [[task.name, data_origin(task)] for task in recipe.tasks],
        "labels": [project.heads[task.name].labels for task in recipe.tasks],
        "router": recipe.router.model_dump(mode="json"),
        "search": [recipe.search.seed, recipe.search.validation_rows, recipe.search.max_length],
    }
    return hashlib.sha256(dumps(decides)).hexdigest()
