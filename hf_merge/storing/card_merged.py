"""The card of a static merge: one ordinary model, made from several by one method."""

from collections.abc import Mapping

from huggingface_hub import ModelCard, ModelCardData

from hf_merge.merging.settings import Setting
from hf_merge.storing.markdown import code, escape, link, render, table
from hf_merge.storing.provenance import Origin, licence_of, source_link
from hf_merge.storing.redaction import redact


def merged_card(
    title: str, origin: Origin, method: Mapping[str, Setting], publication: str, granularity: str, head: str | None
) -> str:
    """Returns the card of a static merge.

    Args:
        title: What stands at the top.
        origin: What it was made from; its `recipe` is not shown.
        method: The merge method's name and settings.
        publication: The address of the method's publication.
        granularity: How the backbone was cut, which is what a method's thresholds may span.
        head: The task whose head the model has, or None where it has the base's.
    """
    licence = licence_of(origin)
    metadata = ModelCardData(
        tags=["merge", "hf-merge"],
        base_model=origin.on_the_hub or None,
        base_model_relation="merge" if origin.on_the_hub else None,
        license=licence.id,
        license_name=licence.name,
    )
    sources = {"(base)": origin.base, **origin.tasks}
    body = render(
        "merged.md.jinja",
        title=title,
        count=len(origin.tasks),
        base=source_link(origin.base),
        method=link(method["name"], publication),
        settings=table(("setting", "value"), [(name, value) for name, value in method.items() if name != "name"]),
        granularity=granularity,
        head=None if head is None else escape(head),
        sources=table(
            ("task", "checkpoint", "commit"),
            [(task, source_link(source), code(source.revision or "local")) for task, source in sources.items()],
        ),
        licence=licence.text,
        command=code("hf-merge merge"),
    )
    return redact(str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{body}")))
