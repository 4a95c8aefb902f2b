# SPDX-License-Identifier: Apache-2.0
"""cocotb benches: coroutines that a simulator runs; `sparsemac_sim.cosim` starts them."""
