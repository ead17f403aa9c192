import pytest

from justdubit_jax.errors import InputError, about


def test_a_caller_says_what_a_message_is_about():
    message = r"^config: a\.b: file\.txt: 3 is too much$"
    with pytest.raises(InputError, match=message), about("config: a.b"), about("file.txt"):
        raise InputError("3 is too much")


def test_other_errors_and_none_pass():
    with about("config"):
        pass
    with pytest.raises(ValueError, match=r"^x$"), about("config"):
        raise ValueError("x")
