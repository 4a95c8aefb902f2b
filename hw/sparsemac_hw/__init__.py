# SPDX-License-Identifier: Apache-2.0
"""Gateware of the sparse multiply-accumulate core, in Amaranth."""
