"""What a merged model answers: logits of a batch, and predictions for people."""

from dataclasses import dataclass

from torch import Tensor

from hf_merge.errors import InputError
from hf_merge.modeling.assembly import Head


@dataclass(frozen=True, eq=False)
class MergeOutput:
    """What a batch gave.

    Attributes:
        logits: [batch, widest head] float; beyond a task's own labels -inf, and throughout where no task claims a row.
        task_ids: [batch] int64, the task that answered each row, as an index of `MergeModel.tasks`; -1 where no task
            claims it.
    """

    logits: Tensor
    task_ids: Tensor


@dataclass(frozen=True)
class Generation:
    """What a language model wrote for one input.

    Attributes:
        task: The task that answered; None where none claims the input, and the merged model wrote.
        text: What was written, without special tokens and without the prompt.
    """

    task: str | None
    text: str


@dataclass(frozen=True)
class Prediction:
    """One input's answer.

    Attributes:
        task: The task that answered; None where none claims the input, which then has no answer.
        label: The label's name, its number as text where labels have no names, or None for a regression.
        score: The label's probability, or the value of a regression. A language model's probabilities are those of
            its options' mean log-likelihoods, which sum to 1 over the options. 0 where there is no answer.
    """

    task: str | None
    label: str | None
    score: float

    @classmethod
    def of(cls, task: str, head: Head, logits: Tensor) -> "Prediction":
        """Returns what a task's head says with one row of logits [labels or more]; of several labels the likeliest.

        Raises:
            InputError: A logit is not a number.
        """
        if bool(logits[: head.num_labels].isnan().any()):
            raise InputError(
                f"Task '{task}' answers with what is not a number: something overflows in the type that the model "
                "computes in. Load it with dtype='float32'."
            )
        if head.num_labels == 1:
            return cls(task, None, float(logits[0]))
        own = logits[: head.num_labels].float()
        best = int(own.argmax())
        scores = own.sigmoid() if head.problem_type == "multi_label_classification" else own.softmax(dim=0)
        return cls(task, head.labels[best] if head.labels is not None else str(best), float(scores[best]))
