# SPDX-License-Identifier: Apache-2.0
"""The emitted core under Verilator: a native device, and cocotb benches."""
