"""The commands that look at what was made, ask it, and measure it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from hf_merge.cli.commands import app, command, print_document
from hf_merge.cli.options import (
    Budget,
    Debug,
    Json,
    RecipePath,
    Repo,
    Revision,
    RunPath,
    check_revision,
    read_settings_by_method,
)
from hf_merge.errors import InputError


@app.command()
@command
def show(
    repo: Annotated[
        str,
        typer.Argument(metavar="RUN|REPO", help="A run, family or member folder, or a Hub repo.", show_default=False),
    ],
    revision: Revision = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the front of a run or family, or what a member holds."""
    check_revision(revision, repo)
    from hf_merge.workflow.show import show as describe

    document, table = describe(repo, revision)
    print_document(document if as_json else table)


@app.command()
@command
def predict(
    repo: Repo,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="TEXT|IMAGE|WAV...",
            help="Texts (of a pair: 'A ||| B'), image or WAV files.",
            show_default=False,
        ),
    ],
    budget: Budget = None,
    revision: Revision = None,
    task: Annotated[str | None, typer.Option("--task", help="Skip routing.")] = None,
    claim: Annotated[
        float | None,
        typer.Option(
            "--claim",
            metavar="P",
            help="Answer only where the router gives some task at least this probability, like 0.9; other inputs "
            "get the task '-' and no answer, or with --generate what the merged model writes.",
        ),
    ] = None,
    write: Annotated[bool, typer.Option("--generate", help="Have a language model write instead of choose.")] = False,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", help="With --generate: the most tokens to write.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Route inputs to their experts and print the answers."""
    from dataclasses import asdict

    _check_options_of_predict(repo, revision, write, max_new_tokens)
    from hf_merge.serving.model import MergeModel
    from hf_merge.workflow.show import read_inputs
    from hf_merge.workflow.tables import generations_table, predictions_table

    model = MergeModel.from_pretrained(repo, budget=budget, revision=revision)
    if write and not model.chain_map.wordings:
        raise InputError("This model classifies and writes nothing: leave --generate out.")
    read = read_inputs(model, inputs)
    if write:
        texts = model.generate(read, task=task, claim=claim, max_new_tokens=max_new_tokens)
        documents, table = [asdict(answer) for answer in texts], generations_table(inputs, texts)
    else:
        answers = model.predict(read, task=task, claim=claim)
        documents, table = [asdict(answer) for answer in answers], predictions_table(inputs, answers)
    print_document(
        [{"input": given, **shown} for given, shown in zip(inputs, documents, strict=True)] if as_json else table
    )


def _check_options_of_predict(repo: str, revision: str | None, write: bool, max_new_tokens: int | None) -> None:
    """Refuses options that would change nothing, before anything is loaded."""
    check_revision(revision, repo)
    if max_new_tokens is not None and not write:
        raise InputError("--max-new-tokens goes with --generate: add it, or leave this out.")


@app.command("eval")
@command
def evaluate(
    repo: Repo,
    budget: Budget = None,
    revision: Revision = None,
    recipe: Annotated[Path | None, typer.Option("--recipe", help="The recipe that describes the test rows.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure one configuration on test rows, with the task known and routed, and compare with its card."""
    check_revision(revision, repo)
    from hf_merge.workflow.evaluate import evaluate as measure
    from hf_merge.workflow.tables import evaluation_json, evaluation_table

    found = measure(repo, budget, revision=revision, recipe=recipe)
    print_document(evaluation_json(found) if as_json else evaluation_table(found))


@app.command()
@command
def report(
    run: RunPath,
    of_search: Annotated[
        bool, typer.Option("--search", help="Only tell and draw how the search went; nothing is measured.")
    ] = False,
    analyses: Annotated[
        bool, typer.Option("--analyses", help="Of a measured run, tell what its tasks and components share and need.")
    ] = False,
    further: Annotated[
        list[Path] | None,
        typer.Option("--with", metavar="RUN", help="With --analyses: pool this run of another seed; repeatable."),
    ] = None,
    unseen: Annotated[
        Path | None,
        typer.Option("--unseen", metavar="RECIPE", help="With --analyses: serve this recipe's tasks, never merged."),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure the whole front and both controls on test rows, and draw the Pareto plot and how the search went."""
    from dataclasses import asdict

    if of_search and analyses:
        raise InputError("--search measures nothing and --analyses does: give one of them.")
    if analyses:
        return _tell_analyses(run, further or (), unseen, as_json)
    if further or unseen is not None:
        raise InputError(f"{'--with' if further else '--unseen'} goes with --analyses: add it, or leave this out.")
    if of_search:
        from hf_merge.workflow.summary import report_search
        from hf_merge.workflow.tables import summary_table

        summary = report_search(run)
        return print_document(asdict(summary) if as_json else summary_table(summary))

    from hf_merge.workflow.report import report as measure
    from hf_merge.workflow.tables import report_table

    found = measure(run)
    print_document(asdict(found) if as_json else report_table(found))


def _tell_analyses(run: Path, further: Sequence[Path], unseen: Path | None, as_json: bool) -> None:
    from hf_merge.recipe import Recipe

    strangers = None if unseen is None else Recipe.load(unseen)
    from hf_merge.workflow.analyses import analyse
    from hf_merge.workflow.findings import as_text

    found = analyse(run, further=further, unseen=strangers)
    print_document(found.as_json() if as_json else as_text(found))


@app.command()
@command
def compare(
    recipe: RecipePath,
    method: Annotated[
        list[str] | None,
        typer.Option("--method", help="Compare only this merge method or peer (emr, twin); repeatable."),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="METHOD.NAME=VALUE", help="A hyperparameter; repeatable.")
    ] = None,
    run: Annotated[
        list[Path] | None,
        typer.Option("--run", help="A run folder of this recipe, measured by report; repeatable, one per seed."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write comparison.json, .md and .png into this folder.")
    ] = None,
    routed: Annotated[
        bool, typer.Option("--routed", help="Train the router, and score with the task found by it as well.")
    ] = False,
    multitask: Annotated[
        Path | None,
        typer.Option("--multitask", help="A folder with a checkpoint per task of one model trained on all tasks."),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure every merge method on the recipe's tasks, beside dynamic peers and what searches found."""
    from hf_merge.recipe import Recipe

    wanted = Recipe.load(recipe)
    from hf_merge.workflow.compare import compare as measure
    from hf_merge.workflow.comparison import as_text

    found = measure(
        wanted,
        chosen=method or (),
        settings=read_settings_by_method(settings or []),
        runs=run or (),
        out=out,
        routed=routed,
        multitask=multitask,
    )
    print_document(found.as_json() if as_json else as_text(found))
