"""Error rates as the evaluate library counts them, the share of blanks and its alarm, averages between two logs."""

import math

import jax.numpy as jnp
import jiwer
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mms_jax.errors import DatasetError
from mms_jax.training.metrics import Averages, BlankMonitor, blank_ratio, error_rates

EXACT = 1e-12  # both are quotients of the same integers
FLOAT32 = 1e-6  # relative: what comes from the device has been rounded to float32

texts = st.text(alphabet="ab çğ猫", max_size=12)
pairs = st.lists(st.tuples(texts, texts), min_size=1, max_size=6)


def of_evaluate(pairs: list[tuple[str, str]], process) -> float:
    """The rate as metrics/wer and metrics/cer of evaluate 0.4 make it: sums over pairs, one jiwer call each."""
    outputs = [process(reference, hypothesis) for reference, hypothesis in pairs]
    incorrect = sum(output.substitutions + output.deletions + output.insertions for output in outputs)
    return incorrect / sum(output.substitutions + output.deletions + output.hits for output in outputs)


def distance(reference, hypothesis) -> int:
    """Edit distance, by its definition."""
    row = list(range(len(hypothesis) + 1))
    for i, ours in enumerate(reference, 1):
        row, last = [i], row
        for j, theirs in enumerate(hypothesis, 1):
            row.append(min(row[j - 1] + 1, last[j] + 1, last[j - 1] + (ours != theirs)))
    return row[-1]


def rates(pairs: list[tuple[str, str]]):
    return error_rates([reference for reference, _ in pairs], hypotheses=[hypothesis for _, hypothesis in pairs])


def test_the_rates_are_those_of_evaluates_documentation():
    found = error_rates(
        ["this is the reference", "there is another one"],
        hypotheses=["this is the prediction", "there is an other sample"],
    )
    assert found.wer == 0.5
    assert found.cer == pytest.approx(0.34146341463414637, rel=EXACT)


@given(pairs=pairs)
def test_the_rates_of_a_corpus_are_evaluates(pairs):
    words = sum(len(reference.split()) for reference, _ in pairs)
    letters = sum(len(reference.strip()) for reference, _ in pairs)
    found = rates(pairs)
    if words:
        assert found.wer == pytest.approx(of_evaluate(pairs, jiwer.process_words), rel=EXACT)
        assert found.cer == pytest.approx(of_evaluate(pairs, jiwer.process_characters), rel=EXACT)
    # And by definition: all errors over all that should have been said (over 1 where that is nothing)
    wrong_words = sum(distance(reference.split(), hypothesis.split()) for reference, hypothesis in pairs)
    wrong_letters = sum(distance(reference.strip(), hypothesis.strip()) for reference, hypothesis in pairs)
    assert found.wer == pytest.approx(wrong_words / (words or 1), rel=EXACT)
    assert found.cer == pytest.approx(wrong_letters / (letters or 1), rel=EXACT)


def test_what_is_said_for_an_empty_reference_counts_as_insertions():
    assert rates([("a b", "a b"), ("", "c")]) == (1 / 2, 1 / 3)
    assert rates([("", "a bc"), ("", "")]) == (2, 4)  # nothing to divide by
    assert rates([("", "")]) == (0, 0)


def test_rates_of_no_texts_or_of_unequal_numbers_are_an_error():
    with pytest.raises(DatasetError, match="no clips to evaluate"):
        error_rates([], hypotheses=[])
    with pytest.raises(ValueError, match="2 reference and 1"):
        error_rates(["a", "b"], hypotheses=["a"])


def test_the_blank_ratio_is_of_valid_frames():
    ids = np.array([[3, 3, 1, 3, 3], [1, 3, 3, 3, 3]])
    assert blank_ratio(ids, num_frames=np.array([3, 1]), blank_id=3) == 2 / 4
    assert blank_ratio(ids, num_frames=np.array([5, 5]), blank_id=1) == 2 / 10
    assert blank_ratio(jnp.asarray(ids), num_frames=jnp.array([3, 0]), blank_id=1) == pytest.approx(1 / 3)
    assert math.isnan(blank_ratio(ids, num_frames=np.array([0, 0]), blank_id=0))


