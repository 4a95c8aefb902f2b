# SPDX-License-Identifier: Apache-2.0
import pytest
from sparsemac import faults
from sparsemac.errors import DeviceAborted, DeviceFault
from sparsemac.registers import FaultCode

CODES = [c for c in FaultCode if c not in (FaultCode.NONE, FaultCode.ABORTED)]


@pytest.mark.parametrize("code", CODES)
def test_each_code_has_a_class_with_cause_and_remedy(code):
    error = faults.fault_error(code, 3, 0x1234, 5, "fc1, 64 columns")
    assert type(error) is not DeviceFault and type(error).__name__ in faults.__all__
    assert (error.code, error.command, error.address, error.detail) == (code, 3, 0x1234, 5)
    for text in (f"fault {code.name} at command 3, address 0x00001234", "fc1, 64 columns",
                 type(error).__doc__, f"Remedy: {error.remedy}."):
        assert text in str(error)


def test_classes_are_distinct():
    kinds = {type(faults.fault_error(code, 0, 0, 0)) for code in CODES}
    assert len(kinds) == len(CODES)


def test_abort_is_no_fault():
    error = faults.fault_error(FaultCode.ABORTED, 7, 0, 0, "fc1")
    assert isinstance(error, DeviceAborted)
    assert str(error) == "the job (fc1) was aborted at command 7"


def test_unknown_code_is_kept():
    error = faults.fault_error(200, 1, 2, 3)
    assert isinstance(error, DeviceFault) and error.code == 200
    assert "unknown fault code 200" in str(error)


def test_watchdog_is_a_timeout():
    assert isinstance(faults.fault_error(FaultCode.TIMEOUT, 0, 0, 0), TimeoutError)
