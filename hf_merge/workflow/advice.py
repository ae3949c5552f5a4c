"""What a search says about its inputs and its experts: allowed, but seldom meant, or good to know."""

import logging

from hf_merge.merging.task_vectors import Geometry
from hf_merge.searching.building import ExpertBuilder
from hf_merge.workflow.project import Project


logger = logging.getLogger(__name__)
_UNRELATED = 0.5


def advise(project: Project, geometry: Geometry) -> None:
    """Warns of what is allowed but seldom meant: one task only, a fine-tune far from the base, or two equal ones."""
    tasks, gram = list(project.family.tasks), geometry.total()
    if len(tasks) == 1:
        logger.warning(
            "One task only ('%s'): nothing can be merged, so the front is this fine-tune, stored by the codec.",
            tasks[0],
        )
    for task, norm in zip(tasks, geometry.relative_norms(), strict=True):
        if norm > _UNRELATED:
            share = 100 * norm
            logger.warning(
                "Task '%s': its weights differ from the base by %.0f %% of the base's norm; is it of this base?",
                task,
                share,
            )
    for first in range(len(tasks)):
        for second in range(first):
            if gram[first, first] + gram[second, second] - 2 * gram[first, second] <= 1e-12 * gram[first, first]:
                logger.warning("Tasks '%s' and '%s' have the same backbone weights.", tasks[second], tasks[first])


def log_ranges(project: Project, builder: ExpertBuilder) -> None:
    """Logs how often the criterion of Eq. 6 held, whatever the policy did with it."""
    wider, tensors = builder.widened()
    policy = next((codec.mapping["policy"] for codec in project.codecs if "policy" in codec.mapping), None)
    if tensors and policy is not None:
        share = 100 * (tensors - wider) / tensors
        logger.info(
            "Range criterion: %.1f %% of the %d merged tensors built now pass; policy %s.", share, tensors, policy
        )
