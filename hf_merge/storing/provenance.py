"""Where a family comes from and where it goes, as its cards tell it: sources, licences, places."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from hf_merge.storing.markdown import Markdown, escape, joined, link


HUB = "https://huggingface.co"
UNKNOWN, OTHER, MIXED = "unknown", "other", "mixed"
# What the Hub takes as `license` in a card; it refuses every other word. Whatever is not here is `other`, by name.
# Source: https://huggingface.co/docs/hub/repositories-licenses
_HUB_LICENCES = {
    "afl-3.0", "agpl-3.0", "apache-2.0", "artistic-2.0", "bigcode-openrail-m", "bigscience-bloom-rail-1.0",
    "bigscience-openrail-m", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "bsl-1.0", "c-uda", "cc",
    "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0",
    "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0",
    "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "cdla-sharing-1.0",
    "creativeml-openrail-m", "deepfloyd-if-license", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1",
    "gemma", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "isc", "lgpl", "lgpl-2.1", "lgpl-3.0", "lgpl-lr", "llama2",
    "lppl-1.3c", "mit", "mpl-2.0", "ms-pl", "ncsa", "odbl", "odc-by", "ofl-1.1", "openrail", "openrail++",
    "osl-3.0", "pddl", "postgresql", "unlicense", "wtfpl", "zlib",
}  # fmt: skip
_HUB_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}(?:/[A-Za-z0-9_][A-Za-z0-9._-]{0,95})?")


@dataclass(frozen=True)
class Source:
    """A checkpoint that a family was made from.

    Attributes:
        name: How it is called; of a local folder only its name.
        repo: Its Hub id, or None for a local folder.
        revision: The commit that was read, or None for a local folder.
        licence: What its card says, or None where it says nothing.
    """

    name: str
    repo: str | None
    revision: str | None
    licence: str | None


@dataclass(frozen=True)
class Origin:
    """What a family was made from.

    Attributes:
        base: The pre-trained checkpoint.
        tasks: The fine-tuned checkpoint of every task.
        datasets: Hub ids of the data.
        recipe: The recipe, YAML, as it is published.
    """

    base: Source
    tasks: Mapping[str, Source]
    datasets: tuple[str, ...]
    recipe: str

    @property
    def sources(self) -> tuple[Source, ...]:
        """The base and the fine-tunes, each once."""
        return tuple(dict.fromkeys((self.base, *self.tasks.values())))

    @property
    def on_the_hub(self) -> list[str]:
        """The Hub ids of the sources that have one, each once."""
        return list(dict.fromkeys(source.repo for source in self.sources if source.repo is not None))


@dataclass(frozen=True)
class Places:
    """Where a family is to be found.

    Attributes:
        family: The family repo, or None for a family that lies in a local folder.
        members: By configuration: its repo, or where `family` is None its folder as seen from the card.
        collection: The slug of the collection that groups the repos, or None.
    """

    family: str | None
    members: Mapping[str, str]
    collection: str | None


@dataclass(frozen=True)
class Licence:
    """The licence of something made from several sources.

    Attributes:
        id: What stands in a card as `license`: a word the Hub knows.
        name: What stands there as `license_name`; None but where `id` is `other`.
        text: What is to be said about it, as Markdown.
    """

    id: str
    name: str | None
    text: Markdown


def licence_of(origin: Origin) -> Licence:
    """Returns the licence of what was made from these sources: theirs where they agree, otherwise who has which."""
    holders: dict[str | None, list[str]] = {}
    for source in origin.sources:
        holders.setdefault(_normal(source.licence), []).append(source.repo or source.name)
    unknown, known = holders.pop(None, []), dict(holders)
    nothing = Markdown(f"No licence was found for {joined(unknown)}.") if unknown else Markdown("")
    if not known:
        return Licence(UNKNOWN, None, Markdown(f"{nothing} Ask whoever made them before you use this."))
    if len(known) > 1 or unknown:
        who = "; ".join(f"{escape(name)}: {joined(names)}" for name, names in known.items())
        said = "The sources have different licences" if len(known) > 1 else "Not every source states a licence"
        text = f"{said}. {who}. {nothing}".rstrip()
        ask = ", and to ask where there is none" if unknown else ""
        return Licence(OTHER, MIXED, Markdown(f"{text} Whoever uses this has to keep to all of them{ask}."))
    name = str(next(iter(known)))
    text = Markdown(f"Every source states the licence {escape(name)}, and so does this.")
    return Licence(name, None, text) if name in _HUB_LICENCES else Licence(OTHER, name, text)


def source_link(source: Source) -> Markdown:
    """Returns a source as text, with a link where it is on the Hub."""
    return hub_link(source.repo, source.repo) if source.repo is not None else escape(source.name)


def hub_link(text: object, repo: str, *, kind: str = "") -> Markdown:
    """Returns a link to a repo, or its text alone where that cannot be a repo; `kind` is "" or "datasets/"."""
    return link(text, f"{HUB}/{kind}{repo}") if _HUB_ID.fullmatch(repo) else escape(text)


def _normal(licence: str | None) -> str | None:
    """Returns a licence as it is compared: one line, and the Hub's own words in lower case."""
    if licence is None:
        return None
    text = " ".join(licence.split())
    if text.lower() in _HUB_LICENCES:
        return text.lower()
    return None if text.lower() in ("", UNKNOWN, OTHER) else text
