"""Results as text for people and as documents for programs; no decision is made here."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hf_merge.errors import some
from hf_merge.merging.cost import FULL_BITS
from hf_merge.merging.settings import described
from hf_merge.storing.card_tables import megabytes
from hf_merge.storing.front import Front
from hf_merge.storing.results import Report
from hf_merge.workflow.summary import Best, SearchSummary


if TYPE_CHECKING:  # these load torch, which a table can do without
    from hf_merge.serving.model import Generation, Prediction
    from hf_merge.workflow.evaluate import MemberEvaluation
    from hf_merge.workflow.plan import Plan
    from hf_merge.workflow.publish import Publication


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table with columns as wide as they need, the first one to the left and the others to the right."""
    widths = [max(len(row[index]) for row in (header, *rows)) for index in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (header, *rows)
    ]
    return "\n".join(line.rstrip() for line in (lines[0], "-" * len(lines[0]), *lines[1:]))


def front_table(front: Front) -> str:
    """Returns the front as text: controls first, then the points by rising cost."""
    controls = {point.id: name for name, point in front.controls.items()}
    rest = [point for point in front.points if point.id not in controls]
    shown = (*front.controls.values(), *rest)
    header = ["configuration", "control", "C", "MB", "P validation", "% of individual"]
    rows = [
        [
            point.id,
            controls.get(point.id, ""),
            f"{point.cost:.4f}",
            megabytes(point.cost, front),
            f"{point.performance:.4f}",
            _percent(point.normalised),
        ]
        for point in shown
    ]
    if any(point.repo is not None for point in shown):
        header.append("repo")
        rows = [[*row, point.repo or "-"] for row, point in zip(rows, shown, strict=True)]
    own = sum(front.individual.values()) / len(front.individual)
    head = (
        f"{len(front.tasks)} fine-tunes of {front.base} ({front.parameters:,} parameters), "
        f"granularity {front.granularity}, {_chosen(front, 'method')}, {_chosen(front, 'codec')}\n"
        f"{front.history[-1][0]} evaluations, hypervolume {front.hypervolume:.4f} of the box up to "
        f"C = {front.reference[0]:.4f}, P = {front.reference[1]:.4f}\n"
        f"individual fine-tunes at full precision: P = {own:.4f} at C above {front.whole_models}\n"
    )
    return head + "\n" + text_table(header, rows)


def search_table(front: Front, summary: SearchSummary) -> str:
    """Returns what a search found, and how it went."""
    return f"{front_table(front)}\n\n{summary_table(summary)}"


def summary_table(summary: SearchSummary) -> str:
    """Returns how a search went as text."""
    rows = {
        "evaluations": f"{summary.evaluations}, of which {summary.front} on the front",
        "hypervolume": f"{summary.hypervolume:.4f}",
        **{f"best within {budget}": _best(best) for budget, best in summary.best.items()},
    }
    if summary.seconds is not None:
        rows["time"] = _duration(summary.seconds)
        rows["chains run"] = _spared(summary.pairs_asked, summary.pairs_run)
    if summary.blocks_asked:
        rows["blocks run in them"] = _spared(summary.blocks_asked, summary.blocks_run)
    if 0 < summary.timed < summary.evaluations:
        rows["times and counts"] = f"of {summary.timed} evaluations, the others' are lost"
    width = max(map(len, rows))
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows.items())


def _best(best: Best | None) -> str:
    if best is None:
        return "-"
    return f"{best.id}: C = {best.cost:.4f}, P = {best.performance:.4f}, {_percent(best.normalised)} % of individual"


def _spared(asked: int, run: int) -> str:
    return f"{run:,} of {asked:,} ({100 * (asked - run) / max(asked, 1):.1f} % had been run before)"


def front_json(front: Front) -> dict[str, Any]:
    """Returns the front as one JSON document."""
    return asdict(front)


def plan_table(plan: "Plan") -> str:
    """Returns a plan as text."""
    rows = [
        [
            item.name,
            str(item.tensors),
            f"{item.parameters:,}",
            ", ".join(f"{role} {count}" for role, count in sorted(item.roles.items())),
        ]
        for item in plan.components
    ]
    heads = ", ".join(f"{task} {count:,}" for task, count in plan.tasks.items())
    least, most = plan.member_bytes
    unplaced = f"\nwithout a role that the rule could tell (other): {some(plan.unplaced)}" if plan.unplaced else ""
    left = f"\nleft out, as no fine-tune has them: {', '.join(plan.left_out)}" if plan.left_out else ""
    return (
        f"base {plan.base}: {plan.model_type}, {plan.parameters:,} parameters, {plan.blocks} blocks{left}\n"
        f"{len(plan.tasks)} tasks, parameters of their heads: {heads}\n\n"
        + text_table(("component", "tensors", "parameters", "roles"), rows)
        + unplaced
        + "\n\ncost of the extremes, if every tensor passes the range criterion: "
        f"all merged C = {plan.cost_all_merged:.4f}, all separate C = {plan.cost_all_separate:.4f}\n"
        f"{_other_costs(plan)}"
        f"{plan.evaluations} of {plan.configurations:,} configurations will be evaluated\n"
        f"disk: {least / 1e6:.0f} MB (cheapest) to {most / 1e6:.0f} MB (dearest) per configuration built\n"
        f"memory: about {plan.memory_bytes / 1e9:.1f} GB\n"
        f"time: about {_duration(plan.forward_seconds)} of forward passes at {plan.assumed_positions} positions a "
        "row, before chains met twice are taken from memory; merging and encoding experts come on top\n"
        "data: not opened for a plan; a search checks splits, columns and labels before it merges anything"
    )


