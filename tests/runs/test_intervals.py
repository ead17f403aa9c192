import pytest

from justdubit_jax.runs.intervals import is_due, is_saved


@pytest.mark.parametrize(("interval", "due"), [(0, []), (1, [1, 2, 3, 4, 5]), (2, [2, 4])])
def test_every_so_many_steps(interval, due):
    assert [step for step in range(1, 6) if is_due(step, interval)] == due


def test_the_last_step_is_saved():
    assert [step for step in range(1, 6) if is_saved(step, 5, 2)] == [2, 4, 5]
    assert [step for step in range(1, 6) if is_saved(step, 5, 0)] == [5]
