"""What tests' forked ranks do with errors and warnings."""

from __future__ import annotations

import warnings

import pytest

from megatron_probsft.runtime.errors import UserError
from tests.support.ranks import run_ranks


def _warn() -> None:
    warnings.warn("said on a rank", stacklevel=1)


def _refuse() -> None:
    raise UserError("refused on a rank")


def test_a_warning_on_a_rank_is_an_error() -> None:
    with pytest.raises(AssertionError, match="UserWarning: said on a rank"):
        run_ranks(1, _warn)


def test_a_users_mistake_on_a_rank_is_raised_here_as_itself() -> None:
    with pytest.raises(UserError, match="refused on a rank"):
        run_ranks(2, _refuse)
