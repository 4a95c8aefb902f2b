# SPDX-License-Identifier: Apache-2.0
"""What every host operation has from the table."""

import numpy as np
import pytest
from sparsemac.hostops import OPERATIONS
from sparsemac.hostops.registry import operation


def test_infinity_and_nan_are_results_like_others():
    x = np.array([[3e38, -3e38], [np.inf, np.nan]], np.float32)
    with np.errstate(all="raise"):
        y = OPERATIONS["float_linear"](x, weight=np.ones((1, 2), np.float32) * 4)
    assert np.isnan(y).all()


def test_a_name_is_entered_once():
    with pytest.raises(ValueError, match="float_linear"):
        @operation
        def float_linear(x):
            return x
