import pytest
import torch

from hf_merge.errors import InputError
from hf_merge.modeling.assembly import Head
from hf_merge.serving.answers import Prediction


def test_the_likeliest_label_answers_with_its_probability() -> None:
    answer = Prediction.of("a", Head(2, ("no", "yes")), torch.tensor([1.0, 3.0, -torch.inf]))
    assert (answer.task, answer.label) == ("a", "yes")
    assert answer.score == pytest.approx(1 / (1 + torch.exp(torch.tensor(-2.0)).item()))


def test_labels_without_names_are_numbers() -> None:
    assert Prediction.of("a", Head(3), torch.tensor([0.0, 0.5, 9.0])).label == "2"


def test_a_regression_gives_its_value() -> None:
    assert Prediction.of("a", Head(1), torch.tensor([-2.5, -torch.inf])) == Prediction("a", None, -2.5)


def test_of_several_labels_each_has_a_probability_of_its_own() -> None:
    head = Head(2, ("x", "y"), "multi_label_classification")
    answer = Prediction.of("a", head, torch.tensor([0.0, 2.0]))
    assert answer.label == "y"
    assert answer.score == pytest.approx(torch.tensor(2.0).sigmoid().item())


def test_small_types_lose_nothing_more() -> None:
    logits = torch.tensor([0.1, 0.3], dtype=torch.bfloat16)
    assert Prediction.of("a", Head(2), logits).score == float(logits.float().softmax(0)[1])


@pytest.mark.parametrize("labels", [1, 2])
def test_what_is_not_a_number_is_no_answer(labels: int) -> None:
    with pytest.raises(InputError, match=r"Task 'a' answers with what is not a number: .* dtype='float32'"):
        Prediction.of("a", Head(labels), torch.tensor([float("nan"), 0.5]))
