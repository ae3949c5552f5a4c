"""The commands that make something: a plan, a front, members, a merged model, repos on the Hub."""

import os
from math import isfinite
from pathlib import Path
from typing import Annotated

import typer

from hf_merge.cli.commands import app, command, print_document
from hf_merge.cli.options import Debug, Json, RecipePath, RunPath, read_settings
from hf_merge.errors import InputError


@app.command()
@command
def plan(recipe: RecipePath, as_json: Json = False, debug: Debug = False) -> None:
    """Show what a search will merge, store and need, from configurations and headers alone."""
    from hf_merge.recipe import Recipe

    wanted = Recipe.load(recipe)  # before the seconds that the rest takes to load
    from hf_merge.workflow import plan as planning
    from hf_merge.workflow.tables import plan_table

    found = planning.plan(wanted)
    print_document(planning.as_json(found) if as_json else plan_table(found))


@app.command()
@command
def search(
    recipe: RecipePath,
    out: Annotated[Path, typer.Option("--out", help="The run folder to write.", show_default=False)],
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    processes: Annotated[int, typer.Option("--num-processes", help="Evaluate in so many processes.")] = 1,
    deadline: Annotated[
        float, typer.Option("--deadline", help="Seconds that one process waits for another's scores.")
    ] = 1800.0,
    state_memory: Annotated[
        float, typer.Option("--state-memory", help="GB of each process for kept hidden states; 0 keeps none.", min=0)
    ] = 2.0,
    device: Annotated[str, typer.Option("--device", help="Where to compute: auto, cpu or cuda.")] = "auto",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Search the Pareto front of storage against performance."""
    from hf_merge.recipe import Recipe
    from hf_merge.workflow.run_folder import Claim

    wanted = Recipe.load(recipe)
    if "RANK" not in os.environ:  # of a launcher's ranks the first is told when all have come, lest they wait for it
        with Claim(out, resume=resume):
            pass  # who else works there is known before the seconds that the rest takes to load
    from hf_merge.workflow.progress import event_line
    from hf_merge.workflow.search import search as run
    from hf_merge.workflow.summary import summarise
    from hf_merge.workflow.tables import front_json, search_table

    if not isfinite(state_memory):
        raise InputError(f"--state-memory is {state_memory:g}; give GB, such as 8, or 0 to keep no hidden states.")
    progress = event_line if as_json else True
    front = run(
        wanted,
        out,
        resume=resume,
        processes=processes,
        deadline_seconds=deadline,
        state_bytes=int(state_memory * 1e9),
        device=device,
        progress=progress,
    )
    if os.environ.get("RANK", "0") != "0":
        return  # the first rank of a launcher speaks for all
    print_document(front_json(front) if as_json else search_table(front, summarise(out, front)))


@app.command()
@command
def merge(
    recipe: RecipePath,
    out: Annotated[Path, typer.Option("--out", help="The model folder to write.", show_default=False)],
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            help="The merge method; without it the first of the recipe, or of its preset: with `frontier` that is "
            "`average`, the plain mean.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A hyperparameter; repeatable.")
    ] = None,
    head: Annotated[str | None, typer.Option("--head", metavar="TASK", help="Give it this task's head.")] = None,
    gathered: Annotated[
        Path | None,
        typer.Option(
            "--gathered",
            help="Keep here, for the next merge, what fisher, regmean, adamerging, expert_merging and "
            "expert_merging_plus find out from rows.",
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Merge all tasks into one ordinary transformers model, without a search."""
    from dataclasses import asdict

    from hf_merge.recipe import Recipe

    wanted, chosen = Recipe.load(recipe), read_settings(settings or [])
    from hf_merge.workflow.merge import merge as write

    merged = write(wanted, out, method=method, settings=chosen, head=head, gathered=gathered)
    told = f"{len(merged.tasks)} tasks, {merged.parameters:,} parameters, {merged.method['name']}: {merged.folder}"
    print_document({**asdict(merged), "folder": str(merged.folder)} if as_json else told)


@app.command()
@command
def refine(
    run: RunPath,
    method: Annotated[
        str, typer.Option("--method", help="Fit by this method: expert_merging, expert_merging_plus.")
    ] = "expert_merging",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A hyperparameter of it; repeatable.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Fit coefficients inside the groups of a front's configurations; keep those that score more."""
    from hf_merge.workflow.refine import as_text
    from hf_merge.workflow.refine import refine as fit

    found = fit(run, method=method, settings=read_settings(settings or []))
    print_document(found.as_json() if as_json else as_text(found))


@app.command()
@command
def build(
    run: RunPath,
    out: Annotated[Path | None, typer.Option("--out", help="Write the family here instead of into RUN.")] = None,
    config: Annotated[
        list[str] | None, typer.Option("--config", help="Build only this configuration; repeatable.")
    ] = None,
    max_configs: Annotated[int | None, typer.Option("--max-configs", help="Thin the front to so many.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write configurations of the front as member folders, and train the router."""
    from hf_merge.workflow.build import build as write

    folders = write(run, out, configs=config or (), max_configs=max_configs)
    print_document([str(folder) for folder in folders] if as_json else "\n".join(map(str, folders)))


@app.command()
@command
def push(
    run: RunPath,
    repo: Annotated[
        str, typer.Argument(metavar="REPO", help="The family repo: USER/NAME, or NAME.", show_default=False)
    ],
    config: Annotated[
        list[str] | None, typer.Option("--config", help="Push only this configuration; repeatable.")
    ] = None,
    max_configs: Annotated[
        int | None, typer.Option("--max-configs", help="Thin the front to so many; 8 by default.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Push the whole front and both controls.")] = False,
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Whether new repos are private.", show_default=False)
    ] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="The branch to push to, made if need be.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open pull requests instead.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent, and send nothing.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Push configurations of the front to the Hub, each as a repo, and the family repo that loads by budget."""
    from hf_merge.workflow.publish import push as publish
    from hf_merge.workflow.tables import publication_json, publication_table

    done = publish(
        run,
        repo,
        configs=config or (),
        max_configs=max_configs,
        everything=everything,
        private=private,
        branch=revision,
        create_pr=create_pr,
        dry_run=dry_run,
    )
    print_document(publication_json(done) if as_json else publication_table(done))


@app.command()
@command
def demo(
    out: Annotated[Path, typer.Option("--out", help="Where everything lands.")] = Path("runs/demo"),
    debug: Debug = False,
) -> None:
    """Fine-tune five assistants on data that is shipped, merge them, and serve them under a budget."""
    from hf_merge.workflow.demo import run_demo

    run_demo(out)
