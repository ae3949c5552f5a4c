"""The cards that people meet on the Hub: of a family, and of each of its members; and what a card's scores are.

The words are in `templates/`; here are the facts that go into them. The same front, report, origin and places give the
same bytes. Whatever comes from outside is escaped (`markdown.py`), in the head by YAML itself.
"""

from collections.abc import Mapping, Sequence
from math import ceil

import yaml
from huggingface_hub import ModelCard

from hf_merge.merging.cost import bytes_of
from hf_merge.recipe import Recipe
from hf_merge.storing import card_tables as tables
from hf_merge.storing.card_head import PAPER, Subject, metadata, recorded_scores
from hf_merge.storing.chains import ChainMap
from hf_merge.storing.front import Front, FrontPoint, within
from hf_merge.storing.markdown import Markdown, code, fenced, joined, link, literal, render
from hf_merge.storing.provenance import HUB, Origin, Places, Source, hub_link, licence_of, source_link
from hf_merge.storing.redaction import redact
from hf_merge.storing.results import Report


__all__ = ["Origin", "Places", "Source", "family_card", "member_card", "recorded_scores"]

_EXAMPLE_BUDGET = 0.5
_CHOSEN = "one of several, chosen for each component"


def family_card(front: Front, report: Report | None, origin: Origin, places: Places) -> str:
    """Returns the card of a family: its front, how to load from it, what the numbers mean, and where it comes from.

    Args:
        front: The front; where it was pushed, its points say where to.
        report: What it scores on test rows, if that was measured.
        origin: What it was made from.
        places: Where it is.
    """
    points, everything = tables.loadable(front, places), tables.all_points(front)
    best, budget = within(points, None), _example_budget(points)
    chosen = within(points, budget)
    title = places.family.split("/")[-1] if places.family else f"{len(front.tasks)} fine-tunes, merged"
    subject = Subject(front, report, origin, places, _recipe(origin), title, best.id, None)
    linked = {point.id for point in everything if tables.place_of(point, front, places) is not None}
    group = None if places.collection is None else link("collection", f"{HUB}/collections/{places.collection}")
    megabytes = ceil(bytes_of(chosen.cost, front.parameters) / 1e6)
    values = {
        "loadable": len(points),
        "unlinked": places.family is not None and len(linked) < len(everything),
        "collection": group,
        "budget": f"{budget:g}",
        "bytes_example": code(f'budget="{megabytes}MB"'),
        "budget_point": tables.point_link(chosen, front, places),
        "best": tables.point_link(best, front, places),
        "code": _code(subject, places.family or ".", f", budget={budget:g}"),
        "configurations": tables.configurations_table(front, report, places, everything),
        "per_task": None if report is None else tables.task_table(front, report, tables.showcase(front, points)),
    }
    return _assembled("family.md.jinja", subject, values)


def member_card(chain_map: ChainMap, front: Front, report: Report | None, origin: Origin, places: Places) -> str:
    """Returns the card of a member: what it stores, scores and shares, how to load it, and where it comes from.

    Args:
        chain_map: What the member is.
        front: The front that it belongs to.
        report: What the front scores on test rows, if that was measured.
        origin: What it was made from.
        places: Where it and its family are.
    """
    repo = places.members.get(chain_map.id) if places.family is not None else None
    title = repo.split("/")[-1] if repo else chain_map.id
    subject = Subject(front, report, origin, places, _recipe(origin), title, chain_map.id, chain_map.id)
    point = front.point(chain_map.id)
    shards, router = chain_map.file_bytes("experts-"), chain_map.file_bytes("router.")
    values = {
        "cost": f"{chain_map.cost:.4f}",
        "megabytes": tables.megabytes(chain_map.cost, front),
        "experts": len(chain_map.experts),
        "shard_megabytes": f"{shards / 1e6:.1f}",
        "router_megabytes": f"{router / 1e6:.1f}" if router else None,
        "version": chain_map.library_version,
        "code": _code(subject, repo or ".", ""),
        "measured": report is not None and report.scores(chain_map.id) is not None,
        "scores": tables.member_table(chain_map, front, report),
        "labels": tables.labels_table(chain_map),
        "sharing": None if point is None else tables.sharing_table(front, point),
        "neighbours": tables.configurations_table(front, report, None, _neighbours(front, point), chain_map.id),
    }
    return _assembled("member.md.jinja", subject, values)


def _assembled(template: str, subject: Subject, values: Mapping[str, object]) -> str:
    """Returns a card: the head, then the template filled in; no token stays in it, whoever put it there."""
    body = render(template, **_shared(subject), **values)
    head = metadata(subject)
    return redact(str(ModelCard(f"---\n{head.to_yaml()}\n---\n\n{body}")))


def _chooses(front: Front, label: str) -> bool:
    """Returns whether configurations name a merge method, or a codec, for each component."""
    return any(getattr(point, label) is not None for point in front.points)


