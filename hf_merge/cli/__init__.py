"""The command line: words in, words and exit codes out. Data go to stdout, progress and messages to stderr.

Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

import json
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, ParamSpec

import typer

from hf_merge.cli.messages import show_messages
from hf_merge.cli.options import Budget, Debug, Json, RecipePath, Repo, Revision, RunPath
from hf_merge.errors import HfMergeError
from hf_merge.version import VERSION


app = typer.Typer(
    name="hf-merge",
    help="Merge fine-tunes of one base model component by component, and serve the result under a storage budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
Parameters = ParamSpec("Parameters")
_INTERRUPTED, _INTERRUPTION = 130, "Interrupted. The same command again goes on from here; a search with --resume."


def _command(function: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Shows messages, and turns errors into one on stderr and an exit code; a traceback only with `--debug`."""

    @wraps(function)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        show_messages()
        try:
            function(*args, **kwargs)
        except HfMergeError as error:
            _fail(error, error.exit_code, bool(kwargs.get("debug")))
        except KeyboardInterrupt as error:
            _fail(error, _INTERRUPTED, bool(kwargs.get("debug")), _INTERRUPTION)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None

    return run


def _fail(error: BaseException, code: int, debug: bool, message: str | None = None) -> None:
    if debug:
        raise error
    typer.echo(f"Error: {message or error}", err=True)
    raise typer.Exit(code)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"hf-merge {VERSION}")
        raise typer.Exit


@app.command()
@_command
def plan(recipe: RecipePath, as_json: Json = False, debug: Debug = False) -> None:
    """Show what a search will merge, store and need, from configurations and headers alone."""
    from hf_merge.recipe import Recipe

    wanted = Recipe.load(recipe)  # before the seconds that the rest takes to load
    from hf_merge.workflow import plan as planning
    from hf_merge.workflow.tables import plan_table

    found = planning.plan(wanted)
    _print(planning.as_json(found) if as_json else plan_table(found))


@app.command()
@_command
def search(
    recipe: RecipePath,
    out: Annotated[Path, typer.Option("--out", help="The run folder to write.", show_default=False)],
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    processes: Annotated[int, typer.Option("--num-processes", help="Evaluate in so many processes.")] = 1,
    deadline: Annotated[
        float, typer.Option("--deadline", help="Seconds for which one process waits for another.")
    ] = 1800.0,
    state_memory: Annotated[
        float, typer.Option("--state-memory", help="GB of each process for kept hidden states; 0 keeps none.", min=0)
    ] = 2.0,
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

    progress = event_line if as_json else True
    front = run(
        wanted,
        out,
        resume=resume,
        processes=processes,
        deadline_seconds=deadline,
        state_bytes=int(state_memory * 1e9),
        progress=progress,
    )
    if os.environ.get("RANK", "0") != "0":
        return  # the first rank of a launcher speaks for all
    _print(front_json(front) if as_json else search_table(front, summarise(out, front)))


@app.command()
@_command
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
    _print([str(folder) for folder in folders] if as_json else "\n".join(map(str, folders)))


@app.command()
@_command
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
    _print(publication_json(done) if as_json else publication_table(done))


@app.command()
@_command
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
    from hf_merge.workflow.show import show as describe

    document, table = describe(repo, revision)
    _print(document if as_json else table)


@app.command()
@_command
def predict(
    repo: Repo,
    inputs: Annotated[
        list[str], typer.Argument(metavar="TEXT|IMAGE|WAV...", help="Texts, image or WAV files.", show_default=False)
    ],
    budget: Budget = None,
    revision: Revision = None,
    task: Annotated[str | None, typer.Option("--task", help="Skip routing.")] = None,
    write: Annotated[bool, typer.Option("--generate", help="Have a language model write instead of choose.")] = False,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", help="With --generate: the most tokens to write.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Route inputs to their experts and print the answers."""
    from dataclasses import asdict

    from hf_merge.serving.model import MergeModel
    from hf_merge.workflow.show import read_inputs
    from hf_merge.workflow.tables import generations_table, predictions_table

    model = MergeModel.from_pretrained(repo, budget=budget, revision=revision)
    read = read_inputs(model, inputs)
    if write:
        texts = model.generate(read, task=task, max_new_tokens=max_new_tokens)
        documents, table = [asdict(answer) for answer in texts], generations_table(inputs, texts)
    else:
        answers = model.predict(read, task=task)
        documents, table = [asdict(answer) for answer in answers], predictions_table(inputs, answers)
    _print([{"input": given, **shown} for given, shown in zip(inputs, documents, strict=True)] if as_json else table)


@app.command("eval")
@_command
def evaluate(
    repo: Repo,
    budget: Budget = None,
    revision: Revision = None,
    recipe: Annotated[Path | None, typer.Option("--recipe", help="The recipe that describes the test rows.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure one configuration on test rows, with the task known and routed, and compare with its card."""
    from hf_merge.workflow.evaluate import evaluate as measure
    from hf_merge.workflow.tables import evaluation_json, evaluation_table

    found = measure(repo, budget, revision=revision, recipe=recipe)
    _print(evaluation_json(found) if as_json else evaluation_table(found))


@app.command()
@_command
def report(
    run: RunPath,
    of_search: Annotated[
        bool, typer.Option("--search", help="Only tell and draw how the search went; nothing is measured.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure the whole front and both controls on test rows, and draw the Pareto plot and how the search went."""
    from dataclasses import asdict

    if of_search:
        from hf_merge.workflow.summary import report_search
        from hf_merge.workflow.tables import summary_table

        summary = report_search(run)
        return _print(asdict(summary) if as_json else summary_table(summary))

    from hf_merge.workflow.report import report as measure
    from hf_merge.workflow.tables import report_table

    found = measure(run)
    _print(asdict(found) if as_json else report_table(found))


@app.command()
@_command
def demo(
    out: Annotated[Path, typer.Option("--out", help="Where everything lands.")] = Path("runs/demo"),
    debug: Debug = False,
) -> None:
    """Fine-tune five assistants on data that is shipped, merge them, and serve them under a budget."""
    from hf_merge.workflow.demo import run_demo

    run_demo(out)


def main() -> None:
    """Runs the command line; what no one foresaw is one line as well, unless `--debug` asks for the traceback."""
    if "--debug" not in sys.argv:
        sys.excepthook = _report_bug
    typer.main.get_command(app)()  # app() itself would put typer's own hook, which prints tracebacks, in place of ours


def _report_bug(kind: type[BaseException], error: BaseException, _: TracebackType | None) -> None:
    """Prints an unforeseen error in one line; Python then exits with 1."""
    print(
        f"Error: unexpected {kind.__name__}: {error}\n"
        "This is a bug in hf-merge: please report it with the output of --debug.",
        file=sys.stderr,
    )


def _print(document: Any) -> None:
    print(document if isinstance(document, str) else json.dumps(document, indent=1, ensure_ascii=False))
    sys.stdout.flush()  # a closed pipe shows here, and not after everything, where no one could catch it