def heard(monitor: BlankMonitor, ratios: list[float], *, every: int = 10) -> list[int]:
    """The steps at which the monitor speaks, of logs every 10 steps."""
    return [step * every for step, ratio in enumerate(ratios, 1) if monitor.update(step * every, ratio=ratio)]


def test_the_alarm_goes_off_once_after_enough_blank_logs_past_the_warm_up():
    assert heard(BlankMonitor("tur", warmup_steps=20, patience=3), [1.0] * 9) == [50]  # logs of steps 30, 40, 50
    assert heard(BlankMonitor("tur", warmup_steps=0, patience=1), [0.991, 1.0]) == [10]


@pytest.mark.parametrize("other", [0.5, 0.99, math.nan])
def test_a_log_that_is_not_all_blank_starts_the_count_anew(other):
    assert heard(BlankMonitor("tur", warmup_steps=0, patience=3), [1.0, 1.0, other, 1.0, 1.0]) == []
    assert heard(BlankMonitor("tur", warmup_steps=0, patience=3), [1.0, 1.0, other, 1.0, 1.0, 1.0]) == [60]


def test_the_alarm_names_the_language_and_gives_advice():
    message = BlankMonitor("tur", warmup_steps=0, patience=1).update(100, ratio=0.999)
    assert message is not None
    assert message.startswith("tur: 99.9% of the frames are blank")
    assert all(word in message for word in ("--learning_rate", "--warmup_steps", "transcript"))


def test_averages_are_means_since_the_last_call():
    averages = Averages()
    for loss in (1.0, 2.0, 6.0):
        averages.add(loss=loss, grad_norm=2 * loss, audio_seconds=10)
    assert averages.take(seconds=4) == {
        "loss": 3,
        "grad_norm": 6,
        "audio_seconds": 30,
        "audio_seconds_per_second": 7.5,
    }
    averages.add(loss=5.0, grad_norm=1.0, audio_seconds=1)
    assert averages.take(seconds=1)["loss"] == 5


def test_averages_of_several_languages_are_given_for_each_as_well():
    averages = Averages(["tur", "swe"])
    averages.add(loss=jnp.array([1.0, 2.0]), grad_norm=jnp.array([3.0, 5.0]), audio_seconds=np.float32(8))
    averages.add(loss=np.array([2.0, 5.0]), grad_norm=np.array([4.0, 8.0]), audio_seconds=8)
    found = averages.take(seconds=2)
    expected = {
        "loss": 2.5,
        "grad_norm": 5,
        "loss/tur": 1.5,
        "loss/swe": 3.5,
        "grad_norm/tur": 3.5,
        "grad_norm/swe": 6.5,
    }
    assert found == pytest.approx(expected | {"audio_seconds": 16, "audio_seconds_per_second": 8}, rel=FLOAT32)


def test_averages_leave_out_and_count_what_is_not_finite():
    averages = Averages(["tur", "swe"])
    averages.add(loss=[1.0, math.nan], grad_norm=[1.0, math.nan], audio_seconds=1)
    averages.add(loss=[3.0, math.inf], grad_norm=[1.0, 2.0], audio_seconds=1)
    found = averages.take(seconds=1)
    assert (found["loss"], found["loss/tur"], found["grad_norm/swe"], found["not_finite"]) == (2, 2, 2, 3)
    assert math.isnan(found["loss/swe"])


def test_averages_of_nothing_are_no_numbers():
    found = Averages(["tur", "swe"]).take(seconds=0)
    assert math.isnan(found["loss"])
    assert math.isnan(found["grad_norm/swe"])
    assert (found["audio_seconds"], found["audio_seconds_per_second"]) == (0, 0)
