"""Every kind of layer computes in bfloat16 what it computes in float64, to the rounding of
bfloat16: forward, in evaluation, and backward.
"""

import pytest

from support.reduced_precision import KINDS, bad, errors


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_float64_to_rounding(kind):
    found = errors(KINDS[kind])
    assert not bad(found), found