def _other_costs(plan: "Plan") -> str:
    """Returns what other codecs take, and what C means where the base is saved in fewer bits: lines, or nothing."""
    others = [f"{described(codec)} {cost:.4f}" for codec, cost in plan.cost_by_codec[1:]]
    lines = [f"all separate by the other codecs, C: {'; '.join(others)}\n"] if others else []
    if plan.saved_bits < FULL_BITS:
        times = FULL_BITS / plan.saved_bits
        lines.append(
            f"the base is saved in {plan.saved_bits} bits: against its own file C counts {times:g} times, "
            f"all merged {times * plan.cost_all_merged:.4f}\n"
        )
    return "".join(lines)


def report_table(report: Report) -> str:
    """Returns the test table of a run as text."""
    rows = [
        [
            row.id,
            "" if row.role == "front" else row.role,
            f"{row.cost:.4f}",
            f"{row.validation:.4f}",
            f"{row.oracle:.4f}",
            _percent(row.oracle_normalised),
            "-" if row.routed is None else f"{row.routed:.4f}",
            _percent(row.routed_normalised),
        ]
        for row in report.rows
    ]
    header = ("configuration", "role", "C", "P validation", "P test", "% of individual", "P test routed", "% routed")
    return text_table(header, rows) + "\n\n" + _router_line(report.router_accuracy)


def predictions_table(inputs: Sequence[str], answers: "Sequence[Prediction]") -> str:
    """Returns answers with their inputs, one line each, in columns that a tab divides."""
    return "\n".join(
        f"{answer.task or '-'}\t{answer.label if answer.label is not None else '-'}\t{answer.score:.4f}\t{given}"
        for given, answer in zip(inputs, answers, strict=True)
    )


def generations_table(inputs: Sequence[str], answers: "Sequence[Generation]") -> str:
    """Returns what was written with its inputs, one line each, divided by tabs; line ends in it are escaped."""
    return "\n".join(
        f"{answer.task or '-'}\t{_on_one_line(answer.text)}\t{_on_one_line(given)}"
        for given, answer in zip(inputs, answers, strict=True)
    )


def evaluation_table(found: "MemberEvaluation") -> str:
    """Returns one configuration's test scores as text, and what of them the card says otherwise."""
    scores, accuracy = found.scores, found.router_accuracy
    rows = [
        [task, f"{value:.4f}", f"{scores.routed_scores[task]:.4f}", f"{accuracy[task]:.4f}"]
        for task, value in scores.oracle_scores.items()
    ]
    rows.append(
        [
            "mean",
            f"{scores.oracle:.4f}",
            f"{scores.routed or 0.0:.4f}",
            f"{sum(accuracy.values()) / len(accuracy):.4f}",
        ]
    )
    head = f"{scores.id}: C = {scores.cost:.4f}, P on validation rows {scores.validation:.4f}; on test rows:\n\n"
    table = head + text_table(("task", "task known", "routed", "router accuracy"), rows)
    if not found.recorded:
        return table + "\n\nThe card holds no test scores to compare with."
    if not found.differences:
        return table + "\n\nThe card says the same."
    return table + "\n\nThe card says otherwise:\n  " + "\n  ".join(found.differences)


def evaluation_json(found: "MemberEvaluation") -> dict[str, Any]:
    """Returns one configuration's test scores as one JSON document, beside what its card says."""
    return {
        **asdict(found.scores),
        "router_accuracy": dict(found.router_accuracy),
        "recorded": {kind: dict(scores) for kind, scores in found.recorded.items()},
        "differences": list(found.differences),
    }


def publication_table(done: "Publication") -> str:
    """Returns what a push did, or would do, as text."""
    pushed = [*done.members.items(), ("the family", done.family)]
    rows = [
        [name, item.repo, str(len(item.sent)), f"{item.bytes_sent:,}", item.revision[:12] or "-"]
        for name, item in pushed
    ]
    head = "would be sent" if done.dry_run else "sent"
    table = text_table(("configuration", "repo", f"files {head}", f"bytes {head}", "commit"), rows)
    total = sum(item.bytes_sent for _, item in pushed)
    lines = [table, "", f"{total:,} bytes {head} to {len(pushed)} repos"]
    if done.collection is not None:
        lines.append(f"collection: {done.collection}")
    if done.create_pr and not done.dry_run:
        lines += ["pull requests, to be merged in this order:", *(f"  {item.url}" for _, item in pushed)]
    if not done.dry_run:
        at = "" if done.revision is None else f", revision={done.revision!r}"
        lines.append(f"load it: MergeModel.from_pretrained({done.family.repo!r}, budget=0.5{at})")
    return "\n".join(lines)


def publication_json(done: "Publication") -> dict[str, Any]:
    """Returns what a push did, or would do, as one JSON document; a commit that a dry run did not make is null."""
    document = asdict(done)
    for pushed in (document["family"], *document["members"].values()):
        pushed["revision"] = pushed["revision"] or None
    return document


def _on_one_line(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _router_line(accuracy: Mapping[str, float]) -> str:
    mean = sum(accuracy.values()) / len(accuracy)
    parts = ", ".join(f"{task} {100 * value:.1f} %" for task, value in accuracy.items())
    return f"router: {100 * mean:.1f} % of test rows reach their task ({parts})"


def _chosen(front: Front, label: str) -> str:
    """Returns the merge method or the codec of a front, or that components have their own."""
    if any(getattr(point, f"{label}s") is not None for point in front.points):
        return f"a {label} for each component"
    return described(getattr(front, label))


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