def _shared(subject: Subject) -> dict[str, object]:
    """Returns what both kinds of card say."""
    front, report, origin, places, recipe = (
        subject.front, subject.report, subject.origin, subject.places, subject.recipe,
    )  # fmt: skip
    return {
        "title": subject.title,
        "image": subject.image,
        "tasks": list(front.tasks),
        "joined": joined,
        "only_code": code(f"tasks=[{literal(next(iter(front.tasks)))}]"),
        "materialize_code": code(f"model.materialize({literal(next(iter(front.tasks)))})"),
        "base": source_link(origin.base),
        "base_megabytes": tables.megabytes(1.0, front),
        "family": None if places.family is None else hub_link(places.family, places.family),
        "install": fenced("pip install -e .", "bash"),
        "report": report,
        "test_rows": None if report is None else f"{sum(report.test_rows.values()):,}",
        "router": None if report is None else _router(report),
        "individual": None if report is None else report.scores("individual"),
        "validation_rows": recipe.search.validation_rows,
        "evaluations": front.history[-1][0],
        "hypervolume": f"{front.hypervolume:.4f}",
        "method": tables.settings_text(front.method) if not _chooses(front, "methods") else _CHOSEN,
        "codec": tables.settings_text(front.codec) if not _chooses(front, "codecs") else _CHOSEN,
        "first_codec": tables.settings_text(front.codec),
        "granularity": front.granularity,
        "components": len(front.components),
        "dtype": front.dtype,
        "seed": recipe.search.seed,
        "paper": link(f"arXiv {PAPER}", f"https://arxiv.org/abs/{PAPER}"),
        "sources": tables.sources_table(origin, recipe),
        "licence": licence_of(origin).text,
        "local": any(source.repo is None for source in origin.sources) or _has_local_data(recipe),
        "recipe": fenced(origin.recipe, "yaml"),
        "commands": fenced(_commands(places, subject.config), "bash"),
    }


def _code(subject: Subject, source: str, options: str) -> Markdown:
    """Returns code that runs as it is pasted, whatever the tasks read."""
    pairs = all(task.data.text_pair is not None for task in subject.recipe.tasks)
    writes = any(task.data.target is not None for task in subject.recipe.tasks)
    method, shown = ("generate", "text") if writes else ("predict", "label, answer.score")
    lines = ["from hf_merge import MergeModel"]
    if subject.image:
        lines += ["from PIL import Image"]
        example = 'Image.new("RGB", (224, 224))'
    elif subject.audio:
        example = '{"array": [0.0] * 16000, "sampling_rate": 16000}'
    else:
        example = '("one text", "another text")' if pairs else '"put your own text here"'
    lines += [
        "",
        f"model = MergeModel.from_pretrained({literal(source)}{options})",
        "print(model.chain_map.id, model.cost, model.tasks)",
        f"for answer in model.{method}([{example}]):",
        f"    print(answer.task, answer.{shown})",
        "",
        "# The task is known: no routing.",
        f"model.{method}([{example}], task={literal(next(iter(subject.front.tasks)))})",
    ]
    return fenced("\n".join(lines), "python")


def _example_budget(points: Sequence[FrontPoint]) -> float:
    """Returns half a model, or where nothing is as small the least that anything fits, rounded up to be read."""
    cheapest = min(point.cost for point in points)
    return _EXAMPLE_BUDGET if cheapest <= _EXAMPLE_BUDGET else ceil(cheapest * 100) / 100


def _commands(places: Places, config: str | None) -> str:
    chosen = "" if config is None else f" --config {config}"
    fetch = [] if places.family is None else [f"hf download {places.family} recipe.yaml --local-dir ."]
    run = ["hf-merge search recipe.yaml --out runs/mine", f"hf-merge build runs/mine{chosen}"]
    run += ["hf-merge report runs/mine"] if config is None else []
    return "\n".join([*fetch, *run])


def _neighbours(front: Front, point: FrontPoint | None) -> list[FrontPoint]:
    """Returns a point between its neighbours and both controls, by rising cost.

    A member's card names them without links: what else was pushed changes with every push, and its card should not.
    """
    everything = tables.all_points(front)
    if point is None:
        return list(front.controls.values())
    place = [other.id for other in everything].index(point.id)
    near = everything[max(0, place - 1) : place + 2]
    wanted = {other.id for other in (*front.controls.values(), *near)}
    return [other for other in everything if other.id in wanted]


def _router(report: Report) -> Markdown:
    shares = report.router_accuracy
    mean = 100 * sum(shares.values()) / len(shares)
    return Markdown(f"{mean:.1f} % ({joined([f'{task} {100 * share:.1f}' for task, share in shares.items()])})")


def _has_local_data(recipe: Recipe) -> bool:
    return any(task.data.data_files is not None for task in recipe.tasks)


def _recipe(origin: Origin) -> Recipe:
    return Recipe.parse(yaml.safe_load(origin.recipe), "recipe.yaml")
